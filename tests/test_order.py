"""No choice depends on the order in which models and rows stand in a table.

A router learns from the table in an order of its own, so that a permutation of models and rows leaves every choice as
it was, bit by bit, whether it learns by descent or not. Where a learner is handed arrays, it must agree with itself as
well as two of its seeds do, on average, less .05.
"""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.data.outcomes import OutcomeMatrix
from mtrouter_nb.learners.embedding_routers import AvengersPro, EmbedLLM, RouterDC
from mtrouter_nb.single_turn.agreement_cascade import AgreementCascade, plain
from mtrouter_nb.single_turn.evaluation import ROUTERS
from mtrouter_nb.single_turn.interface import Queries, in_own_order
from mtrouter_nb.single_turn.two_model import FrugalGPT, choose_pair

MODELS = tuple("abcdefgh")
N, M = 160, len(MODELS)
QUICK = {"GraphRouter": dict(steps=10), "MTRouter": {}, "HybridLLM": dict(epochs=10)}


def made_up(n=N, seed=0, twins=True):
    """Prompts of two topics; scores of 0 and 1 with many ties. Of the eight models some are equal throughout (`twins`:
    same scores, same dollars), so that only a name can tell them apart."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, 2, n)
    score = (rng.random((n, M)) < np.where(topic[:, None] == 0, .8, np.linspace(.3, .9, M))).astype(float)
    cost = np.geomspace(.01, 1, M) * rng.uniform(.5, 1.5, (n, 1))
    if twins: score[:, [3, 6]], cost[:, [3, 6]] = score[:, [5]], cost[:, [5]]
    tasks = pd.DataFrame(dict(task_id=[f"q{i}" for i in range(n)], domain=np.where(rng.random(n) < .5, "a", "b"),
                              prompt=[f"prompt {seed} {i}" for i in range(n)], repeat=0))
    none = np.full((n, M), np.nan)
    matrix = OutcomeMatrix("made up", tasks, MODELS, score, cost, none, none, none, "simulated")
    vectors = (np.eye(8)[topic] + rng.normal(0, .4, (n, 8))).astype("f4")
    answers = {m: np.c_[score[:, MODELS.index(m)], rng.normal(size=(n, 2))].astype("f4") for m in "ac"}
    said = pd.DataFrame({m: np.where(score[:, i] == 1, "right", f"wrong {m}") for i, m in enumerate(MODELS)})
    return matrix, Queries(vectors, tasks, answers, said)


def named(choices, matrix):
    "Who answers and who is paid, by name."
    paid = [] if choices.paid is None else [choices.paid[..., matrix.models.index(m)].tolist() for m in MODELS]
    return np.array(matrix.models)[choices.answerer].tolist(), paid


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_chooses_the_same_models_wherever_they_stand(name):
    (matrix, queries), (_, asked), rng = made_up(), made_up(60, 1), np.random.default_rng(2)
    make = lambda: replace(ROUTERS[name](3), **QUICK.get(name, {}))
    rows, columns = rng.permutation(N), rng.permutation(M)
    turned = matrix.take(rows).select([MODELS[c] for c in columns])
    one, other = (make().fit(m, q).choose(asked) for m, q in ((matrix, queries), (turned, queries.take(rows))))
    assert one.settings == other.settings and named(one, matrix) == named(other, turned)
    if one.ranking is not None: assert np.array_equal(one.ranking[:, columns], other.ranking, equal_nan=True)


def test_of_equal_models_the_better_one_then_the_cheaper_one_comes_first():
    matrix, _ = made_up()
    own, rows, columns = in_own_order(matrix)
    mean, dollars = own.score.mean(0), own.cost.mean(0)
    assert (np.diff(mean) <= 0).all() and (np.diff(dollars)[np.diff(mean) == 0] >= 0).all()
    assert [matrix.models[c] for c in columns] == list(own.models)
    assert np.array_equal(matrix.tasks["task_id"].to_numpy()[rows], own.tasks["task_id"])


def agreement(one, other): return (one == other).mean()


SHORT = dict(dim=32, epochs=60, learning_rate=.01, batch_size=128)


@pytest.mark.parametrize("kind", [lambda seed: EmbedLLM(**SHORT, seed=seed),
                                  lambda seed: RouterDC(steps=100, learning_rate=.01, seed=seed),
                                  lambda seed: AvengersPro(alpha=1.0, clusters=6, seed=seed)],
                         ids=["EmbedLLM", "RouterDC", "Avengers-Pro"])
def test_a_learner_that_knows_names_agrees_with_itself_as_two_seeds_do(kind):
    matrix, queries = made_up(400, 0, twins=False)
    rng, asked = np.random.default_rng(0), made_up(200, 1)[1].embeddings

    def chosen(seed, columns):
        names = [MODELS[c] for c in columns]
        said = kind(seed).fit(queries.embeddings, matrix.score[:, columns], matrix.cost[:, columns], names)
        return np.array(names)[said.predict(asked).argmax(1)]
    plain_order = [chosen(seed, np.arange(M)) for seed in range(4)]
    turned = [chosen(seed, rng.permutation(M)) for seed in range(4)]
    seeds = np.mean([agreement(a, b) for i, a in enumerate(plain_order) for b in plain_order[:i]])
    assert np.mean([agreement(a, b) for a, b in zip(plain_order, turned)]) >= seeds - .05


def test_routerdc_does_not_learn_where_a_model_stands():
    "Ten equally good models: the three that stand first, which a stable sort would teach, get three tenths of prompts."
    rng = np.random.default_rng(0)
    n, m = 600, 10
    score, vectors = (rng.random((n, m)) < .8).astype(float), rng.normal(size=(n, 16)).astype("f4")

    def first_three(seed):
        columns = np.random.default_rng(seed).permutation(m)
        router = RouterDC(steps=150, learning_rate=.01, seed=seed)
        router.fit(vectors, score[:, columns], score, list(map(str, columns)))
        return (router.predict(vectors).argmax(1) < 3).mean()
    assert abs(np.mean([first_three(seed) for seed in range(4)]) - .3) < .2


def test_the_pair_is_the_same_wherever_its_models_stand():
    matrix, _ = made_up()
    rng = np.random.default_rng(0)
    turned = [matrix.take(rng.permutation(N)).select([MODELS[c] for c in rng.permutation(M)]) for _ in range(6)]
    assert {choose_pair(t) for t in turned} == {choose_pair(matrix)}


def test_a_plan_of_unknown_price_is_no_free_plan():
    matrix, queries = made_up()
    cost = matrix.cost.copy()
    cost[:, 0] = np.nan
    choices = AgreementCascade().fit(replace(matrix, cost=cost), queries).choose(queries)
    assert not choices.paid[1:, :, 0].any() and np.isfinite(choices.outcome(replace(matrix, cost=cost))[1][1:]).all()


@pytest.mark.parametrize("one, other, same", [
    ("1, 2", "12", False), ("3,4", "34", False), ("1,2", "(1, 2)", True), ("1,234", "1234", True),
    ("true", "True", True), ("[true]", "[True]", True), ("null", "None", True), ("12,34", "1234", False),
    ("-$1,000", "-1000", True)])
def test_what_reads_the_same_is_the_same(one, other, same): assert (plain(one) == plain(other)) == same


def test_the_published_setting_is_known():
    matrix, queries = made_up()
    for name, value in (("HybridLLM", .5), ("RouteLLM", .5), ("FrugalGPT", .02)):
        made = replace(ROUTERS[name](0), **QUICK.get(name, {})).fit(matrix, queries).choose(queries)
        assert made.settings[made.published] == value
    free = replace(matrix, cost=np.full((N, M), np.nan))
    assert FrugalGPT(epochs=2).fit(free, queries).choose(queries).published is None, "without prices no budget"
