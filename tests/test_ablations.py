"""Ablations: what each variant may and may not read, and that the study computes a thing once."""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from mtrouter_nb.analyses import ablations
from mtrouter_nb.analyses.ablations import (VARIANTS, FixedModelsEstimator, Fold, ablation_auc, ablation_differences,
                                            ablation_predictions, ablation_study)
from mtrouter_nb.data.pool import ModelPool
from mtrouter_nb.data.turns import expected_steps
from mtrouter_nb.learners.outcome_network import EstimatorConfig
from mtrouter_nb.multi_turn import trials
from mtrouter_nb.multi_turn.estimator import OutcomeEstimator, training_set
from mtrouter_nb.multi_turn.contenders import CONTENDERS, TABLES, run_contender
from mtrouter_nb.multi_turn.evaluation import Experiment, Results
from mtrouter_nb.multi_turn.trials import RIGHTS, EvaluationConfig, splits

QUICK = EvaluationConfig(folds=2, runs=2, fits=2, other_fits=2, epochs=2, cost_weights=(0.0,), budgets=(0.0005, 0.01),
                         random_seeds=1, dollar_weights=(0.0,))


@pytest.fixture(scope="module")
def fold(demo_world):
    return Fold.of(demo_world, splits(demo_world.tasks, folds=2)[0], QUICK)


@pytest.fixture(scope="module")
def run(demo_world):
    every, mtrouter = splits(demo_world.tasks, folds=2), CONTENDERS["MTRouter"]
    parts = [run_contender(demo_world, s, QUICK, mtrouter) for s in every if s.kind == "test"]
    return Experiment(demo_world, QUICK, Results(*(pd.concat([p[table] for p in parts], ignore_index=True)
                                                   for table in TABLES)))


@pytest.fixture
def study(run, tmp_path, monkeypatch):
    "`ablation_study` on one process, with a cache of its own."
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))
    return lambda variants: ablation_study(run, variants, workers=1, progress=False)


def mtrouter(fold, data, seed=0):
    return OutcomeEstimator(fold.world.pool, EstimatorConfig(epochs=2, seed=seed)).fit(data)


def test_the_variants_are_those_of_the_paper(root):
    printed = pd.read_csv(root / "data" / "published" / "mtrouter_ablations_secondary.csv")
    assert {*printed.query("study == 'ablation'")["variant"]} == {"full", *VARIANTS}


def test_no_error_penalty_learns_the_final_score(fold):
    ours = VARIANTS["no error penalty"](fold, 3).predict(fold.data.x)[0]
    assert np.array_equal(ours, mtrouter(fold, replace(fold.data, target=fold.data.score), 3).predict(fold.data.x)[0])


def test_no_random_data_learns_from_single_model_runs(fold):
    world, log = fold.world, fold.world.log.select(task_ids=fold.split.train)
    data = training_set(log, world.pool, world.encoder, expected_steps(log, fold.split.train), world.own_turns,
                        world.own_proposals)
    ours = VARIANTS["no random-router data"](fold, 1).predict(data.x)[0]
    assert np.array_equal(ours, mtrouter(fold, data, 1).predict(data.x)[0])


def test_the_ridge_head_is_a_ridge_on_the_same_target(fold):
    ours, data = VARIANTS["ridge head instead of MLP"](fold, 0).predict(fold.data.x)[0], fold.data
    for m in range(len(fold.world.pool)):
        mine = data.action == m
        ridge = Ridge(alpha=10.0).fit(data.x[mine], data.target[mine], data.weight[mine])
        assert np.allclose(ours[:, m], ridge.predict(data.x), atol=1e-4)


def test_no_history_sees_the_last_feedback_and_the_rights_alone(fold):
    ours, x = VARIANTS["no history (current turn only)"](fold, 0), fold.data.x
    d, noise = (x.shape[1] - 3) // 3, np.random.default_rng(0).normal(size=x.shape).astype("f4")
    outside, seen = x + noise, x + noise
    outside[:, d:2 * d], outside[:, -3:] = x[:, d:2 * d], x[:, -3:]
    seen[:, :d], seen[:, 2 * d:] = x[:, :d], x[:, 2 * d:]
    assert np.array_equal(ours.predict(outside)[0], ours.predict(x)[0])
    assert not np.allclose(ours.predict(seen)[0], ours.predict(x)[0])


def test_no_history_refuses_states_without_that_block(fold):
    narrow = replace(fold, data=replace(fold.data, x=fold.data.x[:, :-1]))
    with pytest.raises(ValueError, match="not 3 parts of one size: task, last, mean"):
        VARIANTS["no history (current turn only)"](narrow, 0)


def test_hard_coded_models_know_nothing_of_prices(fold):
    table = fold.world.pool.table.copy()
    table["input_usd_per_mtok"] *= np.linspace(1, 50, len(table))
    other, config = ModelPool(table), EstimatorConfig(epochs=2, seed=0)
    assert not np.allclose(other.features(), fold.world.pool.features())
    ours = VARIANTS["hard-coded model encoder"](fold, 0).predict(fold.data.x)[0]
    assert np.array_equal(ours, FixedModelsEstimator(other, config).fit(fold.data).predict(fold.data.x)[0])
    attributes = [OutcomeEstimator(p, config).fit(fold.data).predict(fold.data.x)[0] for p in (fold.world.pool, other)]
    assert not np.allclose(*attributes), "the paper's encoder does know"


@pytest.mark.long  # notebook 09c runs a study of fewer variants
def test_every_variant_plays_every_task_once_per_fit(run, study):
    rows = study({n: VARIANTS[n] for n in ("ridge head instead of MLP", "no history (current turn only)")})
    count = rows.groupby(["variant", "rights", "seed"], dropna=False)["task_id"].agg(["size", "nunique"])
    assert (count == len(run.world.tasks)).all(axis=None) and len(count) == len(RIGHTS) * (2 + 2 + 2)
    held = {t: s.name for s in splits(run.world.tasks, folds=2) if s.kind == "test" for t in s.test}
    assert (rows["fold"] == rows["task_id"].map(held)).all()


def fails_at_third(fold, seed):
    "The ridge; its calls stand in the environment, which is no part of what it depends on."
    os.environ["CALLS"] += f" {fold.split.name}/{seed}"
    if len(os.environ["CALLS"].split()) == 3: raise KeyboardInterrupt
    return ablations.ridge_head(fold, seed)


@pytest.mark.long
def test_an_interrupted_study_goes_on_where_it_stopped(study, monkeypatch):
    monkeypatch.setenv("CALLS", "")
    with pytest.raises(KeyboardInterrupt):
        study({"ours": fails_at_third})
    study({"ours": fails_at_third})
    assert os.environ["CALLS"] == " 0/0 0/1 1/0 1/0 1/1"
    study({"ours": fails_at_third, "ridge head instead of MLP": ablations.ridge_head})
    assert len(os.environ["CALLS"].split()) == 5, "a new entry does not disturb the others"


def test_the_full_method_is_asked_on_the_tasks_of_its_variants(run, study, monkeypatch):
    monkeypatch.setattr(trials, "STUDIED", 1)
    variants = {"ridge head instead of MLP": ablations.ridge_head}
    rows = study(variants)
    asked = {*splits(run.world.tasks, folds=2)[0].test}
    assert all({*part["task_id"]} == asked for _, part in rows.groupby(["variant", "rights"])), "one fold of two"
    said = ablation_predictions(run, variants, workers=1, progress=False)
    assert {*said["estimator"]} == {"full", *variants}
    assert all({*part["task_id"]} == asked for _, part in said.groupby("estimator"))


@pytest.mark.long
def test_differences_and_auc_are_what_they_say(run, study):
    variants = {"ridge head instead of MLP": ablations.ridge_head}
    rows = study(variants)
    table = ablation_differences(rows).set_index(["rights", "quantity"])
    mean = rows.groupby(["rights", "variant"])[["score", "cost_usd"]].mean()
    for rights, quantity in table.index:
        expected = mean.loc[(rights, "ridge head instead of MLP"), quantity] - mean.loc[(rights, "full"), quantity]
        assert table.loc[(rights, quantity), "difference"] == pytest.approx(expected)
        assert table.loc[(rights, quantity), "fits"] == pytest.approx([expected] * 2)
    said = ablation_predictions(run, variants, workers=1, progress=False)
    auc = {name: roc_auc_score(g["outcome"] > 0.5, g["predicted"]) for name, g in said.groupby("estimator")}
    assert ablation_auc(said)["difference"].iloc[0] == pytest.approx(auc["ridge head instead of MLP"] - auc["full"])
