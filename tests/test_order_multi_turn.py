"""No choice of a multi-turn router depends on the order in which the pool lists its models."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.analyses.contrast import cascade_offers
from mtrouter_nb.analyses.sensitivity import domain_cascade
from mtrouter_nb.core.encoders import TextEncoder
from mtrouter_nb.data.demo import load_demo
from mtrouter_nb.data.pool import demo_pool
from mtrouter_nb.multi_turn.cascades import CascadeFamily, choose_cascade
from mtrouter_nb.multi_turn.contenders import CONTENDERS, run_contender
from mtrouter_nb.multi_turn.evaluation import Results, cascade_rows
from mtrouter_nb.multi_turn.history import HistoryEncoder
from mtrouter_nb.multi_turn.planning import PlannerConfig
from mtrouter_nb.multi_turn.replay import OPEN, ReplayWorld
from mtrouter_nb.multi_turn.rollout import random_trajectories, roll
from mtrouter_nb.multi_turn.trials import EvaluationConfig, splits

CONFIG = EvaluationConfig(folds=2, runs=2, fits=2, other_fits=2, random_seeds=2, epochs=3, cost_weights=(0.0, 1.0),
                          budgets=(0.0005, 0.01), dollar_weights=(0.0, 0.3, 1.0), split_seeds=(0,),
                          task_budgets=(0.001, 0.01),
                          planner=PlannerConfig(longest=2, runs=1, trees=2))
ROW = ["rights", "method", "parameter", "task_id"]
# sums over columns in another order end in other bits, and a fit of many steps makes more of them
NEARLY = {"MTRouter": .9, "EmbedLLM": .9, "RouterDC": .9}


@pytest.fixture(scope="module")
def worlds():
    log, pool = load_demo().select(task_ids=load_demo().tasks["task_id"][::2]), demo_pool()
    history = HistoryEncoder(TextEncoder(progress=False))
    return [ReplayWorld(log, pool.subset(names), history) for names in (pool.names, pool.names[::-1])]


def test_random_runs_are_the_same_runs(worlds):
    one, other = (random_trajectories(w, np.arange(len(w.tasks)), OPEN, 1, 0).turns for w in worlds)
    assert one["model"].tolist() == other["model"].tolist()


def played(world, name, config=CONFIG):
    return run_contender(world, splits(world.tasks, 2)[0], config, CONTENDERS[name])["rollouts"].set_index(ROW)


def agreement(one, other):
    "Share of the episodes that end alike."
    other = other.reindex(one.index)
    return (np.isclose(one["score"], other["score"]) & np.isclose(one["cost_usd"], other["cost_usd"])).mean()


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "MTRouter-cost"])
def test_a_permuted_pool_permutes_choices(worlds, name):
    assert agreement(*(played(world, name) for world in worlds)) >= NEARLY.get(name, .999)


def test_a_permuted_pool_moves_plans_no_more_than_a_seed(worlds):
    "Randomised trees draw features by place, so that another order is another forest."
    first, again = worlds
    moved = agreement(played(first, "MTRouter-cost"), played(first, "MTRouter-cost", replace(CONFIG, seed=1)))
    assert agreement(played(first, "MTRouter-cost"), played(again, "MTRouter-cost")) >= moved - .05


def test_a_permuted_pool_permutes_cascades(worlds):
    "Many cascades solve the same training tasks: which of them is chosen is no matter of the pool's order."
    one, other = (cascade_rows(w, splits(w.tasks, 2)[:2], CONFIG).set_index(ROW + ["fold"]) for w in worlds)
    assert agreement(one.loc[:, ["score", "cost_usd"]], other) == 1
    for weight in CONFIG.cost_weights:
        chosen = []
        for world in worlds:
            family = CascadeFamily.of(world, OPEN)
            at = choose_cascade(family, np.arange(40), weight)
            chosen.append(([world.pool.names[m] for m in family.orders[at]], family.rules[at]))
        assert chosen[0] == chosen[1]
    offers = [cascade_offers(w, CascadeFamily.of(w, OPEN), np.arange(40), np.arange(40) % 3, np.arange(40, 50),
                             CONFIG.cost_weights) for w in worlds]
    assert all(np.allclose(getattr(offers[0], a), getattr(offers[1], a)) for a in ("score", "cost", "held_cost"))
    domain = [played_by(w, domain_cascade(w, CONFIG, w.tasks["task_id"][:40])) for w in worlds]
    assert np.allclose(*domain)


def played_by(world, router):
    tasks = np.arange(40, len(world.tasks))
    return roll(world, router(tasks, OPEN), tasks, OPEN).episodes["cost_usd"]


def test_of_cascades_that_score_alike_the_cheapest_is_chosen(worlds):
    family, train = CascadeFamily.of(worlds[0], OPEN), np.arange(40)
    score, cost = family.score[:, train].mean(1), family.cost[:, train].mean(1)
    best = [i for i, s in enumerate(score) if np.isclose(s, max(score))]
    assert len(best) > 1 and np.isclose(cost[choose_cascade(family, train, 0.0)], min(cost[i] for i in best))


def test_every_fit_keeps_a_method_that_has_several_fits_on_one_kind_of_split_alone():
    about = dict(method="A", group="learned", parameter=0.0, fold="0", domain="d", cost_usd=1.0)
    rows = pd.DataFrame([dict(about, split=split, rights=rights, task_id=task, score=.5) for split in ("test", "ood")
                         for rights in ("matched", "budgeted") for task in "xy"])
    fits = [rows[(rows["split"] == "test") & (rows["rights"] == "matched")].assign(fit=i) for i in (0, 1)]
    every = Results(rows, pd.concat(fits), *[pd.DataFrame()] * 3).every_fit
    assert every.groupby(["split", "fit"]).size().to_dict() == {("ood", 0): 2, ("test", 0): 2, ("test", 1): 2}
    assert len(Results(rows, *[pd.DataFrame()] * 4).every_fit) == 4, "no method has several"
