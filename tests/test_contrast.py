"""The contrast against slow choices, known statistics, and worlds in which its answer is known."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import linprog

import mtrouter_nb.analyses.contrast as contrast
from mtrouter_nb.analyses.contrast import (CASCADES, SINGLES, cascade_offers,
                                           contrast_table, doubted, frontier, per_task, permuted_histories,
                                           repriced, run_contrast, shuffled_models, waterfall)
from mtrouter_nb.multi_turn.contenders import COMMITTED, PLANS
from mtrouter_nb.multi_turn.offers import Offers, committed_offers, plan_offers, single_offers
from mtrouter_nb.data.pool import demo_pool
from mtrouter_nb.data.turns import TurnLog, with_feedback
from mtrouter_nb.multi_turn.cascades import PULLS, Cascade, CascadeFamily
from mtrouter_nb.multi_turn.evaluation import Experiment
from mtrouter_nb.multi_turn.trials import SMOKE, EvaluationConfig, splits
from mtrouter_nb.multi_turn.planning import PlannerConfig, fit_planners, parts_of
from mtrouter_nb.multi_turn.replay import DOUBLE, MATCHED, ReplayWorld
from mtrouter_nb.multi_turn.rollout import roll
from mtrouter_nb.multi_turn.history import HistoryEncoder
from mtrouter_nb.multi_turn.routers import SingleModel

QUICK = replace(SMOKE, task_budgets=tuple(np.geomspace(0.0008, 0.155, 4)))
TABLES = ("base_row", "cost", "proposed", "length", "score", "success", "error", "seen_usd", "call_bound", "absent")


@pytest.fixture(scope="module")
def split(demo_world):
    "Row numbers of training tasks, their parts, test tasks, and planners fitted for double rights."
    first = splits(demo_world.tasks, 3, 0)[0]
    train, test = (demo_world.task_index[list(ids)].to_numpy() for ids in (first.train, first.test))
    planners = fit_planners(demo_world, train, DOUBLE, QUICK.planner)
    return first, train, parts_of(demo_world, train, 0), test, planners


# ---------------------------------------------------------------------------- choosing a setting

def linear_program(score, cost, budget) -> float:
    "Score of the best mixture of all settings within the budget."
    found = linprog(-score, A_ub=cost[None], b_ub=[budget], A_eq=np.ones((1, len(score))), b_eq=[1])
    return -found.fun if found.success else score[cost.argmin()]


def test_the_chosen_mixture_is_the_best_of_all_mixtures_within_the_budget():
    rng = np.random.default_rng(0)
    for _ in range(30):
        k, n = 12, 20
        offers = Offers("x", [("a", i) for i in range(k)], rng.random(k).round(1), rng.random(k), rng.random((k, n)),
                        rng.random((k, n)))
        for (score, cost), chosen in (((offers.held_score, offers.held_cost), offers.chosen),
                                      ((offers.score.mean(1), offers.cost.mean(1)), offers.seen_best)):
            budgets = [0.01, 0.2, 0.5, 2.0]
            for budget, first, second, share in zip(budgets, *chosen(budgets)):
                assert 0 <= share <= 1
                assert (1 - share) * score[first] + share * score[second] == pytest.approx(
                    linear_program(score, cost, budget))
                spent = (1 - share) * cost[first] + share * cost[second]
                assert spent <= budget + 1e-9 or (first == second == cost.argmin())


def test_the_bound_is_never_worse_than_a_choice_within_the_budget(demo_world, split):
    _, train, part, test, planners = split
    offers = plan_offers(demo_world, planners, train, part, test, DOUBLE, QUICK.cost_weights)[0]
    budgets = np.geomspace(1e-4, 0.2, 30)
    score, cost = offers.score.mean(1), offers.cost.mean(1)
    for budget, ours, bound in zip(budgets, zip(*offers.chosen(budgets)), zip(*offers.seen_best(budgets))):
        reached, spent, best = ((1 - share) * v[i] + share * v[j] for v, (i, j, share) in
                                ((score, ours), (cost, ours), (score, bound)))
        if spent <= budget:
            assert best >= reached - 1e-12


# ---------------------------------------------------------------------------- offers

def slow_cascade(value, cost, rows, tasks, group, wanted, pull):
    """The cascade of the best mean value on the `wanted` group of `tasks`, pulled towards the mean of all of them; of
    equals the cheapest by such a mean."""
    mine = tasks[group[tasks] == wanted]
    mean, usd = ([(v[i, mine].sum() + pull * v[i, tasks].mean()) / (len(mine) + pull) for i in rows]
                 for v in (value, cost))
    return rows[min(range(len(rows)), key=lambda i: (round(max(mean) - mean[i], 9), round(usd[i], 12)))]


def test_cascades_are_chosen_without_the_part_that_scores_them(demo_world, split):
    _, train, part, test, _ = split
    family = CascadeFamily.of(demo_world, DOUBLE)
    offers = cascade_offers(demo_world, family, train, part, test, QUICK.cost_weights)
    domain = demo_world.tasks["domain"].to_numpy()
    for k, (variant, cost_weight) in enumerate(offers.settings):
        value = family.score - cost_weight * family.cost
        rows = [i for i, rule in enumerate(family.rules) if variant != "simple" or rule == "end"]
        fits = []
        for pull in PULLS if variant == "per domain" else (1.0,):
            group = domain if variant == "per domain" else np.full(len(domain), "all")
            cells = {(p, d): slow_cascade(value, family.cost, rows, seen, group, d, pull) for d in np.unique(group)
                     for p, seen in [(None, train), *((p, train[part != p]) for p in range(5))]}
            held, on_test = [cells[p, group[t]] for p, t in zip(part, train)], [cells[None, group[t]] for t in test]
            fits.append(np.isclose(family.score[held, train].mean(), offers.held_score[k])
                        and np.isclose(family.cost[held, train].mean(), offers.held_cost[k])
                        and np.array_equal(family.score[on_test, test], offers.score[k]))
        assert any(fits), (variant, cost_weight)


def test_single_models_and_kept_plans_are_what_the_world_plays(demo_world, split):
    _, train, part, test, planners = split
    alone = single_offers(demo_world, train, test, DOUBLE)
    for m, (name, _) in enumerate(alone.settings):
        played = roll(demo_world, SingleModel(m, name), test, DOUBLE).episodes
        assert np.array_equal(alone.score[m], played["score"]) and np.allclose(alone.cost[m], played["cost_usd"])
    kept = committed_offers(demo_world, planners, train, part, test, DOUBLE, (1.0,))
    view = demo_world.play(test, DOUBLE).view()
    for k, (name, cost_weight) in enumerate(kept.settings):
        score, cost = planners[name].predict(view, np.full(len(test), -1))
        for i, value in enumerate(score - cost_weight * cost):
            plan = planners[name].plans[value.argmax()]
            played = roll(demo_world, Cascade(plan.order, plan.rule), test[i:i + 1], DOUBLE).episodes
            expected = (played["score"][0], played["cost_usd"][0]) if value.max() > 0 else (0, 0)
            assert (kept.score[k, i], kept.cost[k, i]) == pytest.approx(expected, abs=1e-7)


def mixed_up(world, rows, seed=0):
    "The world whose tasks `rows` have each other's runs; prompts stay."
    out, order = copy.copy(world), np.arange(len(world.tasks))
    order[rows] = np.random.default_rng(seed).permutation(rows)
    for name in TABLES:
        setattr(out, name, getattr(world, name)[order])
    return out


def test_the_outcomes_of_test_tasks_change_no_choice(demo_world, split):
    first, _, _, test, _ = split
    one, two = (run_contrast(w, first, MATCHED, QUICK, 0) for w in (demo_world, mixed_up(demo_world, test)))
    made = [r.query("chosen_by == 'training tasks'") for r in (one, two)]
    columns = ["family", "budget", "variant", "parameter", "task_id"]
    pd.testing.assert_frame_equal(made[0][columns], made[1][columns])
    assert not np.array_equal(made[0]["score"], made[1]["score"])


# ---------------------------------------------------------------------------- worlds whose truth is planted

class Vectors(HistoryEncoder):
    "Stands in for a text encoder: which number the prompt holds, with a little noise."
    fingerprint = "vectors"

    def __init__(self): pass

    def start(self, prompts):
        kind = np.eye(6)[prompts.str.extract(r"(\d+)")[0].astype(int)]
        task = kind + np.random.default_rng(0).normal(0, 0.1, kind.shape)
        return np.hstack([task, np.zeros((len(task), 12))]).astype("f4")

    def after(self, log):
        out = np.random.default_rng(1).normal(size=(len(log.turns), 18)).astype("f4")
        out[:, :6] = self.start(log.tasks["prompt"])[log.tasks.set_index("task_id").index.get_indexer(
            log.turns["task_id"])][:, :6]
        out[log.turns["feedback"].isna().to_numpy()] = np.nan
        return out


def invented(success, kinds, tries=2) -> ReplayWorld:
    "A world of runs of `tries` proposals (one where right): `success` (n, 4) bool, a number per task in its prompt."
    pool, turns, episodes = demo_pool(), [], []
    tasks = pd.DataFrame(dict(task_id=[f"t{i:03d}" for i in range(len(kinds))], domain="one", category="invented",
                              prompt=[f"kind {k}, task {i}" for i, k in enumerate(kinds)]))
    for task, row in zip(tasks["task_id"], success):
        for model, right in zip(pool.names, row):
            n, keys = 1 if right else tries, dict(episode_id=f"{model}|{task}", task_id=task, model=model)
            turns += [keys | dict(turn=k, observation="?", action="<solution>1</solution>", attempt=0,
                                  input_tokens=1000, output_tokens=1000) for k in range(n)]
            episodes.append(keys | dict(success=bool(right), score=float(right), terminate_reason="end", n_turns=n,
                                        n_proposals=n, tokens_estimated=False, input_tokens=1000 * n,
                                        output_tokens=1000 * n))
    turns, episodes = pd.DataFrame(turns), pd.DataFrame(episodes)
    log = TurnLog(tasks, episodes, with_feedback(turns, episodes), "simulated").validate()
    return ReplayWorld(log, pool, Vectors())


def test_where_the_prompt_says_who_is_right_no_cascade_comes_near():
    kinds = np.random.default_rng(0).integers(0, 4, 160)
    world = invented(kinds[:, None] == np.arange(4), kinds)
    train, test = np.arange(100), np.arange(100, 160)
    planners = fit_planners(world, train, MATCHED, PlannerConfig(longest=2, runs=2, trees=5))
    offers = plan_offers(world, planners, train, parts_of(world, train, 0), test, MATCHED, (0.1,))[0]
    family = CascadeFamily.of(world, MATCHED)
    for name, score, cost in zip(planners, offers.score.mean(1), offers.cost.mean(1)):
        affordable = family.cost[:, test].mean(1) <= cost
        assert score > 0.9 and score > family.score[affordable][:, test].mean(1).max() + 0.3, name
    assert (offers.held_score > 0.9).all(), "and held-out members know it too"


def nothing_to_read(seed) -> ReplayWorld:
    "Who is right is drawn by model alone, and prompts are noise: the best that can be done is a cascade."
    rng = np.random.default_rng(seed)
    return invented(rng.random((240, 4)) < [0.75, 0.6, 0.5, 0.3], rng.integers(0, 6, 240), tries=1)


def test_where_there_is_nothing_to_read_no_cost_weight_makes_it_better_than_a_cascade():
    "At each cost weight, score - cost_weight * dollars on test tasks, against the cascade that training tasks choose."
    differences = []
    for seed in range(3):
        world, train, test = nothing_to_read(seed), np.arange(120), np.arange(120, 240)
        planners = fit_planners(world, train, DOUBLE, PlannerConfig(runs=2, trees=5))
        args = train, parts_of(world, train, 0), test
        ours = plan_offers(world, planners, *args, DOUBLE, (1.0, 8.0, 64.0))[0]
        theirs = cascade_offers(world, CascadeFamily.of(world, DOUBLE), *args, (1.0, 8.0, 64.0))
        cost_weight = np.array([w for _, w in ours.settings])[:, None]
        gain = ours.score - theirs.score - cost_weight * (ours.cost - theirs.cost)
        differences.append(gain.mean(0))  # over variants and cost weights: one number per task
    gain = np.concatenate(differences)
    assert gain.mean() < 2.6 * stats.sem(gain)


def test_where_there_is_nothing_to_read_the_contrast_is_none():
    "Choosing task by task spends a budget evenly; that alone must not count as better than a cascade."
    config = EvaluationConfig(task_budgets=tuple(np.geomspace(0.0003, 0.045, 15)),
                              planner=PlannerConfig(runs=2, trees=5))
    chosen = [run_contrast(world, split, DOUBLE, config, 0).assign(world=str(seed), seed=0)
              for seed, world in [(seed, nothing_to_read(seed)) for seed in (2, 3, 4)]
              for split in splits(world.tasks, 3, 0) if split.kind == "test"]
    table = contrast_table(pd.concat(chosen, ignore_index=True))
    assert (table["low"] <= 0).all()


# ---------------------------------------------------------------------------- control worlds

@pytest.fixture()
def frozen(demo_world):
    "The demo world, and a check that nothing of it has changed."
    before = {name: getattr(demo_world, name).copy() for name in TABLES} | {"states": copy.deepcopy(demo_world.states)}
    yield demo_world
    for name in TABLES:
        assert np.array_equal(getattr(demo_world, name), before[name], equal_nan=name == "score"), name
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(demo_world.states, before["states"]))


CHANGES = {"permuted": lambda w, train: permuted_histories(w, train, 0),
           "shuffled": lambda w, train: shuffled_models(w, train, 0), "repriced": lambda w, train: repriced(w, 0.5),
           "doubted": lambda w, train: doubted(w, 0.2, 0)}


@pytest.mark.parametrize("name", CHANGES)
def test_every_changed_world_can_be_contrasted(frozen, split, name):
    "No state that a router meets is missing there; the original world stays as it was."
    changed = CHANGES[name](frozen, split[1])
    chosen = run_contrast(changed, split[0], DOUBLE, QUICK, 0)
    assert chosen[["score", "cost_usd"]].notna().to_numpy().all()


def test_shuffled_models_swap_whole_runs_on_training_tasks_only(frozen, split):
    _, train, _, test, _ = split
    changed = shuffled_models(frozen, train, 3)
    assert all(np.array_equal(getattr(changed, n)[test], getattr(frozen, n)[test]) for n in TABLES)
    for t in train[:20]:
        taken = [int(np.flatnonzero((frozen.base_row[t] == run).all(1))[0]) for run in changed.base_row[t]]
        assert sorted(taken) == list(range(4))
        assert all(np.array_equal(getattr(changed, n)[t], getattr(frozen, n)[t][taken]) for n in TABLES)


def test_the_dearest_model_alone_is_repriced(frozen):
    changed, names = repriced(frozen, 2.0), frozen.pool.names
    dearest = names.index("grand-120b")
    others = [m for m in range(4) if m != dearest]
    assert np.allclose(changed.cost[:, dearest], 2 * frozen.cost[:, dearest])
    assert np.array_equal(changed.cost[:, others], frozen.cost[:, others])


def test_a_doubted_right_answer_is_wrong_and_nothing_else_changes(frozen):
    changed = doubted(frozen, 0.2, 0)
    lost = frozen.success & ~changed.success
    assert 0.1 < lost.sum() / frozen.success.sum() < 0.3 and not (changed.success & ~frozen.success).any()
    assert (changed.score[lost] == 0).all() and np.array_equal(changed.score[~lost], frozen.score[~lost])
    assert np.array_equal(changed.cost, frozen.cost) and np.array_equal(changed.length, frozen.length)
    assert np.array_equal(doubted(frozen, 0.1, 0).success, doubted(frozen, 0.1, 0).success)


def test_a_log_that_lacks_runs_can_be_contrasted_and_is_scored_where_it_is_whole(demo_world):
    "Tasks without every model's run are neither learned from nor scored: what they lack is not a zero."
    log = demo_world.log
    gone = log.episodes["episode_id"].iloc[::37]
    partial = TurnLog(log.tasks, log.episodes[~log.episodes["episode_id"].isin(gone)],
                      log.turns[~log.turns["episode_id"].isin(gone)], log.evidence, log.source, log.rules)
    world = ReplayWorld(partial, demo_world.pool, demo_world.encoder)
    whole = set(world.tasks["task_id"][~world.absent.any(1)])
    assert 0 < len(whole) < len(world.tasks)
    chosen = run_contrast(world, splits(world.tasks, 3, 0)[0], MATCHED, QUICK, 0)
    assert set(chosen["task_id"]) <= whole


def test_stored_pieces_are_not_computed_again(demo_world, tmp_path, monkeypatch):
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))
    monkeypatch.setattr(contrast, "RIGHTS", (MATCHED,))
    run, args = Experiment(demo_world, SMOKE, None), dict(seeds=(1,), workers=1, progress=False)
    one = contrast.contrast_results(run, **args)
    monkeypatch.setattr(contrast, "run_contrast", None)
    two = contrast.contrast_results(run, **args)
    assert set(one["task_id"]) == set(demo_world.tasks["task_id"]) and one["fold"].nunique() == SMOKE.folds
    pd.testing.assert_frame_equal(one, two)


# ---------------------------------------------------------------------------- statistics

@pytest.fixture(scope="module")
def chosen():
    "Made-up choices: 2 worlds x 3 rights x 4 families x 2 seeds x 3 budgets x 60 tasks."
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [["w", "v"], ["matched", "double", "open"], [SINGLES, CASCADES, COMMITTED, PLANS], [0, 1], [.01, .02, .03],
         np.arange(60)], names=["world", "rights", "family", "seed", "budget", "task_id"])
    rows = index.to_frame(index=False).sample(frac=1, random_state=0, ignore_index=True)
    return rows.assign(score=(rng.random(len(rows)) < 0.6 + 0.1 * (rows["family"] == PLANS)).astype(float),
                       cost_usd=rng.random(len(rows)), chosen_by="training tasks")


def test_the_contrast_is_a_paired_mean_with_its_bootstrap_interval(chosen):
    table = contrast_table(chosen).set_index(["world", "rights"])
    for (world, rights), line in table.iterrows():
        mine = chosen[(chosen["world"] == world) & (chosen["rights"] == rights)]
        ours, theirs = (np.array([mine[(mine["family"] == f) & (mine["task_id"] == t)]["score"].mean()
                                  for t in range(60)]) for f in (PLANS, CASCADES))
        d = ours - theirs
        assert line["difference"] == pytest.approx(d.mean()) and line["n"] == 60
        assert line["score"] == pytest.approx(ours.mean()) and line["other_score"] == pytest.approx(theirs.mean())
        assert line["p"] == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
        interval = stats.bootstrap((d,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
        assert (line["low"], line["high"]) == pytest.approx((interval.low, interval.high), abs=0.15 * stats.sem(d))
        assert line["smallest"] == pytest.approx((1.959964 + 0.841621) * stats.sem(d), rel=1e-5)


def test_the_steps_of_the_waterfall_add_up(chosen):
    steps = waterfall(chosen, (SINGLES, CASCADES, COMMITTED, PLANS)).groupby(["world", "rights"])["difference"].sum()
    whole = contrast_table(chosen, PLANS, SINGLES).set_index(["world", "rights"])["difference"]
    assert np.allclose(steps, whole.reindex(steps.index))


def test_the_frontier_is_the_mean_over_tasks_and_seeds(chosen):
    for line in frontier(chosen).sample(10, random_state=0).itertuples():
        mine = chosen[(chosen["world"] == line.world) & (chosen["rights"] == line.rights)
                      & (chosen["family"] == line.family) & (chosen["budget"] == line.budget)]
        assert line.score == pytest.approx(mine["score"].mean())
        assert line.cost_usd == pytest.approx(mine["cost_usd"].mean())
        assert line.score_low < line.score < line.score_high


def test_only_what_training_tasks_chose_is_contrasted(chosen):
    bound = chosen.assign(chosen_by="test tasks (bound)", score=1.0)
    pd.testing.assert_frame_equal(per_task(chosen), per_task(pd.concat([chosen, bound], ignore_index=True)))
    assert (per_task(bound, "test tasks (bound)")["score"] == 1).all()
