"""Lists of plans against plays turn by turn, fits of their own, and other orders of models."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import mtrouter_nb.analyses.longer_plans as longer
from mtrouter_nb.analyses.contrast import per_task
from mtrouter_nb.analyses.longer_plans import (ALL_BUDGETS, CHOSEN, LATE, LATE_BUDGETS, PER_DOMAIN, by_list,
                                               cascade_families, difference_table, fit_on, last_acts, length_piece,
                                               level_table, named, narrowed, plan_families, plan_lists, shorter,
                                               tail_order, tailed, union, up_to)
from mtrouter_nb.core.splits import stratified_folds
from mtrouter_nb.multi_turn.cascades import CascadeFamily
from mtrouter_nb.multi_turn.contenders import COMMITTED, PLANS
from mtrouter_nb.multi_turn.offers import Offers, plan_offers
from mtrouter_nb.multi_turn.planning import (Planner, PlannerConfig, PlanRouter, all_plans, fit_planners,
                                             parts_of, replay_plans)
from mtrouter_nb.multi_turn.replay import DOUBLE, MATCHED, OPEN, ReplayWorld
from mtrouter_nb.multi_turn.rollout import roll
from mtrouter_nb.multi_turn.trials import SMOKE, splits

QUICK = PlannerConfig(longest=2, runs=1, trees=2)
RIGHTS = pytest.mark.parametrize("rights", [MATCHED, DOUBLE, OPEN], ids=lambda r: r.name)


def played(world, plan, task, rights):
    "(score, dollars, models that acted) of a plan kept from the start, turn by turn."
    play, leg, before = world.play([task], rights), 0, None
    while len(play.running) and leg < len(plan.order):
        view, model, last = play.view(), plan.order[leg], leg == len(plan.order) - 1
        before = view.proposals[0, model] if before is None else before
        rejected = plan.rule == "reject" and not last and view.proposals[0, model] > before
        if view.available[0, model] and not rejected: play.step([model])
        else: leg, before = leg + 1, None
    return play.score[0], play.spent[0], np.flatnonzero(play.turns[0])


@pytest.fixture(scope="module")
def split(demo_world):
    return splits(demo_world.tasks, 3, 0)[0]


@pytest.fixture(scope="module")
def train(demo_world, split):
    return demo_world.task_index[list(split.train)].to_numpy()


@pytest.fixture(scope="module")
def lists(demo_world, train):
    return plan_lists(demo_world, train, 2)


# ---------------------------------------------------------------------------- lists

@pytest.mark.parametrize("n, longest", [(4, 1), (4, 2), (5, 3), (3, 3)])
def test_a_tailed_list_has_every_plan_once_and_all_that_is_left_of_each(n, longest):
    tail = np.random.default_rng(n).permutation(n).tolist()
    plans = tailed(n, tail, longest)
    assert len(set(plans)) == len(plans) and plans[:len(all_plans(n, longest))] == all_plans(n, longest)
    for p in plans:
        assert len(set(p.order)) == len(p.order) and (p.rule == "end" or len(p.order) > 1)
        if len(p.order) > longest: assert [*p.order[longest:]] == [m for m in tail if m in p.order[longest:]]
    full = {p for p in plans if len(p.order) == n}
    heads = {(p.order[:longest], p.rule) for p in full}
    assert heads == {(p.order, rule) for p in all_plans(n, longest) if len(p.order) == longest
                     for rule in (("end", "reject") if n > 1 else ("end",))}
    rest = Planner(None, [], plans).rest
    for i, p in enumerate(plans):
        if len(p.order) > 1: assert plans[rest[i]].order == p.order[1:], "what is left can be held on to"


@RIGHTS
def test_tails_are_worth_what_playing_them_gives(demo_world, rights):
    plans = [p for p in tailed(4, (2, 0, 3, 1), 2) if len(p.order) > 2]
    tasks = np.random.default_rng(0).choice(len(demo_world.tasks), 8, replace=False)
    n = len(tasks)
    score, cost = replay_plans(demo_world, plans, tasks, np.zeros((n, 4)), np.full(n, rights.turns),
                               np.full(n, rights.proposals))
    for i, task in enumerate(tasks):
        for k, plan in enumerate(plans):
            one = played(demo_world, plan, task, rights)
            assert score[i, k] == one[0] and cost[i, k] == pytest.approx(one[1], abs=1e-7)


@RIGHTS
def test_the_last_model_acts_as_often_as_it_is_seen_to_act(demo_world, rights):
    few = copy.copy(demo_world)  # the first tasks only, for a slow count
    rows = slice(0, 6)
    few.tasks, few.shape = demo_world.tasks.iloc[rows], (6, *demo_world.shape[1:])
    for name in ("cost", "proposed", "length", "score", "success", "absent", "error", "base_row", "seen_usd"):
        setattr(few, name, getattr(demo_world, name)[rows])
    for length in (2, 3, 4):
        plans = [p for p in all_plans(4, length) if len(p.order) == length]
        acts = [p.order[-1] in played(demo_world, p, task, rights)[2] for task in range(6) for p in plans]
        assert last_acts(few, rights, length) == pytest.approx(np.mean(acts))


def test_the_tail_goes_by_score_per_dollar_whatever_the_order_of_models(demo_world, train):
    score, usd = demo_world.score[train].mean(0), demo_world.cost[train].sum(2).mean(0)
    order = tail_order(demo_world, train)
    assert (np.diff((score / usd)[[*order]]) <= 0).all()
    names = demo_world.pool.names[::-1]
    turned = ReplayWorld(demo_world.log, demo_world.pool.subset(names), demo_world.encoder)
    assert [names[m] for m in tail_order(turned, train)] == [demo_world.pool.names[m] for m in order]


# ---------------------------------------------------------------------------- one fit for all

def test_a_fit_on_all_plans_is_mtrouter_cost(demo_world, train):
    mine, theirs = fit_on(demo_world, train, OPEN, QUICK, all_plans(4, 2)), fit_planners(demo_world, train, OPEN, QUICK)
    part, test = parts_of(demo_world, train, 0), np.setdiff1d(np.arange(len(demo_world.tasks)), train)
    one, other = (plan_offers(demo_world, p, train, part, test, OPEN, (0.0, 4.0))[0] for p in (mine, theirs))
    assert one.settings == other.settings
    for a in ("held_score", "held_cost", "score", "cost"): assert np.array_equal(getattr(one, a), getattr(other, a))


def test_a_narrowed_planner_is_the_one_that_was_fitted_to_its_list_alone(demo_world, train, lists):
    wide = fit_on(demo_world, train, OPEN, QUICK, union(lists))
    part = np.random.default_rng(0).integers(-1, 5, 40)
    view = demo_world.play(np.arange(40), OPEN).view()
    test = np.setdiff1d(np.arange(len(demo_world.tasks)), train)
    for name, plans in lists.items():
        own, cut = fit_on(demo_world, train, OPEN, QUICK, plans), narrowed(wide, plans)
        for kind in own:
            assert cut[kind].plans == plans and cut[kind].margin == own[kind].margin
            for a, b in zip(own[kind].predict(view, part), cut[kind].predict(view, part)):
                assert np.allclose(a, b, atol=1e-6), (name, kind)
        a, b = (roll(demo_world, PlanRouter(p["forest"], 1.0), test, OPEN).moves for p in (own, cut))
        pd.testing.assert_frame_equal(a, b)


def test_narrowing_leaves_the_wide_planner_as_it_was(demo_world, train, lists):
    wide = fit_on(demo_world, train, DOUBLE, QUICK, union(lists))
    view, nowhere = demo_world.play(np.arange(10), DOUBLE).view(), np.full(10, -1)
    before = {name: p.predict(view, nowhere) for name, p in wide.items()}
    narrowed(wide, lists[up_to(1)])
    for name, p in wide.items():
        for a, b in zip(before[name], p.predict(view, nowhere)): assert np.array_equal(a, b)


# ---------------------------------------------------------------------------- families

def test_offers_of_lists_keep_their_rows():
    rng = np.random.default_rng(0)
    each = {name: Offers("x", [("steady", 0.0), ("mean", 1.0)], rng.random(2), rng.random(2), rng.random((2, 3)),
                         rng.random((2, 3))) for name in "ab"}
    joined = by_list("all", each)
    for name, offers in each.items():
        own = joined.only(name)
        assert own.settings == [(name, 0.0), (name, 1.0)] and np.array_equal(own.score, offers.score)
        assert np.array_equal(own.held_cost, offers.held_cost)


def test_shorter_families_are_those_that_were_made_so(demo_world):
    whole = CascadeFamily.of(demo_world, DOUBLE)
    for longest in (1, 2, 3):
        cut, made = shorter(whole, longest), CascadeFamily.of(demo_world, DOUBLE, longest=longest)
        place = {key: i for i, key in enumerate(zip(made.orders, made.rules))}
        at = [place[key] for key in zip(cut.orders, cut.rules)]
        assert sorted(at) == list(range(len(made.orders)))
        for name in ("score", "cost", "turns", "models"):
            assert np.array_equal(getattr(cut, name), getattr(made, name)[at])


def test_cascades_of_all_lengths_and_per_domain(demo_world, split):
    each = cascade_families(demo_world, split, OPEN, SMOKE, 0, (1, 4))
    assert list(each) == [up_to(1), up_to(4), PER_DOMAIN]
    assert {v for v, _ in each[PER_DOMAIN].settings} == {PER_DOMAIN}
    assert np.array_equal(each[PER_DOMAIN].score, each[up_to(4)].only(PER_DOMAIN).score)


def test_the_choice_of_a_list_and_its_settings_knows_no_test_task(demo_world, split, monkeypatch):
    monkeypatch.setattr(longer, "stored", lambda function, *inputs: function(*inputs))
    test = demo_world.task_index[list(split.test)].to_numpy()
    turned = copy.copy(demo_world)
    turned.success, turned.score = demo_world.success.copy(), demo_world.score.copy()
    turned.success[test[::2]], turned.score[test[::2]] = True, 1.0  # after a failure there is a state to go on from
    choice = ["family", "budget", "variant", "parameter"]
    before, after = (length_piece(w, split, OPEN, SMOKE, 0).query("chosen_by == 'training tasks'")
                     for w in (demo_world, turned))
    pd.testing.assert_frame_equal(*(rows[choice].drop_duplicates(ignore_index=True) for rows in (before, after)))
    assert not np.allclose(before["score"], after["score"])


def test_the_own_list_is_mtrouter_cost_as_it_stands(demo_world, split, monkeypatch):
    asked = []

    def direct(function, *inputs):
        asked.append(function.__name__)
        return function(*inputs)
    monkeypatch.setattr(longer, "stored", direct)
    again, kept = plan_families(demo_world, split, OPEN, SMOKE, 0)
    assert asked == ["plan_results"] and (again.family, kept.family) == (PLANS, COMMITTED)
    plans = longer.plan_results(demo_world, split, OPEN, SMOKE, 0)
    for mine, family in ((again, PLANS), (kept, COMMITTED)):
        theirs = Offers.unpacked(plans, family)
        assert np.array_equal(mine.only(up_to(SMOKE.planner.longest)).score, theirs.score)


# ---------------------------------------------------------------------------- tables

def test_tables_are_means_of_tasks_paired(demo_world):
    rng, n = np.random.default_rng(0), 30
    families, budgets = [named(PLANS, up_to(2)), named(PLANS, CHOSEN)], (0.01, LATE, 0.1)
    rows = pd.DataFrame([dict(world="as logged", rights="open", seed=seed, family=family, budget=budget, fold="0",
                              chosen_by="training tasks", task_id=f"t{task}", score=rng.random(), cost_usd=budget)
                         for seed in (0, 1) for family in families for budget in budgets for task in range(n)])
    levels = level_table(rows).set_index(["budgets", "family"])
    gaps = difference_table(rows, [tuple(families)]).set_index("budgets")
    for name, part in ((ALL_BUDGETS, rows), (LATE_BUDGETS, rows[rows["budget"] >= LATE])):
        wide = part.groupby(["family", "task_id"])["score"].mean().unstack("family")
        assert levels.loc[(name, families[0]), "score"] == pytest.approx(wide[families[0]].mean())
        assert gaps.loc[name, "difference"] == pytest.approx((wide[families[0]] - wide[families[1]]).mean())
        assert gaps.loc[name, "low"] < gaps.loc[name, "difference"] < gaps.loc[name, "high"]
    assert per_task(rows)["score"].size == 2 * n and len(levels) == 4
    mixed = rows.sample(frac=1, random_state=0)
    again = difference_table(mixed, [tuple(families)]).set_index("budgets")
    assert np.allclose(again["difference"], gaps["difference"])


def test_every_piece_scores_each_test_task_once_per_budget(demo_world):
    config = replace(SMOKE, task_budgets=(0.001, 0.1))
    split = splits(demo_world.tasks, 2, 0)[1]
    piece = length_piece(demo_world, split, DOUBLE, config, 0)
    size = piece.groupby(["family", "chosen_by", "budget"])["task_id"].agg(["size", "nunique"])
    assert (size == len(split.test)).all().all()
    fold = stratified_folds(demo_world.tasks, 2, 0)
    assert set(piece["task_id"]) == set(fold.index[fold == 1])
