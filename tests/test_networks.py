"""MODEL-SAT, GraphRouter, MTRouter on prompts: what they find, and what they may not depend on."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import normalize
from torch_geometric.nn import GeneralConv

from mtrouter_nb.data.outcomes import OutcomeMatrix, split
from mtrouter_nb.data.pool import ModelPool, UnknownModel
from mtrouter_nb.single_turn.interface import Queries
from mtrouter_nb.single_turn.neural import (GraphRouter, MTRouterSingle, ModelSAT, _Graph, _satisfaction_loss,
                                            accuracies, best_of, scaled_cost, seen_features)

KINDS = [ModelSAT, lambda **k: GraphRouter(steps=100, **k), MTRouterSingle]  # as far as it takes to see what changes
IDS = ["MODEL-SAT", "GraphRouter", "MTRouter"]
SCORE_ONLY = [ModelSAT, lambda **k: GraphRouter(cost_shares=(0.0,), **k), MTRouterSingle]


def planted(n, seed, d=32, cost=(.01, .02, .05, 1.0)):
    "Prompts of four topics; each of four models is right on its own, and a tenth of the prompts are easy for all."
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, 4, n)
    right = np.eye(4)[topic]
    right[rng.random(n) < .1] = 1
    tasks = pd.DataFrame(dict(task_id=[f"q{i}" for i in range(n)], domain=rng.choice(["a", "b"], n),
                              prompt=[f"prompt {seed}-{i}" for i in range(n)], repeat=0))
    vectors = normalize(2 * np.eye(4, d)[topic] + rng.normal(0, 1 / np.sqrt(d), (n, d))).astype("f4")
    none = np.full((n, 4), np.nan)
    dollars = np.tile(cost, (n, 1)) * rng.uniform(.8, 1.2, (n, 1))
    matrix = OutcomeMatrix("made up", tasks, ("w", "x", "y", "z"), right, dollars, none, none, none, "simulated")
    return matrix, Queries(vectors, tasks)


@pytest.fixture(scope="module")
def world():
    return planted(500, 0)


@pytest.fixture(scope="module")
def unseen():
    return planted(300, 1)


def gained(choices, matrix, setting=0):
    "Share of the way from the best single model to the oracle."
    best, oracle = np.nanmean(matrix.score, 0).max(), matrix.score.max(1).mean()
    return (np.nanmean(choices.outcome(matrix)[0][setting]) - best) / (oracle - best)


def same(one, other):
    return np.array_equal(one.answerer, other.answerer) and np.array_equal(one.ranking, other.ranking, equal_nan=True)


@pytest.mark.parametrize("make", SCORE_ONLY, ids=IDS)
def test_the_right_model_is_found(make, world, unseen):
    choices = make().fit(*world).choose(unseen[1])
    assert gained(choices, unseen[0]) > .8
    assert choices.answerer.shape == (len(choices.settings), 300) and choices.ranking.shape == (300, 4)
    top = choices.ranking.argmax(1)
    assert np.array_equal(top, choices.answerer[0]), "the first setting is that of the score alone"


@pytest.mark.parametrize("make", KINDS, ids=IDS)
def test_choices_repeat_and_leave_the_random_state_alone(make, world):
    small = world[0].take(np.arange(120)), world[1].take(np.arange(120))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = make(seed=3).fit(*small).choose(small[1])
    assert torch.equal(torch.rand(1), expected)
    assert same(one, make(seed=3).fit(*small).choose(small[1]))


@pytest.mark.parametrize("make", KINDS, ids=IDS)
def test_test_labels_change_no_choice(make, world):
    matrix, queries = world
    train, test = split(matrix, 42)
    train, test = train[:150], test[:60]
    score, cost = matrix.score.copy(), matrix.cost.copy()
    score[test] = np.random.default_rng(0).permutation(score[test])
    cost[test] = 7.0
    shuffled = replace(matrix, score=score, cost=cost)
    one, other = (make().fit(m.take(train), queries.take(train)).choose(queries.take(test)) for m in (matrix, shuffled))
    assert same(one, other)


@pytest.mark.parametrize("make", [pytest.param(make, id=name, marks=[pytest.mark.long] * (name == "GraphRouter"))
                                  for make, name in zip(SCORE_ONLY, IDS)])
def test_missing_scores_teach_nothing(make, world, unseen):
    "A model without scores is never chosen; where the right model's score is missing in half, it is found as before."
    matrix, queries = world
    score = matrix.score.copy()
    score[:, 2] = np.nan
    silent = make().fit(replace(matrix, score=score), queries).choose(unseen[1])
    assert not (silent.answerer == 2).any() and not np.isfinite(silent.ranking[:, 2]).any()
    score = matrix.score.copy()
    score[(score == 1) & (np.random.default_rng(0).random(score.shape) < .5)] = np.nan
    assert gained(make().fit(replace(matrix, score=score), queries).choose(unseen[1]), unseen[0]) > .8


def test_the_loss_is_that_of_the_known_pairs():
    said, score = torch.randn(20, 3), torch.rand(20, 3)
    score[torch.rand(20, 3) < .4] = torch.nan
    pairs = [(1 / (1 + np.exp(-p)), s) for p, s in zip(said.double().flatten().tolist(), score.flatten().tolist())
             if s == s]
    expected = -np.mean([s * np.log(p) + (1 - s) * np.log(1 - p) for p, s in pairs])
    assert _satisfaction_loss(lambda x: said, None, score).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("make", KINDS, ids=IDS)
def test_tables_without_costs_reduce_to_the_score(make, world):
    matrix, queries = (part.take(np.arange(100)) for part in world)
    choices = make().fit(replace(matrix, cost=np.full(matrix.cost.shape, np.nan)), queries).choose(queries)
    assert len(choices.settings) == 1


def test_a_model_without_a_price_is_no_candidate_where_dollars_count(world):
    matrix, queries = (part.take(np.arange(200)) for part in world)
    cost = matrix.cost.copy()
    cost[:, 0] = np.nan
    for router in (GraphRouter(steps=200), MTRouterSingle()):
        choices = router.fit(replace(matrix, cost=cost), queries).choose(queries)
        assert (choices.answerer[0] == 0).any() and not (choices.answerer[1:] == 0).any()


@pytest.mark.parametrize("make", KINDS, ids=IDS)
def test_one_number_per_prompt_and_a_new_dataset_are_no_obstacle(make, world):
    matrix, queries = (part.take(np.arange(80)) for part in world)
    flat = Queries(np.ones((80, 1), "f4"), queries.tasks)
    other = Queries(flat.embeddings, queries.tasks.assign(domain="never seen"))
    choices = make().fit(matrix, flat).choose(other)
    assert (choices.answerer == choices.answerer[:, :1]).all(), "the same prompt eighty times"


# MODEL-SAT

def test_the_description_is_a_table_of_training_rows(world):
    matrix, queries = world
    sat = ModelSAT(epochs=1).fit(matrix, queries)
    train, held = split(matrix, 0, .9)
    score = matrix.score.copy()
    score[held] = 1 - score[held]
    def about(router): return router.placed(router.network.about.numpy().T).T
    assert np.array_equal(about(sat), about(ModelSAT(epochs=1).fit(replace(matrix, score=score), queries)))
    seen = pd.DataFrame(matrix.score[train]).groupby(matrix.tasks["domain"].to_numpy()[train], sort=False).mean().T
    z = (seen - seen.mean()) / seen.std(ddof=0)
    assert np.allclose(np.sort(about(sat)[:, :2], 1), np.sort(z, 1), atol=1e-5) and (about(sat)[:, -1] == 1).all()
    assert sat.network.about.shape == (4, 2 + 14 + 1)


def test_accuracies_fall_back_on_the_model_then_the_pool():
    table = accuracies(np.array([[1, np.nan, 0], [np.nan, np.nan, 1]]), np.array([0, 1]))
    assert np.allclose(table, [[1, 1], [2 / 3, 2 / 3], [0, 1]])


# GraphRouter

def test_the_dense_network_is_the_library_s():
    torch.manual_seed(0)
    net = _Graph(10, np.random.default_rng(0).normal(size=(6, 9))).train()
    assert all(isinstance(conv, GeneralConv) for conv in net.rounds)
    q, task, edges = torch.randn(40, 10), torch.randn(40, 10), torch.rand(3, 40, 6)
    visible = (torch.rand(40, 6) < .4).float()
    pairs = [(i, m) for i in range(40) for m in range(6) if visible[i, m]]
    features = torch.stack([torch.relu(net.edge(edges[:, i, m])) for i, m in pairs])
    index = torch.tensor([[i for i, _ in pairs], [40 + m for _, m in pairs]])
    nodes = torch.cat([torch.cat([net.task(task), net.query(q)], 1), net.model(net.about)])
    x = torch.relu(net.norms[0](net.rounds[0](nodes, index, edge_attr=features)))
    x = net.norms[1](net.rounds[1](x, index, edge_attr=features))
    said = torch.sigmoid(torch.stack([(nodes[i] * x[40 + m]).mean() for i in range(40) for m in range(6)]))
    assert torch.allclose(torch.sigmoid(net(q, task, edges, visible[None])).flatten(), said, atol=1e-5)


def test_labels_and_scaled_costs_by_loops():
    rng = np.random.default_rng(0)
    utility = rng.integers(0, 3, (50, 5)) / 2.0
    utility[rng.random(utility.shape) < .2] = np.nan
    for row, label in zip(utility, best_of(utility)):
        top = max((u for u in row if not np.isnan(u)), default=np.nan)
        assert np.array_equal(label, [np.nan if np.isnan(u) else float(u == top) for u in row], equal_nan=True)
    cost, group = rng.uniform(size=(50, 5)), rng.integers(0, 3, 50)
    for g in range(3):
        mine = cost[group == g]
        assert np.allclose(scaled_cost(cost, group)[group == g], (mine - mine.min()) / np.ptp(mine))
    assert not scaled_cost(np.full((4, 2), 3.0), np.zeros(4, int)).any()


@pytest.mark.long  # nbs/single_turn/02_neural shows the same
def test_the_three_settings_are_ordered_in_cost(world, unseen):
    choices = GraphRouter().fit(*world).choose(unseen[1])
    dollars = choices.outcome(unseen[0])[1].mean(1)
    assert choices.settings == [0.0, .5, .8] and (np.diff(dollars) < 0).all()
    assert gained(choices, unseen[0], 0) > .8 and gained(choices, unseen[0], 0) >= gained(choices, unseen[0], 2)


def test_the_step_is_chosen_by_utility_on_held_out_prompts(world):
    matrix, queries = world
    router = GraphRouter(steps=200).fit(matrix, queries)
    held = split(matrix, 0, .9)[1]
    chosen = router.choose(queries.take(held)).answerer
    cost = scaled_cost(matrix.cost, matrix.domain)
    for k, w in enumerate(router.settings):
        utility = ((1 - w) * matrix.score - w * cost)[held, chosen[k]].mean()
        assert utility == pytest.approx(max(router.utilities_[w]))


# MTRouter

def test_cost_weights_hold_back_the_dear_model(world, unseen):
    choices = MTRouterSingle().fit(*world).choose(unseen[1])
    dollars = choices.outcome(unseen[0])[1].mean(1)
    assert choices.settings[0] == 0 and (np.diff(dollars) <= 1e-3).all() and dollars[-1] < .02 < dollars[0]
    mean = world[0].cost.mean(0)
    for cost_weight, answerer in zip(choices.settings, choices.answerer):
        assert np.array_equal(answerer, (choices.ranking - cost_weight * mean).argmax(1))


def test_features_of_models_come_from_the_pool_or_the_training_rows(world):
    matrix, queries = (part.take(np.arange(80)) for part in world)
    known = np.log(matrix.cost.mean(0))
    features = seen_features(matrix)
    assert np.allclose(features[:, 0], (known - known.mean()) / known.std()) and not features[:, 1:].any()
    table = pd.DataFrame(dict(input_usd_per_mtok=[1., 2, 3, 4], output_usd_per_mtok=1.), index=list("zyxw"))
    router = MTRouterSingle(pool=ModelPool(table)).fit(matrix, queries)
    own = [matrix.models[column] for column in router.columns_]
    assert np.allclose(router.network.models.meta, ModelPool(table.loc[own]).features())
    with pytest.raises(UnknownModel): MTRouterSingle(pool=ModelPool(table.iloc[:2])).fit(matrix, queries)
