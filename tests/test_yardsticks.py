"""Yardsticks against libraries and plain loops."""
import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.svm import LinearSVR
from test_order import made_up

from mtrouter_nb.single_turn.interface import in_own_order
from mtrouter_nb.single_turn.yardsticks import OneModel, SupportVectorPerModel, WeightedElo, bradley_terry


def test_strengths_are_the_most_likely_ones():
    wins = np.random.default_rng(0).uniform(1, 9, (5, 5)) * (1 - np.eye(5))

    def loss(x): return (wins * np.logaddexp(0, x - x[:, None])).sum()
    best = minimize(loss, np.zeros(5), tol=1e-12).x
    assert np.allclose(bradley_terry(wins, rounds=500), best - best.mean(), atol=1e-4)
    assert np.array_equal(bradley_terry(np.stack([wins, wins]))[1], bradley_terry(wins))


def test_battles_on_similar_prompts_count_more():
    matrix, queries = made_up(40)
    asked = queries.take(np.arange(3))
    said = WeightedElo(rounds=500).fit(matrix, queries).choose(asked).ranking
    unit = queries.embeddings / np.linalg.norm(queries.embeddings, axis=1, keepdims=True)
    for i in range(3):
        cosine = unit @ unit[i]
        wins = .5 * (1 - np.eye(8))
        for row, weight in zip(matrix.score, 10 ** (1 + cosine / np.abs(cosine).max())):
            wins += weight * (row[:, None] > row)
        assert np.allclose(said[i], bradley_terry(wins, 500), atol=1e-3)


def test_support_vectors_are_the_library_s():
    matrix, queries = made_up(100)
    router = SupportVectorPerModel(strengths=(.01,)).fit(matrix, queries)
    own, rows, _ = in_own_order(matrix)
    x = router.scale.transform(queries.embeddings)
    theirs = LinearSVR(epsilon=.1, C=.01, loss="squared_epsilon_insensitive", dual=False, intercept_scaling=10.0)
    theirs.fit(x[rows], own.score[:, 2])
    column = router.columns_[2]
    assert np.allclose(router.choose(queries).ranking[:, column], theirs.predict(x), atol=1e-6)


@pytest.mark.parametrize("dearest, name", [(False, "a"), (True, "h")])
def test_one_model_is_the_cheapest_or_the_dearest(dearest, name):
    matrix, queries = made_up()
    choices = OneModel(dearest).fit(matrix, queries).choose(queries)
    assert {matrix.models[m] for m in choices.answerer[0]} == {name}
