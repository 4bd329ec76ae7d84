"""Sensitivity studies: truncated histories, static vectors, grown pools and learning curves against plain loops."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.analyses import sensitivity
from mtrouter_nb.analyses.sensitivity import (ByGroup, RecentHistory, budget_unit, curve_rows, domain_cascade,
                                              grow_pool, history_study, learning_curve, played, pool_rows, pool_study)
from mtrouter_nb.multi_turn import metrics
from mtrouter_nb.multi_turn.metrics import contrast
from mtrouter_nb.multi_turn.trials import mean_of_repeats
from mtrouter_nb.core.encoders import StaticEncoder
from mtrouter_nb.core.encoders import TextEncoder
from mtrouter_nb.data.pool import demo_pool
from mtrouter_nb.multi_turn.evaluation import Experiment
from mtrouter_nb.multi_turn.trials import SMOKE, EvaluationConfig, few_fits, splits
from mtrouter_nb.multi_turn.history import HistoryEncoder, RunningHistory
from mtrouter_nb.multi_turn.replay import MATCHED, OPEN, ReplayWorld
from mtrouter_nb.multi_turn.rollout import random_trajectories, roll
from mtrouter_nb.multi_turn.cascades import CascadeFamily, choose_cascade
from mtrouter_nb.multi_turn.cascades import Cascade
from mtrouter_nb.multi_turn.routers import SingleModel

FEW = replace(SMOKE, epochs=2)


@pytest.fixture(scope="module")
def run(demo_world):
    return Experiment(demo_world, FEW, results=None)


@pytest.fixture(scope="module")
def split(demo_world):
    return splits(demo_world.tasks, FEW.folds)[0]


@pytest.fixture(scope="module")
def tasks(demo_world, split):
    return demo_world.task_index[list(split.test)].to_numpy()


# --- histories ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("turns", [0, 1, 2, 3, 7])
def test_recent_history_is_a_run_that_began_later(demo_world, turns):
    "Routed episodes whose runs interleave, turn by turn."
    encoder = demo_world.encoder
    log = random_trajectories(demo_world, np.arange(100), OPEN, runs=1)
    state = RecentHistory(encoder, turns).after(log)
    prompts = log.tasks.set_index("task_id")["prompt"]
    runs, checked = {}, 0
    for row, t in enumerate(log.turns.itertuples()):
        run = runs.setdefault((t.episode_id, t.attempt), [])
        if not isinstance(t.feedback, str):
            assert np.isnan(state[row]).any(), "nothing follows a success"
            continue
        run.append(encoder.messages([t.action, t.feedback]))
        expected = RunningHistory(encoder.messages([prompts[t.task_id]])[0], encoder.decay)
        for action, feedback in run[-turns:] if turns else []:
            expected.add(action, feedback)
        assert np.allclose(state[row], expected.vector, atol=1e-5)
        checked += len(run) > turns
    assert checked or turns == 7


def test_four_turns_are_all_that_a_router_ever_sees_of_a_run_of_five(demo_world):
    whole, four = demo_world.encoder.before(demo_world.log), RecentHistory(demo_world.encoder, 4).before(demo_world.log)
    assert np.allclose(whole, four, atol=1e-6)


def test_histories_of_other_lengths_have_other_fingerprints(demo_world):
    prints = {RecentHistory(demo_world.encoder, k).fingerprint for k in (0, 1, 2)} | {demo_world.encoder.fingerprint}
    assert len(prints) == 4


# --- static vectors -------------------------------------------------------------------------------------------------

def test_static_vectors_are_means_of_token_vectors():
    base = TextEncoder(progress=False)
    static, text = StaticEncoder(384, base), "Boil the water, then pour it."
    table = base.model[0].auto_model.get_input_embeddings().weight.detach().numpy()
    own = (table - table.mean(0))[base.model.tokenizer(text, add_special_tokens=False)["input_ids"]].mean(0)
    other = (table - table.mean(0))[base.model.tokenizer("x = 3", add_special_tokens=False)["input_ids"]].mean(0)
    a, b = static.encode([text, "x = 3"])
    cosine = own @ other / np.linalg.norm(own) / np.linalg.norm(other)
    assert np.isclose(a @ b, cosine, atol=1e-4), "all components together are a rotation"


def test_static_vectors_do_not_depend_on_company():
    one, many = StaticEncoder(16), StaticEncoder(16)
    many.encode(["some other text", ""])
    assert np.array_equal(one.encode(["again", "again"]), many.encode(["again", "again"]))
    assert not many.encode([""]).any() and many.encode([]).shape == (0, 16)
    assert HistoryEncoder(one).fingerprint != HistoryEncoder(StaticEncoder(8)).fingerprint


# --- pools ----------------------------------------------------------------------------------------------------------

def test_grown_pools_follow_the_rule_step_by_step():
    rng = np.random.default_rng(0)
    for _ in range(20):
        solved, price = rng.random((30, 7)) < rng.random(7) * 0.6, rng.integers(1, 4, 7)
        chosen = grow_pool(solved, price, 5)
        for i, model in enumerate(chosen):
            covered = solved[:, chosen[:i]].any(1)
            rank = {m: ((solved[:, m] & ~covered).sum(), solved[:, m].sum(), -price[m])
                    for m in range(7) if m not in chosen[:i]}
            assert rank[model] == max(rank.values())
        assert grow_pool(solved, price, 3) == chosen[:3], "nested"
    assert sorted(grow_pool(solved, price, 99)) == list(range(7))


def test_cascades_of_a_pool_are_played_as_told(demo_world, split, tasks):
    train = demo_world.task_index[list(split.train)].to_numpy()
    rows = pool_rows(demo_world, split, FEW)
    for rights in (MATCHED, OPEN):
        family = CascadeFamily.of(demo_world, rights, rules=("end",), longest=3)
        order = family.orders[choose_cascade(family, train, 0.0)]
        assert len(order) <= 3
        expected = roll(demo_world, Cascade(order), tasks, rights).episodes
        ours = rows[(rows["method"] == "Cascade of at most 3") & (rows["rights"] == rights.name)]
        assert ours["task_id"].tolist() == expected["task_id"].tolist()
        for column in ("score", "cost_usd", "switches", "n_turns", "n_proposals"):
            assert np.allclose(ours[column], expected[column]), column


@pytest.mark.long
def test_pools_are_chosen_on_training_tasks(run):
    found = pool_study(run, run.world.log, demo_pool(), sizes=(2,), workers=1, progress=False)
    runs = run.world.log.episodes
    for s in splits(run.world.tasks, FEW.folds)[:FEW.folds]:
        wins = runs[runs["task_id"].isin(s.train)].groupby("model")["success"].sum()
        first = found["pools"].query("fold == @s.name and place == 0 and pool == '2'")["model"].item()
        assert wins[first] == wins.max()


@pytest.mark.long
def test_studies_are_stored(run, monkeypatch):
    asked = dict(workers=1, progress=False)
    first = history_study(run, (1,), **asked)
    monkeypatch.setattr(sensitivity, "fold_data", lambda *_: pytest.fail("computed twice"))
    again = history_study(run, (1,), **asked)
    assert again["rows"].equals(first["rows"]) and again["predictions"].equals(first["predictions"])


# --- budget ---------------------------------------------------------------------------------------------------------

def test_budgets_from_a_quarter_to_four_times_are_in_the_protocol():
    rows = pd.DataFrame(dict(split=["test", "ood"], method="MTRouter", rights="open", cost_usd=[0.099, 99]))
    budgets = EvaluationConfig().budgets
    unit, mean = budget_unit(rows, budgets)
    assert (unit, mean) == (0.08, 0.099)
    assert all(np.isclose(budgets, unit * factor).any() for factor in (1 / 4, 1 / 2, 1, 2, 4))


# --- intervals ------------------------------------------------------------------------------------------------------

def fits_of(shift, n=400, folds=5):
    "Two fits, whose scores differ by `shift` (folds,) and not at all within a fold."
    fold = np.arange(n) % folds
    rows = pd.DataFrame(dict(task_id=np.arange(n).astype(str), fold=fold.astype(str), score=0.5))
    return pd.concat([rows.assign(fit=f, score=0.5 + (f - 0.5) * np.asarray(shift)[fold]) for f in (0, 1)])


def test_intervals_hold_the_chance_of_fits(monkeypatch):
    shift = np.array([0.04, -0.02, 0.06, 0.1, -0.05])
    value, low, high = contrast([(1, fits_of(shift))], resamples=20_000)
    # a fold is one of two fits, shift / 2 from its mean; the folds are independent and of equal size
    spread = np.sqrt((shift**2 / 4).sum()) / 5
    assert np.isclose(value, .5) and low < value - spread and high > value + spread
    monkeypatch.setattr(metrics, "percentile_ends", lambda drawn: (np.std(drawn), np.mean(drawn)))
    deviation, mean = contrast([(1, fits_of(shift))], resamples=20_000)[1:]
    assert abs(deviation / spread - 1) < 0.03 and abs(mean - .5) < 0.03 * spread


def test_intervals_of_one_fit_are_the_bootstrap_over_tasks():
    rng = np.random.default_rng(0)
    a, b = (pd.DataFrame(dict(task_id=np.arange(300), fold="0", score=rng.random(300))) for _ in range(2))
    value, low, high = contrast([(1, a), (-1, b)], resamples=4000)
    difference = (a["score"] - b["score"])
    margin = 1.96 * difference.std() / np.sqrt(300)
    assert np.isclose(value, difference.mean())
    assert np.allclose([low, high], [value - margin, value + margin], atol=0.12 * margin)


def test_tasks_without_a_score_are_left_out_of_both_terms():
    a = pd.DataFrame(dict(task_id=["x", "y", "z"], fold="0", score=[1.0, np.nan, 1.0]))
    b = a.assign(score=[0.0, 0.0, 1.0])
    assert contrast([(1, a), (-1, b)])[0] == .5


# --- the learning curve ---------------------------------------------------------------------------------------------

def test_training_sets_are_nested_stratified_and_unseen(demo_world, split, tasks):
    asked = []

    def fit(world, config, train):
        asked.append(set(train))
        return SingleModel(0, "first")

    rows = curve_rows(demo_world, split, FEW, "first", fit, (10, 30, 50))
    assert [len(ids) for ids in asked] == [10, 30, 50] and asked[0] < asked[1] < asked[2]
    assert not asked[2] & set(split.test)
    domain = demo_world.tasks.set_index("task_id")["domain"]
    assert domain[list(asked[0])].value_counts().tolist() == [5, 5]
    expected = roll(demo_world, SingleModel(0, "first"), tasks, MATCHED).episodes
    for _, part in rows[rows["rights"] == "matched"].groupby("parameter"):
        assert np.allclose(part["score"], expected["score"]) and part["task_id"].tolist() == list(split.test)


def test_results_of_several_routers_are_averaged(demo_world, tasks):
    routers = [SingleModel(m, "") for m in range(3)]
    role = dict(split="test", fold="0", method="three", group="demo", parameter=0.0)
    ours = mean_of_repeats(played(demo_world, routers, tasks, OPEN, FEW, **role))
    alone = [roll(demo_world, r, tasks, OPEN).episodes for r in routers]
    for column in ("score", "cost_usd", "n_turns"):
        assert np.allclose(ours[column], np.mean([e[column] for e in alone], axis=0))


def test_each_episode_is_played_by_the_router_of_its_group(demo_world):
    group = np.arange(12) % 2
    both = roll(demo_world, ByGroup([Cascade((0, 3)), SingleModel(2, "")], group), np.arange(12), OPEN).episodes
    for g, router in enumerate((Cascade((0, 3)), SingleModel(2, ""))):
        alone = roll(demo_world, router, np.flatnonzero(group == g), OPEN).episodes
        assert np.allclose(both.loc[group == g, ["score", "cost_usd"]], alone[["score", "cost_usd"]])


def test_a_domain_without_training_tasks_gets_the_cascade_of_all(demo_world):
    domains = demo_world.tasks["domain"]
    one = demo_world.tasks["task_id"][domains == domains.iloc[0]].tolist()[:20]
    router = domain_cascade(demo_world, FEW, one)(np.arange(len(domains)), MATCHED)
    train = demo_world.task_index[one].to_numpy()
    family = CascadeFamily.of(demo_world, MATCHED)
    unseen = router.routers[pd.factorize(domains)[0][domains.ne(domains.iloc[0]).argmax()]]
    index = [i for i, (o, r) in enumerate(zip(family.orders, family.rules)) if (o, r) == (unseen.order, unseen.rule)]
    assert np.isclose(family.score[index[0], train].mean(), family.score[:, train].mean(1).max())


def test_a_changed_method_is_fitted_again_and_others_are_not(run, monkeypatch):
    def strong(world, config, train):
        return SingleModel(0, "fixed")

    def weak(world, config, train):
        return SingleModel(3, "fixed")

    asked = dict(sizes=(12,), workers=1, progress=False)
    first = learning_curve(run, {"fixed": strong}, **asked)
    changed = learning_curve(run, {"fixed": weak}, **asked)
    assert not np.allclose(first["score"].mean(), changed["score"].mean())
    monkeypatch.setattr(sensitivity, "curve_rows", lambda *_: pytest.fail("computed twice"))
    assert learning_curve(run, {"fixed": strong}, **asked).equals(first)


def test_few_fits_changes_fits_only():
    assert few_fits(EvaluationConfig(cost_weights=(0.0, 3.0))) == EvaluationConfig(fits=5, cost_weights=(0.0, 3.0))
    assert few_fits(FEW) == replace(FEW, fits=FEW.other_fits)


def test_a_missing_run_stays_missing(demo_world):
    log = demo_world.log
    gone = "grand-120b|" + demo_world.tasks["task_id"][0]
    log = replace(log, episodes=log.episodes[log.episodes["episode_id"] != gone],
                  turns=log.turns[log.turns["episode_id"] != gone])
    world = ReplayWorld(log, demo_pool(), demo_world.encoder)
    role = dict(split="test", fold="0", method="one", group="demo", parameter=0.0)
    rows = played(world, [SingleModel(0, "")], [0, 1], MATCHED, FEW, **role)
    assert rows["score"].isna().tolist() == [True, False] and rows["cost_usd"].isna().tolist() == [True, False]
