"""Network trials: what each reads and learns, that no choice sees its own fold, and AUC by kinds against all pairs."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score

from mtrouter_nb.analyses.ablations import Fold
from mtrouter_nb.analyses.network_trials import (ALL, BESIDE, DROPOUT, FIRST, KINDS, MEAN, MENDED, OTHER_DOMAIN, OURS,
                                                 PAPER, SAME_DOMAIN, SAME_TASK, TABLES, WITHIN, AsItIs, Average,
                                                 ByOrder, Components, LastEpoch, Recipe, Standardised, StateRouter,
                                                 TableAlone, brier_draws, choices, complete_fits, domain_probe,
                                                 epochs_kept, order_draws, order_matrix, other_tasks_values,
                                                 pair_splits, routed_table, trial_results, validation_draws,
                                                 validation_score, validation_table, with_choice)
from mtrouter_nb.analyses.network_trials import test_table as quality_table
from mtrouter_nb.core.splits import holdout, stable_hash, stratified_folds
from mtrouter_nb.core.stats import sample_and_resamples
from mtrouter_nb.multi_turn.contenders import CONTENDERS, MeanOf, run_contender
from mtrouter_nb.multi_turn.estimator import LookupTable, OutcomeEstimator, state_blocks
from mtrouter_nb.multi_turn.metrics import paired_auc
from mtrouter_nb.multi_turn.replay import MATCHED, OPEN, ReplayWorld
from mtrouter_nb.multi_turn.rollout import roll
from mtrouter_nb.multi_turn.routers import QRouter, TableRouter
from mtrouter_nb.multi_turn.trials import RIGHTS, EvaluationConfig, splits

QUICK = EvaluationConfig(folds=3, runs=2, fits=2, other_fits=2, epochs=3, cost_weights=(0.0,), budgets=(0.0005, 0.01),
                         random_seeds=1, dollar_weights=(0.0,))


@pytest.fixture(scope="module")
def fold(demo_world):
    return Fold.of(demo_world, splits(demo_world.tasks, folds=3)[0], QUICK)


@pytest.fixture(scope="module")
def blocks(fold):
    return state_blocks(fold.world.encoder, fold.data.x.shape[1])


# ---------------------------------------------------------------------------- what a network is shown and learns

def test_as_in_the_paper_is_the_protocols_mtrouter(fold):
    world, split = fold.world, fold.split
    theirs = run_contender(world, split, QUICK, CONTENDERS["MTRouter"])
    ours = trial_results(world, split, QUICK, WITHIN[PAPER], 2, RIGHTS)
    first = ours["said"].query("fit == 0 and not averaged")
    assert np.array_equal(first["predicted"], theirs["predictions"]["predicted"])
    assert first["task_id"].tolist() == theirs["predictions"]["task_id"].tolist()
    key = ["rights", "fit", "task_id"]
    mine = ours["played"].query("not averaged").set_index(key).sort_index()
    known = theirs["repeats"]
    known = known[known["method"] == "MTRouter"].set_index(key).sort_index()
    pd.testing.assert_frame_equal(mine[["score", "cost_usd"]], known[["score", "cost_usd"]])


def test_readers_learn_from_training_rows_alone_and_leave_rights(fold, blocks):
    data, half = fold.data, fold.data.take(np.arange(0, len(fold.data), 2))
    for reader in (Standardised(), Components(5)):
        kept = reader.fit(half, blocks).read(data.x, data.situation)
        assert np.array_equal(kept[::2], reader.read(half.x, half.situation)), "row by row"
        assert np.array_equal(kept[:, -3:], data.x[:, -3:]) and np.isfinite(kept).all()


def test_components_keep_distances_as_far_as_they_go(fold, blocks):
    x, whole = fold.data.x, Components(10_000).fit(fold.data, blocks)
    shown = whole.read(x, fold.data.situation)
    a, b = np.random.default_rng(0).integers(0, len(x), (2, 200))
    assert np.allclose(np.linalg.norm(shown[a] - shown[b], axis=1), np.linalg.norm(x[a] - x[b], axis=1), atol=1e-3)


def test_the_part_without_spread_is_not_divided_by_zero(fold, blocks):
    flat = fold.data.x.copy()
    flat[:, blocks["last"]] = 0.25
    shown = Standardised().fit(replace(fold.data, x=flat), blocks).read(flat, fold.data.situation)
    assert np.allclose(shown[:, blocks["last"]], 0)


def test_values_of_other_tasks_agree_with_pandas(fold):
    data = fold.data
    value = other_tasks_values(data, lambda: LookupTable(fold.world.pool, ((),), lean=0.0))
    part = np.array([stable_hash("part", task) % 5 for task in data.task])
    for row in (0, len(data) // 2, len(data) - 1):
        others = (part != part[row]) & (data.action == data.action[row])
        assert value[row] == pytest.approx(np.average(data.score[others], weights=data.weight[others]))


def test_a_remainder_and_its_table_add_up(fold):
    data, recipe = fold.data, OURS[f"{DROPOUT}, beside situations"]
    fitted = recipe(fold, 1)
    table = LookupTable(fold.world.pool, BESIDE).fit(replace(data, score=data.target))
    network = fitted.network.predict(data.x)[0]
    assert np.allclose(fitted.predict(data.x, data.situation)[0], network + table.predict(data.situation)[0])
    left = data.target - other_tasks_values(replace(data, score=data.target),
                                            lambda: LookupTable(fold.world.pool, BESIDE))
    again = fold.fit(1, replace(data, target=left.astype("f4")),
                     lambda pool, config: OutcomeEstimator(pool, replace(config, batch_size=512, dropout=.3)))
    assert np.array_equal(network, again.predict(data.x)[0])


def test_kept_by_auc_keeps_the_epoch_that_orders_best(fold):
    data = fold.data
    kept = fold.fit(3, kind=ByOrder)
    _, held = holdout(np.unique(data.task.astype(str)), .1, 3)
    rows = np.isin(data.task.astype(str), held)
    said = kept.predict(data.x[rows])[0][np.arange(rows.sum()), data.action[rows]]
    auc = roc_auc_score(data.score[rows] > .5, said, sample_weight=data.weight[rows])
    assert auc == pytest.approx(-min(error for _, error in kept.history), abs=1e-6)


def test_the_last_epoch_has_the_error_of_the_last_look(fold):
    data, long = fold.data, replace(fold, config=replace(QUICK, epochs=8))
    last = long.fit(0, kind=LastEpoch)
    _, held = holdout(np.unique(data.task.astype(str)), .1, 0)
    rows = data.take(np.isin(data.task.astype(str), held))
    said = last.predict(rows.x)[0][np.arange(len(rows)), rows.action]
    error = np.mean(rows.weight / data.weight.mean() * (said - rows.target) ** 2)
    assert error == pytest.approx(last.history[-1][1], rel=1e-4) and error > min(v for _, v in last.history)


def test_where_all_held_out_runs_end_alike_the_squared_error_decides(fold):
    alike = replace(fold.data, score=np.ones_like(fold.data.score))
    by_order, plain = (kind(fold.world.pool, fold.fit(0).config).fit(alike) for kind in (ByOrder, OutcomeEstimator))
    assert by_order.history == plain.history
    assert all(torch.equal(a, b) for a, b in zip(by_order.network.parameters(), plain.network.parameters()))


def test_tables_are_played_as_the_protocol_plays_them(fold):
    world, split = fold.world, fold.split
    tasks = world.task_index[list(split.test)].to_numpy()
    domain = world.tasks["domain"].to_numpy()[tasks]
    for recipe in (TABLES["Table: domain, situation"], TableAlone(BESIDE, "target")):
        ours = StateRouter(recipe(fold, 0), domain)
        theirs = TableRouter(recipe(fold, 0).table, domain)
        for rights in (MATCHED, OPEN):
            moves = [roll(world, router, tasks, rights).moves for router in (ours, theirs)]
            pd.testing.assert_frame_equal(*moves)


def test_the_mean_of_fits_is_that_of_the_protocol(fold):
    fits = [Recipe()(fold, seed) for seed in (0, 1)]
    tasks = fold.world.task_index[list(fold.split.test)].to_numpy()
    domain = fold.world.tasks["domain"].to_numpy()[tasks]
    ours = roll(fold.world, StateRouter(Average(fits), domain), tasks, OPEN).moves
    theirs = roll(fold.world, QRouter(MeanOf([fit.network for fit in fits])), tasks, OPEN).moves
    pd.testing.assert_frame_equal(ours, theirs)


# ---------------------------------------------------------------------------- nothing learned from what is asked

def test_no_trial_learns_from_the_tasks_of_its_pair(demo_world):
    log, pair = demo_world.log, pair_splits(demo_world.tasks, QUICK)[1]
    asked = log.episodes["task_id"].isin(pair.test)
    episodes = log.episodes.assign(score=np.where(asked, 1 - log.episodes["score"], log.episodes["score"]))
    turned = ReplayWorld(replace(log, episodes=episodes), demo_world.pool, demo_world.encoder)
    for recipe in (WITHIN["batch 512"], OURS[f"{DROPOUT}, beside situations"], TABLES["Table: domain, situation"]):
        before, after = (trial_results(w, pair, QUICK, recipe, 1, [MATCHED])["said"] for w in (demo_world, turned))
        assert np.array_equal(before["predicted"], after["predicted"])
        assert np.array_equal(before["outcome"], 1 - after["outcome"])


def invented(tasks, trials=("a", "b"), fits=2, models=3, seed=0):
    "Rows as of a study on the pairs of three folds: what each trial says of three models over two turns."
    home = stratified_folds(tasks, 3, 0)
    rng = np.random.default_rng(seed)
    outcome = pd.DataFrame(list(product(tasks["task_id"], range(models))), columns=["task_id", "model"])
    outcome["outcome"] = rng.integers(0, 2, len(outcome)).astype(float)
    rows = []
    for trial, pair, fit, turn in product(trials, ("0+1", "0+2", "1+2"), range(fits), range(2)):
        part = outcome[outcome["task_id"].map(home).astype(str).isin(pair.split("+"))]
        said = rng.normal(part["outcome"], 2.0).round(1)
        rows.append(part.assign(trial=trial, split=pair, fit=fit, turn=turn, predicted=said,
                                domain=part["task_id"].map(tasks.set_index("task_id")["domain"])))
    return pd.concat(rows, ignore_index=True)


def test_a_choice_is_made_on_the_other_folds_by_fits_that_saw_neither(demo_world):
    tasks = demo_world.tasks
    said, home = invented(tasks), stratified_folds(tasks, 3, 0).astype(str)
    draws = validation_draws(said, tasks, QUICK, resamples=5).set_index(["fold", "trial"])["draws"]
    for fold, trial in product("012", "ab"):
        rows = said[(said["trial"] == trial) & said["split"].str.contains(fold) & (said["task_id"].map(home) != fold)]
        each = [roc_auc_score(part["outcome"], part["predicted"]) for _, part in rows.groupby("fit")]
        assert draws[fold, trial][0] == pytest.approx(np.mean(each))
    best = choices(draws.reset_index(), ["a", "b"])
    assert all(best[f] == max("ab", key=lambda t: draws[f, t][0]) for f in "012")


def test_folds_of_two_digits_are_told_apart(demo_world):
    config = replace(QUICK, folds=11)
    tasks = pd.DataFrame(dict(task_id=[f"t{i:02}" for i in range(44)], domain="d"))
    home = stratified_folds(tasks, 11, 0)
    said = pd.DataFrame([dict(trial="a", split=p.name, task_id=t, fit=0, turn=0, model="m", domain="d",
                              outcome=float(int(t[1:]) % 2), predicted=float(home[t] == 9 and p.name == "9+10"))
                         for p in pair_splits(tasks, config) for t in p.test])
    draws = validation_draws(said, tasks, config, resamples=2).set_index("fold")["draws"]
    assert draws["0"][0] == .5, "what only the pair 9+10 says is no part of the choice for fold 0"


def test_equal_trials_go_to_the_first(demo_world):
    said = invented(demo_world.tasks, ("a",))
    same = pd.concat([said, said.assign(trial="b")])
    draws = validation_draws(same, demo_world.tasks, QUICK, resamples=2)
    assert {*choices(draws, ["b", "a"])} == {"b"} and {*choices(draws, ["a", "b"])} == {"a"}


def test_a_pair_needs_a_third_fold(demo_world):
    with pytest.raises(ValueError, match="2 folds leave none"):
        pair_splits(demo_world.tasks, replace(QUICK, folds=2))


# ---------------------------------------------------------------------------- AUC by kinds of pairs

def in_order(rows, kind):
    "Share of pairs in order, by looking at each."
    first = rows if kind == ALL else rows[rows["turn"] == 0]
    good, count = 0.0, 0
    for up, down in product(first[first["outcome"] > .5].itertuples(), first[first["outcome"] < .5].itertuples()):
        if kind == SAME_DOMAIN and up.domain != down.domain: continue
        if kind == OTHER_DOMAIN and up.domain == down.domain: continue
        if kind == SAME_TASK and up.task_id != down.task_id: continue
        good, count = good + (up.predicted > down.predicted) + (up.predicted == down.predicted) / 2, count + 1
    return good / count


@pytest.fixture(scope="module")
def rows(demo_world):
    few = invented(demo_world.tasks, ("a",), models=4).query("split == '0+1'")
    return few[few["task_id"].isin(few["task_id"].unique()[::4])].reset_index(drop=True)


@pytest.mark.parametrize("kind", KINDS)
def test_auc_by_kind_agrees_with_all_pairs(rows, demo_world, kind):
    each = [in_order(part, kind) for _, part in rows.groupby("fit")]
    assert order_draws(rows, kind, demo_world.tasks, 3)[0] == pytest.approx(np.mean(each))


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_tasks_count_as_often_as_they_are_drawn(rows, demo_world, kind):
    one, tasks = rows[rows["fit"] == 0], demo_world.tasks
    drawn = sample_and_resamples(len(tasks), 3, 7)
    for at in range(4):
        times = dict(zip(tasks["task_id"], drawn[at]))
        copies = pd.concat([part.assign(task_id=f"{task} {i}") if kind == SAME_TASK else part
                            for task, part in one.groupby("task_id") for i in range(int(times[task]))])
        assert order_draws(one, kind, tasks, 3, 7)[at] == pytest.approx(in_order(copies, kind))


def test_auc_does_not_depend_on_the_order_of_rows_or_tasks(rows, demo_world):
    mixed, tasks = rows.sample(frac=1, random_state=0), demo_world.tasks.sample(frac=1, random_state=1)
    for kind in KINDS:
        a, b = (order_draws(r, kind, t, 3)[0] for r, t in ((rows, demo_world.tasks), (mixed, tasks)))
        assert a == pytest.approx(b)
    swapped = order_matrix(np.array([.2, .1]), np.array([True, False]), np.array([1, 0]), 2)
    assert swapped.tolist() == [[[0, 0], [1, 0]], [[0, 0], [1, 0]]]


def test_differences_are_those_of_paired_auc(rows, demo_world):
    "Both estimators under the same drawn tasks; another road to the ends."
    one = rows[rows["fit"] == 0]
    other = one.assign(trial="b", predicted=np.random.default_rng(1).normal(size=len(one)))
    ours = order_draws(one, ALL, demo_world.tasks, 2000) - order_draws(other, ALL, demo_world.tasks, 2000)
    frame = pd.concat([one.assign(estimator="a"), other.assign(estimator="b")])
    theirs = paired_auc(frame, "a", "b", 2000)
    assert ours[0] == pytest.approx(theirs["difference"])
    assert np.percentile(ours[1:], [2.5, 97.5]) == pytest.approx([theirs["low"], theirs["high"]], abs=.03)


def test_without_a_pair_the_auc_is_missing(rows, demo_world):
    won = rows.assign(outcome=1.0)
    assert all(np.isnan(order_draws(won, kind, demo_world.tasks, 3)).all() for kind in KINDS)
    one = rows[rows["domain"] == rows["domain"].iloc[0]]
    assert np.isnan(order_draws(one, OTHER_DOMAIN, demo_world.tasks, 3)[0])


def test_brier_scores_agree_with_sklearn(rows, demo_world):
    each = [brier_score_loss(part["outcome"], part["predicted"].clip(0, 1)) for _, part in rows.groupby("fit")]
    assert brier_draws(rows, demo_world.tasks, 3)[0] == pytest.approx(np.mean(each))


def test_fits_widen_the_interval(demo_world):
    "Two fits, of which one knows all and one nothing: their mean hangs on which are drawn."
    said = invented(demo_world.tasks, ("a",), fits=3).query("split == '0+1'")
    far = said.assign(predicted=np.where(said["fit"] == 0, said["outcome"], said["predicted"]))
    near = said.assign(predicted=said["outcome"] * .1 + said.groupby(["task_id", "turn", "model"])["predicted"]
                       .transform("first"))
    spread = [np.std(order_draws(rows, ALL, demo_world.tasks, 300)) for rows in (far, near)]
    assert spread[0] > 1.5 * spread[1]


# ---------------------------------------------------------------------------- tables

@pytest.fixture(scope="module")
def tables(demo_world):
    "A study's tables, invented: three trials on three test folds, one of them with two fits."
    home = stratified_folds(demo_world.tasks, 3, 0).astype(str)
    said = invented(demo_world.tasks, (PAPER, "x", "Table: domain"))
    said = said.assign(home=said["task_id"].map(home))
    said = said[said["split"] == said["home"].map({"0": "0+1", "1": "1+2", "2": "0+2"})]
    said = said.assign(split=said["home"])[(said["trial"] == PAPER) | (said["fit"] == 0)].reset_index(drop=True)
    each = said[["trial", "split", "fit", "task_id"]].drop_duplicates()
    played = pd.concat([each.assign(rights=r.name) for r in RIGHTS], ignore_index=True)
    played["score"] = np.random.default_rng(4).integers(0, 2, len(played)).astype(float)
    return dict(said=said, played=played)


def test_what_is_chosen_stands_on_every_fold_once(tables, demo_world):
    mixed = with_choice(tables, pd.Series({"0": PAPER, "1": "x", "2": PAPER}), MENDED)
    whole = complete_fits(mixed["said"])
    ours = whole[whole["trial"] == MENDED]
    assert {*ours["fit"]} == {0} and {*ours["task_id"]} == {*demo_world.tasks["task_id"]}
    known = tables["said"][tables["said"]["fit"] == 0]
    for fold, name in {"0": PAPER, "1": "x", "2": PAPER}.items():
        there = (known["trial"] == name) & (known["split"] == fold)
        assert np.array_equal(ours.loc[ours["split"] == fold, "predicted"], known.loc[there, "predicted"])


def test_differences_in_tables_are_differences_of_values(tables, demo_world):
    quality = quality_table(tables["said"], demo_world.tasks, resamples=20).set_index(["measure", "trial"])
    for column, other in dict(less_paper=PAPER, less_table="Table: domain").items():
        for (measure, _), row in quality.iterrows():
            assert row[column] == pytest.approx(row["value"] - quality.loc[(measure, other), "value"], nan_ok=True)
    assert quality.loc[(FIRST, PAPER), "fits"] == 2 and quality.loc[(FIRST, "x"), "fits"] == 1
    said = invented(demo_world.tasks, (PAPER, "x", "Table: domain"))
    table = validation_table(validation_draws(said, demo_world.tasks, QUICK, resamples=20)).set_index("trial")
    less = table["value"] - table["value"]["Table: domain"]
    assert table["less_table"].to_numpy() == pytest.approx(less.to_numpy())


def test_scores_are_paired_with_the_protocols_router(tables, demo_world):
    played = tables["played"]
    protocol = played[played["trial"] == PAPER].rename(columns=dict(split="fold")).assign(
        method="MTRouter", split="test", parameter=0.0, score=lambda t: 1 - t["score"]).drop(columns="trial")
    dear = protocol.assign(parameter=1.0, score=9.0)
    told = protocol.assign(method="Table: domain", score=.25)[protocol["fit"] == 0]
    routed = routed_table(played, pd.concat([protocol, dear, told, protocol.assign(split="ood", score=5.0)]))
    routed = routed.set_index(["rights", "trial"])
    level = played.groupby(["rights", "trial"])["score"].mean()
    for rights in RIGHTS:
        theirs = 1 - level[rights.name, PAPER]
        assert routed.loc[(rights.name, "x"), "less_paper"] == pytest.approx(level[rights.name, "x"] - theirs)
        assert routed.loc[(rights.name, "Table: domain"), "score"] == .25, "the protocol's own table"
    assert (routed["n"] == len(demo_world.tasks)).all() and routed.loc[("open", PAPER), "fits"] == 2


def test_validation_scores_are_means_over_tasks(tables):
    score = validation_score(tables["played"]).set_index("trial")
    by_task = tables["played"].groupby(["trial", "task_id"])["score"].mean().groupby("trial").mean()
    assert score["score"].to_dict() == pytest.approx(by_task.to_dict())
    assert (score["score_low"] < score["score"]).all() and (score["score"] < score["score_high"]).all()


def test_the_epoch_kept_is_the_best_one():
    curves = pd.DataFrame(dict(trial="a", split=["0"] * 3 + ["1"] * 2, fit=0, epoch=[0, 1, 2, 0, 1],
                               train=[3., 2, 1, 3, 2], validation=[3., 1, 2, 1, 4]))
    assert epochs_kept(curves).iloc[0].to_dict() == dict(trial="a", kept=1.5, run=2.5, train=2.5, validation=1.0)


def test_the_probe_reads_prompts_of_other_folds(demo_world):
    probe = domain_probe(demo_world, QUICK)
    names = dict(zip(demo_world.tasks["task_id"], demo_world.tasks["domain"]))
    assert probe["domain"].tolist() == [names[t] for t in probe["task_id"]] and probe["task_id"].is_unique


def test_every_network_of_the_method_learns_the_papers_target_and_is_told_no_more_than_its_state():
    assert all(r.target == "target" and r.beside in (None, ((),)) for r in WITHIN.values())
    assert {r.reads for r in WITHIN.values()} <= {AsItIs, Standardised, Components}
    assert MEAN not in "".join([*WITHIN, *OURS, *TABLES])
