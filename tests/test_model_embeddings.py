"""Model embeddings: distances, tests on them and the study, against brute force, SciPy and hand examples."""
from itertools import permutations

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr
from sklearn.decomposition import PCA

from mtrouter_nb.analyses import model_embeddings
from mtrouter_nb.analyses.model_embeddings import (AttributesOnly, distances_of, embedding_study, halves, mantel,
                                                   model_vectors, neighbour_agreement, outcome_agreement,
                                                   profile_distance, project, prompt_rows, rank_correlation,
                                                   seed_stability, small_maps, vectors_of)
from mtrouter_nb.data.pool import MINT_POOL
from mtrouter_nb.data.mint import find_mint, mint_models
from mtrouter_nb.data.sources import load_log, pool_of
from mtrouter_nb.learners.outcome_network import EstimatorConfig

QUICK = EstimatorConfig(batch_size=128, epochs=3)


@pytest.fixture(scope="module")
def study(demo_world):
    return embedding_study(demo_world, QUICK, seeds=(0, 1), workers=1, progress=False)


def distances(n, seed):
    return squareform(pdist(np.random.default_rng(seed).normal(size=(n, 3))))


def test_rows_are_prompts_times_models(demo_world):
    rows = prompt_rows(demo_world, [5, 2])
    m = len(demo_world.pool)
    assert rows.action.tolist() == [*range(m)] * 2
    assert rows.task.tolist() == [demo_world.tasks["task_id"][5]] * m + [demo_world.tasks["task_id"][2]] * m
    runs = demo_world.log.episodes.set_index(["task_id", "model"])["score"]
    assert rows.target.tolist() == [runs[t, demo_world.pool.names[a]] for t, a in zip(rows.task, rows.action)]
    assert np.ptp(rows.x[:, -3:], axis=0).max() == 0, "the same rights everywhere"


def test_a_run_that_the_log_lacks_gives_no_row(demo_world, monkeypatch):
    absent = np.zeros_like(demo_world.absent)
    absent[3, 1] = True
    monkeypatch.setattr(demo_world, "absent", absent)
    assert prompt_rows(demo_world, [3]).action.tolist() == [0, 2, 3]


def test_attributes_alone_cannot_tell_models_of_equal_attributes_apart(demo_world, monkeypatch):
    features = demo_world.pool.features()
    features[1] = features[0]
    monkeypatch.setattr(type(demo_world.pool), "features", lambda self: features)
    rows = prompt_rows(demo_world)
    bare, full = (model_vectors(kind(demo_world.pool, QUICK).fit(rows))
                  for kind in (AttributesOnly, model_embeddings.OutcomeEstimator))
    assert np.array_equal(bare[0], bare[1]) and not np.allclose(bare[0], bare[2])
    assert not np.allclose(full[0], full[1], atol=1e-3)


def test_projection_equals_scikit_learn():
    vectors = np.random.default_rng(0).normal(size=(30, 8)) * np.arange(1, 9)
    points, share = project(vectors)
    pca = PCA(8).fit(vectors)
    assert np.allclose(share, pca.explained_variance_ratio_)
    assert np.allclose(np.abs(points), np.abs(pca.transform(vectors)))
    assert (points[np.abs(points).argmax(0), range(8)] > 0).all()


def test_mantel_is_spearman_with_an_exact_test():
    a, b = distances(5, 0), distances(5, 1)
    upper = np.triu_indices(5, 1)
    rho = spearmanr(a[upper], b[upper])[0]
    every = [spearmanr(a[np.ix_(p, p)][upper], b[upper])[0] for p in map(list, permutations(range(5)))]
    found = mantel(a, b, permutations=3000)
    assert np.isclose(found["rho"], rho)
    assert abs(found["p"] - np.mean(np.array(every) >= rho - 1e-12)) < 0.03


def test_partial_mantel_is_the_partial_rank_correlation():
    a, b, c = (distances(12, seed) for seed in range(3))
    b = b + c
    upper = np.triu_indices(12, 1)
    ab, ac, bc = (spearmanr(x[upper], y[upper])[0] for x, y in ((a, b), (a, c), (b, c)))
    expected = (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))
    assert np.isclose(mantel(a, b, given=c, permutations=9)["rho"], expected)


def test_models_without_a_profile_are_left_out():
    scores = np.random.default_rng(0).integers(2, size=(40, 6)).astype(float)
    scores[:, 2] = 0
    d = profile_distance(scores)
    assert np.isnan(d[2]).all() and np.isclose(d[0, 1], 1 - np.corrcoef(scores[:, 0], scores[:, 1])[0, 1])
    assert mantel(distances(6, 0), d, permutations=9)["n"] == 5
    assert 0 <= neighbour_agreement(distances(6, 0), d, 2) <= 1
    assert small_maps(distances(6, 0), d, 4, draws=7).shape == (7,)


def test_neighbours_of_a_line():
    line = squareform(pdist(np.array([0, 1, 3, 7, 15.0])[:, None]))
    turned = line.copy()
    turned[0, 1] = turned[1, 0] = 100  # 0 and 1 are no longer near: 0 -> 2, and 1's next is 2 as 3's is
    assert neighbour_agreement(line, line, 1) == 1
    assert neighbour_agreement(line, turned, 1) == pytest.approx(3 / 5)


def test_rank_correlation_is_spearman():
    x, y = np.random.default_rng(3).normal(size=(2, 40))
    found = rank_correlation(x, x + y)
    assert np.isclose(found["rho"], spearmanr(x, x + y)[0]) and found["low"] < found["rho"] < found["high"]


def test_study_keeps_halves_apart(demo_world, study):
    half = dict(zip(demo_world.tasks["task_id"], halves(demo_world)))
    said = study["predictions"]
    assert (said.groupby("estimator").size() == len(demo_world.tasks) * len(demo_world.pool)).all()
    # a second fit of one half says the same of the other: nothing of the other half went in
    rows = prompt_rows(demo_world, np.flatnonzero(halves(demo_world) == 0))
    alone = model_embeddings.OutcomeEstimator(demo_world.pool, QUICK).fit(rows)
    assert np.allclose(model_vectors(alone), vectors_of(study, part=0), atol=1e-5)
    other = prompt_rows(demo_world, np.flatnonzero(halves(demo_world) == 1))
    of_other = said[(said["estimator"] == "attributes and residual") & (said["task_id"].map(half) == 1)]
    expected = alone.predict(other.x)[0][np.arange(len(other)), other.action]
    assert np.allclose(of_other["predicted"], expected, atol=1e-5)


def test_study_is_stored(demo_world, study, monkeypatch):
    monkeypatch.setattr(model_embeddings, "model_vectors", lambda *_: pytest.fail("computed twice"))
    again = embedding_study(demo_world, QUICK, seeds=(0, 1), workers=1, progress=False)
    assert again["vectors"].equals(study["vectors"])


def test_summaries_of_the_study(demo_world, study):
    a, b = (pdist(vectors_of(study, seed=s)) for s in (0, 1))
    assert np.isclose(seed_stability(study)["distances"][0], spearmanr(a, b)[0])
    assert np.allclose(squareform(distances_of(study)), (a + b) / 2)
    table = outcome_agreement(demo_world, study, permutations=19)
    assert table.groupby("distance")["learned_from"].apply(list).tolist() == [[0, 1]] * 4


@pytest.mark.skipif(find_mint(mint_models()) is None, reason="the logs of all of MINT's models are not here")
def test_all_models_load():
    log = load_log("mint", n_tasks=8, models=None)
    assert log.models == mint_models() and len(pool_of(log)) == 52
    assert load_log("mint", n_tasks=8).models == sorted(MINT_POOL)
