"""A prompt cache against loops turn by turn, play by play, in another order, and where nothing can be saved."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.analyses.prompt_cache import (BEST, BLIND, CACHED, COUNTED, READ, SEES, CachedWorld, PromptCache,
                                               SeesCache, against, best_alone, cache_dollars, cache_table,
                                               cheapest_reaching, collected, even_share, goes_on, in_one_stretch,
                                               net_savings, newcomer_dollars, payback, planned_rows, prefix_tokens,
                                               reached_rows, replay_cached_plans, saved_by_episode, seeing_gains,
                                               side_of, turn_dollars, with_cache, with_cached_prices)
from mtrouter_nb.data.demo import load_demo
from mtrouter_nb.data.pool import ModelPool, demo_pool
from mtrouter_nb.data.turns import turn_costs
from mtrouter_nb.multi_turn.cascades import CascadeFamily
from mtrouter_nb.multi_turn.evaluation import Experiment, Results
from mtrouter_nb.multi_turn.offers import Offers
from mtrouter_nb.multi_turn.planning import Plan, all_plans, replay_plans
from mtrouter_nb.multi_turn.replay import DOUBLE, MATCHED, OPEN, ReplayWorld, budgeted
from mtrouter_nb.multi_turn.rollout import random_trajectories, roll
from mtrouter_nb.multi_turn.routers import QRouter, RandomRouter, RoundRobin, SingleModel, Stateless
from mtrouter_nb.multi_turn.trials import SMOKE, moves_of, splits

SHARE = 0.25
ROLE = dict(fold="all", parameter=np.nan, fit=0)


@pytest.fixture(scope="module")
def log():
    return load_demo().in_order()


@pytest.fixture(scope="module")
def cached(demo_world):
    return CachedWorld(demo_world, PromptCache.of(demo_world, SHARE))


def by_hand(log, share=SHARE, prices=None):
    "(episode, turn) -> (full, saved), token by token, from the raw tables."
    prices = demo_pool().table if prices is None else prices
    out = {}
    for _, episode in log.episodes.iterrows():
        turns = log.turns[log.turns["episode_id"] == episode["episode_id"]].sort_values("turn")
        price_in, price_out = prices.loc[episode["model"], ["input_usd_per_mtok", "output_usd_per_mtok"]]
        read = [n * episode["input_tokens"] / turns["input_tokens"].sum() for n in turns["input_tokens"]]
        wrote = [n * episode["output_tokens"] / turns["output_tokens"].sum() for n in turns["output_tokens"]]
        for k in range(len(turns)):
            known = min(read[k - 1] + wrote[k - 1], read[k]) if k else 0
            out[episode["episode_id"], k] = ((read[k] * price_in + wrote[k] * price_out) / 1e6,
                                             known * price_in * (1 - share) / 1e6)
    return out


def spent_by_hand(world, dollars, moves):
    "Dollars of one episode's (task, model, k) moves, one after the other; a cache is lost with the first other turn."
    names, total, before = world.pool.names, 0.0, None
    for task, model, k in moves:
        full, saved = dollars[f"{names[model]}|{task}", k]
        total += full - (saved if model == before else 0)
        before = model
    return total


# ---------------------------------------------------------------------------- dollars of turns

def test_dollars_of_every_turn_are_those_of_a_loop(log):
    usd, hand = cache_dollars(log, with_cached_prices(demo_pool(), SHARE)), by_hand(log)
    expected = [hand[e, k] for e, k in zip(log.turns["episode_id"], log.turns["turn"])]
    assert usd.to_numpy() == pytest.approx(np.array(expected), rel=1e-12)


def test_a_prompt_shorter_than_what_was_known_is_cached_whole_and_no_more(log):
    turns = log.turns.assign(input_tokens=np.where(log.turns["turn"] == 1, 3, log.turns["input_tokens"]))
    totals = turns.groupby("episode_id")["input_tokens"].sum()
    episodes = log.episodes.assign(input_tokens=log.episodes["episode_id"].map(totals))
    short = replace(log, turns=turns, episodes=episodes)
    prefix = prefix_tokens(short)
    assert np.allclose(prefix[turns["turn"] == 1], 3) and (prefix[turns["turn"] == 0] == 0).all()


def test_stated_prices_stay_and_the_others_are_assumed():
    pool = ModelPool(demo_pool().table.assign(**{CACHED: [4.0, np.nan, 0.0, np.nan]}))
    assert with_cached_prices(pool, 0.5).table[CACHED].tolist() == [4.0, 0.5, 0.0, 0.05]
    assert CACHED not in demo_pool().table, "the pool given is as it was"


def test_logged_cached_tokens_count_and_not_the_assumption(log):
    known = (log.turns["input_tokens"] // 3).where(log.turns.index % 2 == 0)
    measured, pool = replace(log, turns=log.turns.assign(cached_tokens=known)), with_cached_prices(demo_pool(), SHARE)
    usd, plain = cache_dollars(measured, pool), cache_dollars(log, pool)
    even, later = log.turns.index % 2 == 0, log.turns["turn"] > 0
    assert np.allclose(usd["full"][later], plain["full"][later])
    assert np.allclose((usd["full"] - usd["saved"])[even], turn_costs(measured, pool)[even])
    assert np.allclose(usd["saved"][~even], plain["saved"][~even]) and (usd["saved"][~later] == 0).all()
    assert np.allclose(usd["full"][~later], turn_costs(measured, pool)[~later]), "others' caches, which a newcomer has"


def test_a_bill_that_hides_its_discount_is_refused(log):
    bill = pd.Series(np.nan, log.turns.index)
    bill.iloc[5] = 0.02
    with pytest.raises(ValueError, match="log cached_tokens, 0 for none"):
        cache_dollars(replace(log, turns=log.turns.assign(cost_usd=bill)), with_cached_prices(demo_pool()))
    told = replace(log, turns=log.turns.assign(cost_usd=bill, cached_tokens=bill.where(bill.isna(), 0)))
    assert cache_dollars(told, with_cached_prices(demo_pool()))["full"].iloc[5] == 0.02


# ---------------------------------------------------------------------------- dollars of episodes

@pytest.mark.parametrize("router", [RandomRouter(), RoundRobin(), SingleModel(1, "middle-30b")], ids=lambda r: r.name)
def test_moves_counted_afterwards_and_moves_played_agree_with_a_loop(demo_world, cached, log, router):
    tasks, hand = np.arange(len(demo_world.tasks)), by_hand(log)
    moves = moves_of(demo_world, router, tasks, OPEN, 3, method="m", **ROLE)
    lost = saved_by_episode(demo_world, PromptCache.of(demo_world, SHARE), moves).set_index("task_id")["lost"]
    plain, paid = (roll(world, router, tasks, OPEN, 3).episodes.set_index("task_id")["cost_usd"]
                   for world in (demo_world, cached))
    for task, own in moves.groupby("task_id"):
        own = own.sort_values("turn")
        expected = spent_by_hand(demo_world, hand, zip(own["task_id"], own["model"], own["k"]))
        assert paid[task] == pytest.approx(expected) and plain[task] - lost[task] == pytest.approx(expected)


def test_a_kept_cache_serves_whoever_comes_back(demo_world, log):
    hand, tasks = by_hand(log), np.arange(len(demo_world.tasks))
    moves = moves_of(demo_world, RandomRouter(), tasks, DOUBLE, method="m", **ROLE)
    found = saved_by_episode(demo_world, PromptCache.of(demo_world, SHARE), moves).set_index("task_id")
    names = demo_world.pool.names
    for task, own in moves.groupby("task_id"):
        kept = sum(hand[f"{names[m]}|{task}", k][1] for m, k in zip(own["model"], own["k"]))
        assert found.loc[task, "kept"] == pytest.approx(kept) and found.loc[task, "lost"] <= kept + 1e-15


def test_a_budget_is_used_up_by_what_is_paid(cached, log):
    hand, tasks = by_hand(log), np.arange(len(cached.tasks))
    for limit in (0.004, 0.02):
        rolled = roll(cached, RandomRouter(), tasks, budgeted(limit), 1)
        for row, own in rolled.moves.groupby("row"):
            steps = [(cached.tasks["task_id"][row], m, k) for m, k in zip(own["model"], own["k"])]
            all_but_last, all_ = (spent_by_hand(cached, hand, part) for part in (steps[:-1], steps))
            assert all_but_last < limit and rolled.episodes["cost_usd"][row] == pytest.approx(all_)
            assert (all_ >= limit) == (rolled.episodes["reason"][row] == "budget") or (
                rolled.episodes["reason"][row] == "success")


def test_a_finished_model_cannot_act_and_says_so(cached):
    play = cached.play([0], OPEN)
    for _ in range(cached.length[0, 0]): play.step([0])
    if len(play.running):
        with pytest.raises(ValueError, match="no turn left"): play.step([0])


def test_cascades_are_priced_as_they_are_played(cached):
    tasks, stretch = np.arange(len(cached.tasks)), in_one_stretch(cached)
    for rights in (MATCHED, OPEN):
        family = CascadeFamily.of(stretch, rights)
        for row in np.random.default_rng(0).choice(len(family.orders), 25, replace=False):
            episodes = roll(cached, family.router(row), tasks, rights).episodes
            assert episodes["cost_usd"].to_numpy() == pytest.approx(family.cost[row])
            assert episodes["score"].to_numpy() == pytest.approx(family.score[row])


# ---------------------------------------------------------------------------- plans from the middle

class Follows(Stateless):
    "Plays `plan` from here on: a model is left when it can act no more, or, if so ruled, at its next proposal."
    name = "plan"

    def __init__(self, plan, since):
        self.plan, self.since, self.at = plan, since, 0

    def choose(self, view):
        order = self.plan.order
        while self.at < len(order):
            model, last = order[self.at], self.at == len(order) - 1
            rejected = view.proposals[0, model] > self.since[model]
            if view.available[0, model] and (last or self.plan.rule == "end" or not rejected): return np.array([model])
            self.at += 1
        return np.array([-1])


def test_plans_from_the_middle_are_priced_as_they_are_played(cached):
    plans, rng, checked = all_plans(len(cached.pool), 3), np.random.default_rng(4), 0
    for _ in range(40):
        task, steps = int(rng.integers(len(cached.tasks))), int(rng.integers(0, 5))
        plan = plans[int(rng.integers(len(plans)))]
        play = cached.play([task], DOUBLE)
        for _ in range(steps):
            if len(play.running): play.step([rng.choice(np.flatnonzero(play.view().available[0]))])
        if not len(play.running): continue
        before, current = play.spent[0], play.current.copy()
        there = play.turns.copy(), play.turns_left.copy(), play.proposals_left.copy()
        router = Follows(plan, play.proposals[0].copy())
        while len(play.running): play.step(router.choose(play.view()))
        score, cost = replay_cached_plans(cached, [plan], np.array([task]), current, *there)
        assert cost[0, 0] == pytest.approx(play.spent[0] - before, abs=1e-7)
        assert score[0, 0] == pytest.approx(replay_plans(cached, [plan], np.array([task]), *there)[0][0, 0])
        checked += 1
    assert checked > 20


def test_the_acting_model_loses_its_cache_to_whoever_comes_first(cached):
    task = np.array([int(np.flatnonzero((cached.length[:, 0] > 2) & (cached.length[:, 1] > 1))[0])])
    turns = np.eye(len(cached.pool), dtype=int)[[0]]
    left = turns, np.array([4]), np.array([1_000])
    plans = [Plan((0,)), Plan((1, 0)), Plan((1,))]
    _, here = replay_cached_plans(cached, plans, task, np.array([0]), *left)
    _, gone = replay_cached_plans(cached, plans, task, np.array([1]), *left)
    assert gone[0, 0] - here[0, 0] == pytest.approx(cached.saved[task[0], 0, 1], rel=1e-4)
    assert here[0, 1] == pytest.approx(gone[0, 1]) and here[0, 2] == pytest.approx(gone[0, 2]), "1 starts its own run"


def test_without_a_discount_plans_and_planners_are_the_protocols(demo_world):
    free = CachedWorld(demo_world, PromptCache.of(demo_world, 1.0))
    plans, n = all_plans(4, 2), len(demo_world.tasks)
    left = np.zeros((n, 4), int), np.full(n, 5), np.full(n, 2)
    ours = replay_cached_plans(free, plans, np.arange(n), np.full(n, -1), *left)
    for a, b in zip(ours, replay_plans(demo_world, plans, np.arange(n), *left)): assert np.allclose(a, b, atol=1e-7)


# ---------------------------------------------------------------------------- what routers learn and are told

def test_dollars_to_come_are_those_of_a_loop(demo_world, cached, log):
    hand = by_hand(log)
    for part in (demo_world.log, random_trajectories(demo_world, np.arange(40), OPEN, 2, 5)):
        table, to_come = [], {True: [], False: []}
        for _, episode in part.in_order().turns.groupby("episode_id", sort=False):
            k, usd, before = {}, [], None
            for task, model in zip(episode["task_id"], episode["model"]):
                k[model] = k.get(model, -1) + 1
                full, saved = hand[f"{model}|{task}", k[model]]
                usd.append((full, full - (saved if model == before else 0)))
                before = model
            table += usd
            for sees in to_come:
                to_come[sees] += [usd[i][0] + sum(u[sees] for u in usd[i + 1:]) for i in range(len(usd))]
        assert turn_dollars(cached, part).to_numpy() == pytest.approx(np.array(table))
        for sees, expected in to_come.items():
            assert newcomer_dollars(cached, part, sees) == pytest.approx(np.array(expected))


class Priced:
    "Scores and dollars (n, M) that are told."

    def __init__(self, score, usd): self.values = score, usd

    def predict(self, x): return self.values


def test_a_router_that_sees_it_stays_for_less_than_the_saving_and_no_longer(cached):
    tasks = np.flatnonzero(cached.length.min(1) > 1)
    play = cached.play(tasks, OPEN)
    play.step(np.full(len(tasks), 2))
    rows = play.running
    saved = cached.saved[tasks[rows], 2, 1]
    for more, stays in ((0.5, True), (1.5, False)):
        usd = np.tile(0.01, (len(rows), 4))
        usd[:, 2] += more * saved
        router = SeesCache(QRouter(Priced(np.zeros_like(usd), usd), 1.0))
        router.start(len(tasks), 0)
        assert ((router.choose(play.view()) == 2) == stays).all()
        assert (router.router.choose(play.view()) != 2).all(), "who does not see it goes to the cheaper one"


def test_a_router_is_told_what_its_next_turn_saves_and_nothing_of_others(cached):
    tasks = np.arange(len(cached.tasks))
    play = cached.play(tasks, OPEN)
    assert (play.view().saved == 0).all(), "nobody has acted"
    play.step(np.full(len(tasks), 1))
    view = play.view()
    able = cached.length[tasks[view.row], 1] > 1
    assert (view.saved[:, [0, 2, 3]] == 0).all() and (view.saved[~able] == 0).all()
    assert view.saved[able, 1] == pytest.approx(cached.saved[tasks[view.row][able], 1, 1])


# ---------------------------------------------------------------------------- order and inputs

def test_rows_and_models_in_another_order_have_the_same_dollars(demo_world):
    log, rng = demo_world.log, np.random.default_rng(2)
    mixed = replace(log, turns=log.turns.iloc[rng.permutation(len(log.turns))],
                    episodes=log.episodes.iloc[rng.permutation(len(log.episodes))])
    order = np.array([2, 0, 3, 1])
    other = ReplayWorld(mixed, demo_pool().subset([demo_pool().names[i] for i in order]), demo_world.encoder)
    a, b = (PromptCache.of(world, SHARE) for world in (demo_world, other))
    for name in ("full", "saved"): assert np.allclose(getattr(a, name)[:, order], getattr(b, name))
    moves = moves_of(demo_world, RandomRouter(), np.arange(60), OPEN, method="m", **ROLE)
    copy = moves.copy()
    usd, shuffled = (saved_by_episode(demo_world, a, m).set_index("task_id").sort_index()[["lost", "kept"]]
                     for m in (moves, moves.sample(frac=1, random_state=0)))
    pd.testing.assert_frame_equal(usd, shuffled)
    pd.testing.assert_frame_equal(moves, copy)


def test_a_world_with_a_cache_leaves_the_world_it_was_made_of(demo_world):
    before = demo_world.cost.copy()
    cached = CachedWorld(demo_world, PromptCache.of(demo_world, 0.0))
    stretch = in_one_stretch(cached)
    roll(cached, RoundRobin(), np.arange(10), OPEN)
    assert np.array_equal(demo_world.cost, before) and np.array_equal(cached.cost, before)
    assert stretch.cost.sum() < before.sum() and not hasattr(demo_world, "saved")


# ---------------------------------------------------------------------------- comparisons

def accounted(world, routers, share=SHARE, rights=OPEN):
    "Rows and moves of several routers, by name and seed."
    tasks, rows, moves = np.arange(len(world.tasks)), [], []
    for name, seeds in routers.items():
        for fit, router in enumerate(seeds):
            role = dict(method=name, fold="all", parameter=np.nan, fit=fit)
            rows.append(roll(world, router, tasks, rights, fit).episodes.assign(rights=rights.name, group="x", **role))
            moves.append(moves_of(world, router, tasks, rights, fit, **role))
    rows, moves = pd.concat(rows), pd.concat(moves)
    return rows, saved_by_episode(world, PromptCache.of(world, share), moves)


def test_fits_stay_apart_where_rows_tell_them_apart_and_are_averaged_where_not(demo_world):
    rows, saved = accounted(demo_world, {"Random": [RandomRouter()] * 3, "one": [SingleModel(0, "one")]})
    apart = with_cache(rows, saved)
    numbers = ["score", "cost_usd", "switches"]
    keys = ["method", "rights", "fold", "parameter", "task_id"]
    mean = rows.groupby(keys, dropna=False)[numbers].mean().reset_index()
    together = with_cache(mean.assign(fit=0, group="x"), saved)
    assert len(apart) == 4 * len(demo_world.tasks) and len(together) == 2 * len(demo_world.tasks)
    for column in ("cost_usd", "cached_usd", "kept_usd"):
        assert together.groupby("method")[column].mean().to_numpy() == pytest.approx(
            apart.groupby("method")[column].mean().to_numpy())


def test_an_episode_in_which_nobody_acts_saves_nothing(demo_world):
    rows, saved = accounted(demo_world, {"one": [SingleModel(0, "one")]})
    gone = saved["task_id"].iloc[0]
    joined = with_cache(rows, saved[saved["task_id"] != gone]).set_index("task_id")
    assert joined.loc[gone, "cached_usd"] == joined.loc[gone, "cost_usd"] and len(joined) == len(rows)


def test_the_even_share_is_where_both_cost_the_same(demo_world):
    routers = {"Random": [RandomRouter()], "one": [SingleModel(0, "one")]}
    rows = with_cache(*accounted(demo_world, routers))
    ours, other = (rows[rows["method"] == name] for name in routers)
    even = even_share(ours, other, SHARE)
    assert 0 < even < 1
    again = with_cache(*accounted(demo_world, routers, even)).groupby("method")["cached_usd"].mean()
    assert again["Random"] == pytest.approx(again["one"])
    assert np.isnan(even_share(other, other, SHARE))


def test_a_comparison_is_paired_and_turns_where_sides_change(demo_world):
    routers = {"Round-robin": [RoundRobin()], "one": [SingleModel(0, "one")]}
    rows = with_cache(*accounted(demo_world, routers, 0.0))
    ours, other = (rows[rows["method"] == name] for name in routers)
    found = against(ours, other)
    for name, column in (("without", "cost_usd"), ("with", "cached_usd")):
        assert found[name] == pytest.approx(ours[column].mean() / other[column].mean() - 1)
        assert found[f"side_{name}"] == side_of(found[f"{name}_low"], found[f"{name}_high"])
    assert found["turned"] and found["change"] == pytest.approx(found["with"] - found["without"])
    table = cache_table(rows, other).set_index("method")
    assert table.loc["Round-robin", "discount"] == 0 < table.loc["one", "discount"]
    assert [side_of(-2, -1), side_of(1, 2), side_of(-1, 1)] == ["less", "more", "unclear"]


def test_intervals_of_shares_are_those_of_resampled_ratios(demo_world):
    routers = {"Random": [RandomRouter()], "one": [SingleModel(1, "one")]}
    rows = with_cache(*accounted(demo_world, routers))
    ours, other = (rows[rows["method"] == name].set_index("task_id") for name in routers)
    found, n = against(ours.reset_index(), other.reset_index()), len(ours)
    drawn = np.random.default_rng(9).multinomial(n, np.full(n, 1 / n), 4000)
    shares = {}
    for name, column in (("without", "cost_usd"), ("with", "cached_usd")):
        shares[name] = (drawn @ ours[column]) / (drawn @ other[column].reindex(ours.index)) - 1
    shares["change"] = shares["with"] - shares["without"]
    for name, sampled in shares.items():
        width = found[f"{name}_high"] - found[f"{name}_low"]
        ends = np.percentile(sampled, [2.5, 97.5])
        assert [found[f"{name}_low"], found[f"{name}_high"]] == pytest.approx(ends, abs=.12 * width), name


def test_the_best_single_model_is_that_of_the_training_tasks(demo_world):
    names = demo_world.pool.names
    rows = with_cache(*accounted(demo_world, {n: [SingleModel(m, n)] for m, n in enumerate(names)}))
    best = best_alone(Experiment(demo_world, SMOKE, Results(*[pd.DataFrame()] * 5)), rows)
    score = pd.DataFrame(demo_world.score, demo_world.tasks["task_id"], names)
    for split in splits(demo_world.tasks, SMOKE.folds, SMOKE.seed):
        if split.kind == "test":
            own = best[best["fold"] == split.name].set_index("task_id")
            chosen = score.loc[list(split.train)].mean().idxmax()
            assert set(own.index) == set(split.test) and own["chosen"].unique().tolist() == [chosen]
            assert own["score"].to_numpy() == pytest.approx(score.loc[own.index, chosen].to_numpy())
    assert best["method"].unique().tolist() == [BEST]


def test_moves_go_on_within_an_episode_only():
    moves = pd.DataFrame(dict(episode=["a", "a", "a", "b", "b"], model=[1, 1, 2, 2, 2]))
    assert goes_on(moves, ["episode"]).tolist() == [False, True, False, False, True]


# ---------------------------------------------------------------------------- equal score, and net of the router

def test_equal_score_takes_the_cheapest_that_reaches_and_else_keeps_the_model():
    tasks = pd.DataFrame(dict(task_id=["a", "b"]))
    offers = Offers("f", [("v", 0.0), ("v", 1.0), ("v", 2.0)], np.array([.9, .7, .5]), np.array([9., 5., 1.]),
                    np.arange(6.).reshape(3, 2), np.arange(6.).reshape(3, 2) / 10)
    singles = Offers("s", [("x", np.nan), ("y", np.nan)], np.array([.6, .4]), np.array([8., 1.]),
                     np.ones((2, 2)), np.array([[8., 9.], [1., 1.]]))
    assert [cheapest_reaching(offers, s) for s in (.5, .6, .71, .95)] == [2, 1, 0, None]
    rows = reached_rows(offers, singles, tasks, np.full((3, 2), 4))
    assert rows["cost_usd"].tolist() == [.2, .3] and rows["other"].tolist() == ["x", "x"] and rows["reached"].all()
    kept = reached_rows(offers, replace(singles, held_score=np.array([.95, .4])), tasks, np.full((3, 2), 4))
    assert kept["cost_usd"].tolist() == [8, 9] and (kept["router_turns"] == 0).all() and not kept["reached"].any()


def test_logs_are_paid_back_by_what_is_saved_net_and_never_where_nothing_is():
    n = 50
    rows = pd.DataFrame(dict(prices="with", rights="matched", family="f", task_id=range(n), score=1.0, other_score=1.0,
                             cost_usd=.02, other_cost=np.linspace(.03, .05, n), router_turns=3, reached=True))
    dear = rows.assign(family="g", cost_usd=.06)
    net = net_savings(pd.concat([rows, dear]), seconds=12.0, usd_per_hour=3.0)
    assert net["net"].tolist() == pytest.approx([.04 - .02 - 3 * 12 * 3 / 3600, .04 - .06 - .03])
    usd = pd.DataFrame(dict(logs=COUNTED, prices=["with", "with", "without"], fold=["0", "1", "0"], usd=[5., 7., 99.]))
    back = payback(net.assign(net=[.01, -.05], net_low=[-.001, -.06], net_high=[.02, -.04]), usd)
    assert back["episodes"].tolist() == pytest.approx([600, np.nan], nan_ok=True)
    assert back["episodes_low"].tolist() == pytest.approx([300, np.nan], nan_ok=True)
    assert back["episodes_high"].isna().all(), "at the lower end nothing is saved"


def test_logs_cost_what_their_turns_cost(demo_world, log):
    split, hand = splits(demo_world.tasks, SMOKE.folds, SMOKE.seed)[0], by_hand(log)
    usd = collected(demo_world, split, SMOKE, SHARE).set_index(["logs", "prices"])["usd"]
    own = [v for (episode, _), v in hand.items() if episode.split("|")[1] in split.train]
    assert usd[READ, "without"] == pytest.approx(sum(full for full, _ in own))
    assert usd[READ, "with"] == pytest.approx(sum(full - saved for full, saved in own))
    assert usd[COUNTED, "with"] < usd[COUNTED, "without"]


def test_gains_of_seeing_are_paired_differences():
    n, rng = 30, np.random.default_rng(0)
    rows = pd.DataFrame(dict(rights="open", method="m", parameter=2.0, task_id=[f"t{i}" for i in range(n)] * 2,
                             fold="0", sees=[True] * n + [False] * n, score=rng.random(2 * n),
                             cost_usd=rng.random(2 * n), switches=rng.integers(0, 4, 2 * n)))
    one = seeing_gains(rows, [2.0]).iloc[0]
    a, b = rows[rows["sees"]], rows[~rows["sees"]]
    worth = [(part["score"] - 2 * part["cost_usd"]).mean() for part in (a, b)]
    assert one["value"] == pytest.approx(worth[0] - worth[1])
    assert one["usd"] == pytest.approx(a["cost_usd"].mean() / b["cost_usd"].mean() - 1)
    assert one["value_low"] < one["value"] < one["value_high"]


def test_a_split_end_to_end(demo_world):
    few = replace(SMOKE, cost_weights=(0.0, 16.0))
    split = splits(demo_world.tasks, few.folds, few.seed)[0]
    piece = planned_rows(demo_world, split, MATCHED, few, 0, SHARE)
    reached = piece["reached"]
    assert {SEES, BLIND} < set(piece["chosen"]["family"])
    assert reached.groupby(["prices", "family"])["task_id"].nunique().eq(len(split.test)).all()
    at_0 = piece["chosen"].query("budget == budget.max() and chosen_by == 'training tasks'")
    assert at_0["score"].notna().all()
