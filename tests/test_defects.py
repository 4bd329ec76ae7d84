"""The original's slips on a made-up world: each does what it says, and the right way never sees a test label."""
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.analyses import defects as D
from mtrouter_nb.analyses.pools import mean_of_domains
from mtrouter_nb.data.outcomes import OutcomeMatrix
from mtrouter_nb.learners.embedding_routers import EmbedLLM
from mtrouter_nb.single_turn.evaluation import rows_of
from mtrouter_nb.single_turn.interface import Queries, Utility, routerdc
from mtrouter_nb.single_turn.neural import GraphRouter, ModelSAT

N, M, SEED = 160, 4, 42
SMALL = {"RouterDC": routerdc,
         "EmbedLLM": lambda seed: Utility(EmbedLLM(epochs=8, batch_size=128, seed=seed), "EmbedLLM"),
         "MODEL-SAT": lambda seed: ModelSAT(epochs=6, seed=seed),
         "GraphRouter": lambda seed: GraphRouter(steps=80, seed=seed)}


@pytest.fixture(scope="module")
def world():
    "160 prompts in two datasets; the vector says which of two models is right."
    rng = np.random.default_rng(0)
    topic = rng.integers(0, 2, N)
    score = (rng.random((N, M)) < np.where(topic[:, None] == 0, [.9, .2, .5, .6], [.1, .9, .5, .6])).astype(float)
    tasks = pd.DataFrame(dict(task_id=[f"q{i}" for i in range(N)], domain=np.where(np.arange(N) % 3, "a", "b"),
                              prompt=[f"prompt {i}" for i in range(N)], repeat=0))
    none = np.full((N, M), np.nan)
    cost = np.arange(1.0, 1 + N * M).reshape(N, M)  # tells which model was called on which prompt
    matrix = OutcomeMatrix("made up", tasks, tuple("wxyz"), score, cost, none, none, none, "simulated")
    return matrix, Queries((np.eye(8)[topic] + rng.normal(0, .3, (N, 8))).astype("f4"), tasks)


def accuracy(matrix, answerer):
    score = matrix.score[np.arange(len(matrix)), answerer]
    return mean_of_domains(score[:, None], np.ones((1, len(matrix))), matrix.domain)[0, 0]


@pytest.mark.parametrize("name", SMALL)
def test_looks_are_those_of_the_router_itself(world, name):
    matrix, queries = world
    train, *_, test = rows_of(matrix, SEED)
    learn, known, asked = matrix.take(train), queries.take(train), queries.take(test)
    said = D.every_look(SMALL[name](SEED), learn, known, asked)
    alone = SMALL[name](SEED).fit(learn, known).choose(asked)
    assert np.array_equal(said[0].argmax(1), alone.answerer[0]), "watching changes nothing"
    assert (said[0] == said[1:]).all((1, 2)).any(), "and what was kept is one of the looks"


@pytest.mark.parametrize("name", SMALL)
def test_the_peak_is_the_best_look_on_test_and_only_it_sees_test_labels(world, name):
    matrix, queries = world
    train, *_, test = rows_of(matrix, SEED)
    said = D.every_look(SMALL[name](SEED), matrix.take(train), queries.take(train), queries.take(test))
    met = matrix.take(test)
    found = D.chosen_by_slip(said, met)
    by_hand = max(accuracy(met, look.argmax(1)) for look in said[1:])
    assert accuracy(met, found[D.PEAK]) == pytest.approx(by_hand) and by_hand >= accuracy(met, found[D.RIGHT])
    turned = D.chosen_by_slip(said, replace(met, score=1 - met.score))
    assert np.array_equal(turned[D.RIGHT], found[D.RIGHT])
    worst = min(accuracy(met, look.argmax(1)) for look in said[1:])
    assert accuracy(met, turned[D.PEAK]) == pytest.approx(worst)


def test_a_model_without_scores_is_no_choice():
    said = np.array([[[.2, np.nan, .4]], [[np.nan, .1, .3]]])
    matrix = OutcomeMatrix("x", pd.DataFrame(dict(task_id=["q"], domain="a", repeat=0, prompt="p")), tuple("abc"),
                           *[np.zeros((1, 3))] * 5, "simulated")
    assert [who.tolist() for who in D.chosen_by_slip(said, matrix).values()] == [[2], [2]]


def test_a_noisy_router_contradicts_itself_and_learns_the_same(world):
    matrix, queries = world
    how = dict(epochs=8, batch_size=128, seed=3)
    clean, noisy = (kind(**how).fit(queries.embeddings, matrix.score, matrix.cost)
                    for kind in (EmbedLLM, D.NoisyEmbedLLM))
    assert clean.history_ == noisy.history_
    one, two = noisy.predict(queries.embeddings), noisy.predict(queries.embeddings)
    assert not np.array_equal(one, two) and not np.array_equal(one, clean.predict(queries.embeddings))
    assert asdict(D.noisy_embedllm(5).router) == asdict(D.embedllm(5).router)


@pytest.mark.long
def test_the_study_is_stored_and_scores_follow_from_the_table(world, tmp_path, monkeypatch):
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))
    noisy = dict(epochs=8, batch_size=128)
    monkeypatch.setattr(D, "STUDIED", SMALL | {
        "EmbedLLM": lambda seed: Utility(D.NoisyEmbedLLM(**noisy, seed=seed), "EmbedLLM")})
    first = D.slips(*world, (42, 999), workers=1, progress=False)
    assert first["EmbedLLM"][0].configs["method"].tolist() == [D.RIGHT, D.PEAK, D.NOISE, D.BOTH]
    train, *_, test = rows_of(world[0], 42)
    alone = SMALL["EmbedLLM"](42).fit(world[0].take(train), world[1].take(train)).choose(world[1].take(test))
    assert np.array_equal(first["EmbedLLM"][0].score[0], alone.outcome(world[0].take(test))[0][0]), "as without noise"
    monkeypatch.setattr(D, "every_look", None)
    again = D.slips(*world, (42, 999), workers=1, progress=False)
    for method, scores in first.items():
        for seed, a, b in zip((42, 999), scores, again[method]):
            assert np.array_equal(a.score, b.score)
            test = rows_of(world[0], seed)[3]
            assert a.tasks["task_id"].tolist() == world[0].tasks["task_id"].iloc[test].tolist()
            row, model = np.divmod(a.cost - 1, M)
            assert (row == test).all() and np.array_equal(a.score, world[0].score[test, model.astype(int)])
