"""Headroom against coins of known chances, loops, pandas, and another order of everything."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.analyses.headroom import (ANY, CASCADE, CHANCES, CHOICE, DOMAIN, NOTHING, PRIVILEGED, PROMPT, Facts,
                                           any_if_independent, choice_value, domain_chances, facts_of, features,
                                           headroom_rows, headroom_table, logistic, mean_chances, other_models,
                                           out_of_fold, task_rows)
from mtrouter_nb.core.splits import stratified_folds
from mtrouter_nb.data.mint import find_mint, load_mint, mint_models
from mtrouter_nb.data.pool import MINT_POOL, mint_pool
from mtrouter_nb.data.sources import load_outcomes
from mtrouter_nb.multi_turn.evaluation import Experiment, Results
from mtrouter_nb.multi_turn.history import HistoryEncoder
from mtrouter_nb.multi_turn.replay import ReplayWorld
from mtrouter_nb.multi_turn.trials import SMOKE


def coins(n=240, models=4, seed=0, spread=0.0):
    "Facts and chances: ease of the domain, strength, a number of the prompt, and an ease that only others tell."
    rng = np.random.default_rng(seed)
    domain, prompt, hidden = np.arange(n) % 3, rng.normal(size=(n, 3)), rng.normal(size=(n, 1))
    logit = (domain - 1)[:, None] + np.linspace(-.5, .5, models) + prompt[:, :1] * np.linspace(-1, 1, models)
    chance = 1 / (1 + np.exp(-logit - spread * hidden))
    others = (rng.random((n, 12)) < 1 / (1 + np.exp(-2 * hidden))).astype(float)
    tasks = pd.DataFrame(dict(task_id=[f"t{i}" for i in range(n)], domain=[f"d{d}" for d in domain]))
    return Facts(tasks, prompt, others, (rng.random((n, models)) < chance).astype(float)), chance


def table_of(facts, known=CHANCES, seeds=(0,)):
    chances = {name: np.stack([out_of_fold(facts, known[name], 3, seed) for seed in seeds]) for name in known}
    return headroom_table(task_rows(facts, chances)).set_index(["question", "known"])


# ---------------------------------------------------------------------------- coins of known chances

def test_the_product_is_the_share_of_all_outcomes_with_a_head():
    chance = np.random.default_rng(0).random((20, 4))
    heads = [np.prod([p if up else 1 - p for p, up in zip(row, outcome)])
             for row in chance for outcome in product((0, 1), repeat=4) if any(outcome)]
    assert any_if_independent(chance) == pytest.approx(np.reshape(heads, (20, 15)).sum(1))


def test_independent_coins_are_as_many_as_the_product_says_and_shared_luck_is_fewer():
    facts, chance = coins(3000)
    truth = {NOTHING: chance[None]}
    alone = headroom_table(task_rows(facts, truth)).set_index("question").loc[ANY]
    assert alone["excess_low"] < 0 < alone["excess_high"] and alone["excess_high"] < .03
    luck = np.random.default_rng(1).random((3000, 1))
    shared = replace(facts, right=(luck < chance).astype(float))
    table = headroom_table(task_rows(shared, truth)).set_index("question")
    assert table.loc[ANY, "excess_low"] > .1, "the product overstates where models fail together"
    assert table.loc[CHOICE, "excess_low"] < 0 < table.loc[CHOICE, "excess_high"], "the choice does not"


def test_what_hides_from_the_prompt_makes_the_product_too_large_and_other_models_uncover_it():
    facts, _ = coins(600, spread=2.5)
    excess = table_of(facts)["excess"][ANY]
    assert excess[PROMPT] > excess[PRIVILEGED] + .02 > .02
    assert excess[DOMAIN] > .03


def test_reading_pays_where_the_prompt_says_who_is_right_and_not_where_it_says_nothing():
    facts, _ = coins(450)
    noise = replace(facts, prompt=np.random.default_rng(5).normal(size=facts.prompt.shape))
    told, blind = (table_of(f)["difference"][CHOICE] for f in (facts, noise))
    assert told[PROMPT] > .05 and told[DOMAIN] < .03 and blind[PROMPT] < .02


# ---------------------------------------------------------------------------- against loops and pandas

def test_choices_by_domain_agree_with_a_loop():
    facts, _ = coins(90, models=3)
    fold = stratified_folds(facts.tasks, 3, 0).to_numpy()
    frame = pd.DataFrame(facts.right).assign(fold=fold, domain=facts.tasks["domain"])
    value, expected = [], []
    for _, row in frame.iterrows():
        share = frame[frame["fold"] != row["fold"]].groupby("domain")[[0, 1, 2]].mean().loc[row["domain"]]
        tied = share.index[share == share.max()]
        value.append(row[tied].mean())
        expected.append(share.max())
    rows = task_rows(facts, {DOMAIN: out_of_fold(facts, domain_chances, 3)[None]})
    rows = rows[rows["question"] == CHOICE]
    assert rows["realised"].to_numpy() == pytest.approx(value)
    assert rows["expected"].to_numpy() == pytest.approx(expected)


def test_ties_are_worth_the_mean_of_those_that_tie():
    right = np.array([[1, 0, 0], [0, 1, 1]])
    assert choice_value(np.full((2, 3), .5), right) == pytest.approx([1 / 3, 2 / 3])
    assert choice_value(np.array([[.2, .9, .9], [.1, .3, .2]]), right).tolist() == [0, 1]


def test_seeds_are_averaged_task_by_task():
    facts, _ = coins(90)
    both = np.stack([out_of_fold(facts, domain_chances, 3, seed) for seed in (0, 1)])
    each = [task_rows(facts, {NOTHING: p[None]})[["realised", "expected"]].to_numpy() for p in both]
    assert np.allclose(task_rows(facts, {NOTHING: both})[["realised", "expected"]], np.mean(each, axis=0))


def test_a_difference_is_paired():
    facts, chance = coins(300)
    rows = task_rows(facts, {NOTHING: out_of_fold(facts, mean_chances)[None], "truth": chance[None]})
    table = headroom_table(rows).set_index(["question", "known"])
    own = rows[rows["question"] == CHOICE].pivot(index="task_id", columns="known", values="realised")
    assert table.loc[(CHOICE, "truth"), "difference"] == pytest.approx((own["truth"] - own[NOTHING]).mean())
    assert table.loc[(CHOICE, NOTHING), ["difference", "difference_low", "difference_high"]].eq(0).all()


# ---------------------------------------------------------------------------- nothing learned from a test task

def test_nothing_is_learned_from_the_tasks_that_are_scored():
    facts, _ = coins(60)
    fold = stratified_folds(facts.tasks, 3, 0).to_numpy()
    for name, chances in CHANCES.items():
        turned = replace(facts, right=np.where((fold == 1)[:, None], 1 - facts.right, facts.right))
        before, after = (out_of_fold(f, chances, 3) for f in (facts, turned))
        assert np.array_equal(before[fold == 1], after[fold == 1]), name
        assert not np.allclose(before[fold != 1], after[fold != 1]), name


def test_axes_are_those_of_training_tasks():
    facts, _ = coins(90)
    train = np.arange(60)
    moved = replace(facts, others=np.vstack([facts.others[:60], 1 - facts.others[60:]]))
    assert np.allclose(features(facts, 4, train)[:60], features(moved, 4, train)[:60])


def test_a_model_that_always_wins_is_not_certain():
    x = np.random.default_rng(0).normal(size=(10, 2))
    right = np.column_stack([np.ones(10), np.zeros(10), np.arange(10) % 2])
    chance = logistic(x, right, x[:3], 1.0)
    assert np.allclose(chance[:, :2], [11 / 12, 1 / 12]) and ((chance > 0) & (chance < 1)).all()


# ---------------------------------------------------------------------------- order

def test_models_and_tasks_in_another_order_have_the_same_numbers():
    facts, _ = coins(120, models=4)
    base = table_of(facts)
    models, others = np.array([2, 0, 3, 1]), np.random.default_rng(0).permutation(facts.others.shape[1])
    pd.testing.assert_frame_equal(base, table_of(replace(facts, right=facts.right[:, models])))
    pd.testing.assert_frame_equal(base, table_of(replace(facts, others=facts.others[:, others])), atol=1e-3, rtol=0)
    rows = np.random.default_rng(1).permutation(120)
    mixed = Facts(facts.tasks.iloc[rows].reset_index(drop=True), *(v[rows] for v in (facts.prompt, facts.others,
                                                                                     facts.right)))
    values = [c for c in base if not c.endswith(("_low", "_high"))]  # resamples go by row
    pd.testing.assert_frame_equal(base[values], table_of(mixed)[values], atol=1e-3, rtol=0)


# ---------------------------------------------------------------------------- worlds

def test_tasks_that_lack_a_run_are_left_out(demo_world):
    log = demo_world.log
    gone = log.episodes["episode_id"].iloc[0]
    less = replace(log, episodes=log.episodes[log.episodes["episode_id"] != gone],
                   turns=log.turns[log.turns["episode_id"] != gone])
    facts = facts_of(ReplayWorld(less, demo_world.pool, demo_world.encoder))
    assert len(facts.tasks) == len(demo_world.tasks) - 1 == len(facts.right)
    assert log.episodes["task_id"].iloc[0] not in set(facts.tasks["task_id"])


def test_an_experiment_without_other_models_has_no_privileged_row(demo_world):
    run = Experiment(demo_world, SMOKE, Results(*[pd.DataFrame()] * 5))
    assert other_models(demo_world) is None
    rows = headroom_rows(run, None, workers=1, progress=False)
    table = headroom_table(rows, (CHOICE, DOMAIN)).set_index(["question", "known"])
    assert PRIVILEGED not in table.index.get_level_values("known")
    assert np.isnan(table.loc[(CASCADE, DOMAIN), "expected"]) and np.isfinite(table.loc[(CASCADE, DOMAIN), "realised"])
    assert (table.loc[CHOICE, "realised"] <= table.loc[(ANY, NOTHING), "realised"]).all()


@pytest.mark.skipif(find_mint(mint_models()) is None, reason="MINT's logs of all models are not here")
def test_mint_by_another_road():
    "The frame of outcomes, grouped by pandas: any of six, the best single model, the best model per domain."
    world = ReplayWorld(load_mint(), mint_pool(), HistoryEncoder())
    others = other_models(world)
    assert len(others.models) == 46 and not set(others.models) & set(MINT_POOL)
    facts = facts_of(world, others)
    mint = load_outcomes("mint")
    frame = pd.DataFrame(mint.score, mint.tasks["task_id"], mint.models).loc[facts.tasks["task_id"]]
    assert np.array_equal(facts.others, frame[list(others.models)]) and len(facts.tasks) == 586
    known = {name: out_of_fold(facts, CHANCES[name])[None] for name in (NOTHING, DOMAIN)}
    table = headroom_table(task_rows(facts, known)).set_index(["question", "known"])
    six = frame[list(MINT_POOL)].to_numpy()
    assert table.loc[(ANY, DOMAIN), "realised"] == pytest.approx(six.max(1).mean()) == pytest.approx(.828, abs=5e-4)
    assert table.loc[(CHOICE, NOTHING), "realised"] == pytest.approx(six[:, 0].mean()), "GPT-4 in every fold"
    long = pd.DataFrame(six).assign(domain=facts.tasks["domain"], fold=stratified_folds(facts.tasks).to_numpy())
    chance = pd.concat([part[["domain"]].join(long[long["fold"] != f].groupby("domain")[[*range(6)]].mean(), "domain")
                        for f, part in long.groupby("fold")]).sort_index()[[*range(6)]].to_numpy()
    assert table.loc[(ANY, DOMAIN), "expected"] == pytest.approx((1 - (1 - chance).prod(1)).mean())
    assert table.loc[(ANY, DOMAIN), "excess_low"] > .08, "six coins that the domain tells are not six runs"
