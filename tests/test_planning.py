"""MTRouter-cost against slow replays, slow sums and worlds whose truth is planted."""

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from mtrouter_nb.multi_turn.planning import (PARTS, ContinuationForest, ContinuationRidge, Continuations,
                                             StickyRandom, all_plans, replay_plans, situation, visit)
from mtrouter_nb.multi_turn.replay import DOUBLE, MATCHED, OPEN
from mtrouter_nb.multi_turn.rollout import roll
from mtrouter_nb.multi_turn.routers import RandomRouter

def follow(plan):
    "A function view -> model of the plan's next turn: it leaves a model for good, and counts only its own leg."
    leg, before = 0, None

    def choose(view):
        nonlocal leg, before
        while leg < len(plan.order):
            model, last = plan.order[leg], leg == len(plan.order) - 1
            if before is None:
                before = view.proposals[0, model]
            rejected = plan.rule == "reject" and not last and view.proposals[0, model] > before
            if view.available[0, model] and not rejected:
                return model
            leg, before = leg + 1, None
        return -1
    return choose


def middle_of_an_episode(world, task, rights, rng):
    "A play of one task after some random turns, or None where it has ended."
    play = world.play([task], rights)
    for _ in range(rng.integers(0, 6)):
        if not len(play.running):
            return None
        play.step([rng.choice(np.flatnonzero(play.view().available[0]))])
    return play if len(play.running) else None


@pytest.mark.parametrize("rights", [MATCHED, DOUBLE, OPEN], ids=lambda r: r.name)
def test_replayed_plans_are_what_the_world_plays_turn_by_turn(demo_world, rights):
    rng, plans, checked = np.random.default_rng(1), all_plans(4), 0
    for task in rng.integers(0, len(demo_world.tasks), 60):
        play = middle_of_an_episode(demo_world, task, rights, rng)
        if play is None:
            continue
        reached = replay_plans(demo_world, plans, [task], play.turns, play.turns_left, play.proposals_left)
        some = rng.choice(len(plans), 12, replace=False)
        for p in some:
            again = demo_world.play([task], rights)
            for move in play.moves:
                again.step(move["model"])
            spent, best, choose = again.spent[0], again.score[0], follow(plans[p])
            while len(again.running):
                again.step([choose(again.view())])
            assert best == 0, "an episode goes on only while nothing was right, so scores before it are 0"
            assert reached[0][0, p] == again.score[0]
            assert reached[1][0, p] == pytest.approx(again.spent[0] - spent, abs=1e-7)
            checked += 1
    assert checked > 300


def test_every_plan_is_there_once():
    plans = all_plans(4, 3)
    assert len(set(plans)) == len(plans) == 4 + 2 * 12 + 2 * 24
    assert len(all_plans(2, 3)) == 2 + 2 * 2, "no order is longer than the pool"


def test_a_situation_says_what_the_play_holds(demo_world):
    play = demo_world.play(np.arange(20), DOUBLE)
    router = RandomRouter()
    router.start(20, 0)
    for _ in range(3):
        play.step(router.choose(play.view()))
    rows, seen = play.running, situation(play.view())
    assert seen.shape[1] == 4 * 4 + 4
    assert np.array_equal(seen[:, :5].argmax(1) - 1, play.current[rows]) and (seen[:, :5].sum(1) == 1).all()
    assert np.array_equal(seen[:, 5:9], play.turns[rows]) and np.array_equal(seen[:, 9:13], play.proposals[rows])
    assert np.array_equal(seen[:, -2], play.turns_left[rows])
    assert np.array_equal(seen[:, -1], play.proposals_left[rows])


def test_visits_are_unique_and_never_of_a_finished_episode(demo_world):
    task, history, seen = visit(demo_world, StickyRandom(), np.tile(np.arange(30), 4), MATCHED)
    both = np.column_stack([task, seen])
    assert len(np.unique(both, axis=0)) == len(both)
    assert np.isfinite(history).all() and (seen[:, -2:] > 0).all() and seen[:, 13:17].any(1).all()


def test_sticky_random_stays_as_often_as_it_says(demo_world):
    moves = roll(demo_world, StickyRandom(0.3), np.tile(np.arange(100), 20), OPEN).moves
    before = moves.groupby("row")["model"].shift()
    k, length = moves["k"].groupby(moves["row"]).shift(), demo_world.length[np.tile(np.arange(100), 20)[moves["row"]]]
    could = before.notna() & (k + 1 < length[np.arange(len(moves)), before.fillna(0).astype(int)])
    stayed = (moves["model"] == before)[could].mean()
    assert 0.7 < stayed < 0.82, "70 % by intent, and now and then the draw is the same model"


# ---------------------------------------------------------------------------- estimators

@pytest.fixture(scope="module")
def table():
    "Made-up situations: 12 features, 3 plans, parts of the tasks."
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12)).astype("f4")
    score = (rng.random((400, 5)) < 1 / (1 + np.exp(-x[:, :1]))).astype("f4")
    cost = np.exp(x[:, 1:2] + rng.normal(size=(400, 5))).astype("f4") / 100
    return Continuations(x, score, cost, rng.integers(0, PARTS, 400), all_plans(3, 2)[:5])


def slow_forest(data, forest, x, part):
    "Mean over the trees that may speak of the mean over the training rows of the leaf."
    alone = [i for i, p in enumerate(data.plans) if len(p.order) == 1]
    target = np.hstack([data.score[:, alone], 0.2 * np.log10(1e-4 + data.cost[:, alone])])
    out = np.zeros((len(x), 2 * data.score.shape[1]))
    trees = []
    for p in range(PARTS):
        rows = np.flatnonzero(data.part != p)
        grown = ExtraTreesRegressor(forest.trees, min_samples_leaf=max(2, round(forest.leaf * len(rows))),
                                    max_features=forest.features, random_state=forest.seed + p)
        trees += [(p, rows, tree) for tree in grown.fit(data.x[rows], target[rows]).estimators_]
    for i in range(len(x)):
        speak = [t for t in trees if part[i] in (-1, t[0])]
        for _, rows, tree in speak:
            mates = rows[tree.apply(data.x[rows]) == tree.apply(x[i:i + 1])[0]]
            out[i] += np.hstack([data.score[mates].mean(0), data.cost[mates].mean(0)]) / len(speak)
    return np.split(out, 2, axis=1)


def test_the_forest_is_a_mean_of_leaf_means(table):
    forest = ContinuationForest(leaf=0.02, trees=3).fit(table)
    x = np.random.default_rng(1).normal(size=(40, 12)).astype("f4")
    x[20:] = table.x[:20]
    part = np.r_[np.full(20, -1), np.arange(20) % (PARTS + 1) - 1]
    for fast, slow in zip(forest.predict(x, part), slow_forest(table, forest, x, part)):
        assert np.allclose(fast, slow, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: ContinuationForest(leaf=0.02, trees=3), ContinuationRidge],
                         ids=["forest", "ridge"])
def test_a_part_changes_nothing_that_its_held_out_members_say(table, make):
    "Where the outcomes of one part of the tasks are turned over, its held-out members must say the same."
    mine = table.part == 2
    score = np.where(mine[:, None], 1 - table.score, table.score)
    cost = np.where(mine[:, None], 50 * table.cost, table.cost)
    other = Continuations(table.x, score, cost, table.part, table.plans)
    one, two = (make().fit(data) for data in (table, other))
    for part, same in ((2, True), (1, False), (-1, False)):
        pairs = zip(one.predict(table.x, np.full(400, part)), two.predict(table.x, np.full(400, part)))
        assert all(np.array_equal(a, b) for a, b in pairs) == same


def test_the_ridge_is_its_members_mean(table):
    ridge = ContinuationRidge().fit(table)
    x = table.x[:50]
    each = np.mean([np.hstack([m.coef_ @ ridge.scale.transform(x).T]).T + m.intercept_ for m in ridge.members], 0)
    score, cost = np.split(each, 2, axis=1)
    ours = ridge.predict(x, np.full(50, -1))
    assert np.allclose(ours[0], score.clip(0, 1), atol=1e-5) and np.allclose(ours[1], cost.clip(0), atol=1e-5)
