"""The routers of prompts: their losses and tables against plain loops, and what they may not depend on."""

import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch

from mtrouter_nb.learners import embedding_routers as baselines
from mtrouter_nb.learners.embedding_routers import AvengersPro, EmbedLLM, RouterDC, cluster_loss, sample_llm_loss
from mtrouter_nb.multi_turn.contenders import PER_PROMPT
from mtrouter_nb.multi_turn.trials import ALL_RIGHTS, SMOKE, Trial, splits
from mtrouter_nb.multi_turn.replay import MATCHED
from mtrouter_nb.multi_turn.rollout import roll
from mtrouter_nb.multi_turn.routers import EpisodeRouter, HindsightOracle

KINDS = [lambda **k: EmbedLLM(dim=64, epochs=60, **k), lambda **k: RouterDC(steps=100, **k), AvengersPro]
IDS = ["EmbedLLM", "RouterDC", "Avengers-Pro"]


def planted(n, seed, d=64):
    "Prompts of four topics; a model solves its own topic and no other, and the last one is by far the cheapest."
    rng = np.random.default_rng(seed)
    topic = rng.integers(4, size=n)
    vectors = 3 * np.eye(4, d)[topic] + 3 / d**0.5 * rng.normal(size=(n, d))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype("f4"), np.eye(4)[topic], np.tile([1.0, 0.9, 0.8, 0.01], (n, 1))


def loop_loss(similarity, score, key, top_k=3, last_k=3):
    "The sample-LLM loss of one prompt, from its formula; of equal scores those of the lowest key come first."
    known = sorted((m for m in range(len(score)) if not math.isnan(score[m])), key=key.__getitem__)
    good = sorted(known, key=lambda m: -score[m])[:top_k]
    bad = [m for m in sorted(known, key=lambda m: score[m])[:last_k] if score[m] <= 0.5]
    return sum(-math.log(math.exp(similarity[i]) / (math.exp(similarity[i])
                                                    + sum(math.exp(similarity[j]) for j in bad)))
               for i in good if score[i] > 0)


@pytest.mark.parametrize("graded", [False, True])
def test_the_sample_llm_loss_is_its_formula(graded):
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-1, 1, (200, 6))
    score = rng.uniform(size=(200, 6)) if graded else rng.integers(0, 2, (200, 6)).astype(float)
    score[rng.random(score.shape) < 0.2] = np.nan
    key = rng.random(score.shape)
    expected = np.mean([loop_loss(s, y, k) for s, y, k in zip(similarity, score, key)])
    found = sample_llm_loss(*map(torch.tensor, (similarity, score)), key=torch.tensor(key))
    assert found.item() == pytest.approx(expected)


def test_ties_of_the_sample_llm_loss_favour_no_model():
    "Averaged over draws it is the mean over every order of the models, by brute force."
    rng = np.random.default_rng(0)
    similarity, score = rng.uniform(-1, 1, 5), np.array([1.0, 1, 0, 1, 0])
    every = np.mean([loop_loss(similarity, score, key, 2, 1) for key in permutations(range(5))])
    rows = [torch.tensor(a).expand(20_000, 5) for a in (similarity, score)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = sample_llm_loss(*rows, 2, 1).item()
    assert found == pytest.approx(every, abs=.01)
    assert abs(loop_loss(similarity, score, range(5), 2, 1) - every) > .05, "and not what the first columns give"


def test_the_cluster_loss_is_its_formula_for_the_partners_drawn(monkeypatch):
    rng = np.random.default_rng(1)
    hidden, label = torch.tensor(rng.normal(size=(12, 5))), torch.tensor(np.arange(12) % 3)
    draw = torch.tensor(rng.random((12, 12)))
    monkeypatch.setattr(baselines.torch, "rand", lambda shape: draw)
    cosine = [[np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for b in hidden.numpy()] for a in hidden.numpy()]
    total = 0.0
    for i in range(12):
        partner = max((j for j in range(12) if label[j] == label[i]), key=lambda j: draw[i, j])
        others = sorted((j for j in range(12) if label[j] != label[i]), key=lambda j: -draw[i, j])[:3]
        total -= math.log(math.exp(cosine[i][partner]) / sum(math.exp(cosine[i][j]) for j in [partner, *others]))
    assert cluster_loss(hidden, label).item() == pytest.approx(total / 12)


def test_embedllm_learns_by_the_cross_entropy_of_its_written_network():
    vectors, score, cost = planted(40, seed=0)
    score[:, 1][::3] = np.nan
    fitted = EmbedLLM(dim=16, epochs=1, noise=0.0, learning_rate=1e-9, validation=0.5).fit(vectors, score, cost)
    net, loss = fitted.network, [0.0, 0.0]
    for part, rows in enumerate(baselines.held_out_rows(40, 0.5, 0)):
        terms = []
        for i, m in zip(*np.nonzero(~np.isnan(score[rows]))):
            with torch.no_grad():
                logits = net.classify(net.models.weight[m] * net.project(torch.tensor(vectors[rows][i]))).numpy()
            terms.append(math.log(np.exp(logits).sum()) - logits[int(score[rows][i, m])])
        loss[part] = np.mean(terms)
    assert fitted.history_[0] == pytest.approx(loss, abs=1e-4)


def by_hand(router, vectors, score, cost, new, alpha):
    "Avengers-Pro's utilities from the labels of its clusters, by plain loops."
    labels = baselines.spherical_clusters(vectors, router.clusters, router.seed).labels_
    places = []
    for c in range(labels.max() + 1):
        rows, value = labels == c, {}
        mean = {m: np.nanmean(score[rows, m]) for m in range(score.shape[1]) if not np.isnan(score[rows, m]).all()}
        paid = {m: cost[rows, m][~np.isnan(score[rows, m])].mean() for m in mean}
        for m in mean:
            gap = max(mean.values()) - min(mean.values())
            value[m] = alpha * ((mean[m] - min(mean.values())) / gap if gap else 1.0)
            value[m] += (1 - alpha) * (1 - paid[m] / max(paid.values()))
        places.append(sorted(range(score.shape[1]), key=lambda m: -value.get(m, -np.inf)))
    centers = np.array([vectors[labels == c].mean(0) for c in range(labels.max() + 1)])
    utility = np.zeros((len(new), score.shape[1]))
    for i, q in enumerate(new):
        distance = 1 - centers @ q
        near = sorted(range(len(centers)), key=lambda c: distance[c])[:router.top_k]
        weight = np.exp([-router.beta * distance[c] for c in near])
        for c, w in zip(near, weight / weight.sum()):
            for place, m in enumerate(places[c]):
                utility[i, m] += w / (place + 1)
    return utility


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_avengers_pro_is_a_table_of_its_clusters(alpha):
    rng = np.random.default_rng(2)
    vectors, _, _ = planted(120, seed=3)
    new, _, _ = planted(30, seed=4)
    score, cost = rng.random((120, 4)), rng.uniform(0.01, 1, (120, 4))
    score[rng.random(score.shape) < 0.3] = np.nan
    score[:, 3] = np.where(vectors[:, 0] > 0.5, np.nan, score[:, 3])  # no run in some clusters
    router = AvengersPro(clusters=8).fit(vectors, score, cost)
    assert np.allclose(router.predict(new, alpha), by_hand(router, vectors, score, cost, new, alpha), atol=1e-5)


@pytest.mark.parametrize("kind", [EmbedLLM, RouterDC, lambda: AvengersPro(alpha=1.0)], ids=IDS)
@pytest.mark.long
def test_planted_structure_is_found(kind):
    router = kind().fit(*planted(240, seed=0, d=384))
    vectors, score, _ = planted(200, seed=1, d=384)
    assert (router.predict(vectors).argmax(1) == score.argmax(1)).mean() > 0.95
    assert score.mean(0).max() < 0.35, "no single model does well"


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_missing_score_is_no_score(kind):
    vectors, score, cost = planted(100, seed=5)
    empty = np.full((20, 4), np.nan)
    more = np.vstack([vectors, vectors[:20]]), np.vstack([score, empty]), np.vstack([cost, empty])
    plain, padded = kind().fit(vectors, score, cost), kind().fit(*more)
    assert np.array_equal(plain.predict(vectors), padded.predict(vectors)), "rows without a run change nothing"
    score[:, 2] = np.nan
    cost[:, 2] = 1e6
    holes = kind().fit(vectors, score, cost)
    cost[:, 2] = np.nan
    assert np.array_equal(holes.predict(vectors), kind().fit(vectors, score, cost).predict(vectors))


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_fit_is_its_seed(kind):
    data, before = planted(100, seed=6), torch.random.get_rng_state()
    first, again, other = (kind(seed=s).fit(*data).predict(data[0]) for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random state is left alone"


def test_bad_input_is_refused():
    vectors, score, cost = planted(10, seed=0)
    with pytest.raises(ValueError, match="disagree"):
        EmbedLLM().fit(vectors, score[:5], cost)
    with pytest.raises(ValueError, match="embedding 3"):
        AvengersPro().fit(np.where(np.arange(10)[:, None] == 3, np.nan, vectors), score, cost)
    with pytest.raises(ValueError, match="0 prompts"):
        RouterDC().fit(vectors, np.full_like(score, np.nan), cost)


def test_an_episode_router_keeps_its_model(demo_world):
    tasks = np.arange(len(demo_world.tasks))
    choice = tasks % len(demo_world.pool)
    played = roll(demo_world, EpisodeRouter(choice), tasks, MATCHED)
    assert np.array_equal(played.episodes["score"], demo_world.score[tasks, choice])
    assert (played.moves["model"] == choice[played.moves["row"]]).all()
    oracle = HindsightOracle.of(demo_world, tasks)
    assert oracle.name == "Oracle (hindsight)" and isinstance(oracle, EpisodeRouter)


@pytest.fixture(scope="module")
def split(demo_world): return splits(demo_world.tasks, folds=3)[0]


@pytest.fixture(scope="module")
def level(demo_world, split):
    return episode_level(demo_world, split)


def episode_level(world, split):
    return pd.concat([router.play(Trial(world, split, SMOKE))["rollouts"] for router in PER_PROMPT], ignore_index=True)


def test_outcomes_of_test_tasks_change_no_choice(demo_world, split, level):
    tasks = demo_world.task_index[list(split.test)].to_numpy()
    score, cost = demo_world.score.copy(), demo_world.cost.copy()
    try:
        rng = np.random.default_rng(0)
        demo_world.score[tasks] = demo_world.score[rng.permutation(tasks)]
        demo_world.cost[tasks] = demo_world.cost[rng.permutation(tasks)]
        after = episode_level(demo_world, split)
    finally:
        demo_world.score, demo_world.cost = score, cost
    assert np.array_equal(level["n_turns"], after["n_turns"]), "the same models played the same runs"
    assert not np.array_equal(level["cost_usd"], after["cost_usd"])


def test_every_router_of_prompts_has_its_rows_under_all_rights(split, level):
    assert set(level["rights"]) == {r.name for r in ALL_RIGHTS} and (level["switches"] == 0).all()
    swept = level.groupby("method")["parameter"].agg(lambda p: sorted(set(p.dropna())))
    assert swept.to_dict() == {"EmbedLLM": [], "RouterDC": [], "Avengers-Pro": [0.0, 0.3, 1.0]}
    count = level.groupby(["method", "rights", "parameter"], dropna=False)["task_id"].nunique()
    assert (count == len(split.test)).all() and (level["group"] == "episode-level").all()
