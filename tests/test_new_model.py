"""A model left out: nothing of it is learned; what is said of it agrees with loops, and with worlds of known truth."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from mtrouter_nb.analyses.model_embeddings import prompt_rows
from mtrouter_nb.analyses.new_model import (EVERY, FACTS, FIRST, MEAN, NEAREST, NETWORK, OTHERS, PEER, RUNS, TABLE,
                                            WITHOUT, SomeModels, agreement, auc_table, data_without, domain_rates,
                                            first_decisions, left_out_tables, level_table, many_study, means_of,
                                            new_model_study, opinions, panels, place_table, routed_table, stand_ins,
                                            test_rows as rows_asked, world_without)
from mtrouter_nb.analyses.sensitivity import quick_fits
from mtrouter_nb.core.splits import sample_tasks
from mtrouter_nb.data.mint import mint_models
from mtrouter_nb.data.pool import ModelPool
from mtrouter_nb.multi_turn.evaluation import Experiment, Results
from mtrouter_nb.multi_turn.estimator import TrainingSet
from mtrouter_nb.multi_turn.replay import MATCHED, OPEN, ReplayWorld
from mtrouter_nb.multi_turn.rollout import roll
from mtrouter_nb.multi_turn.routers import QRouter
from mtrouter_nb.multi_turn.trials import SMOKE, EvaluationConfig, Split, fold_data, splits

FEW = replace(SMOKE, epochs=2)
NEW = "middle-30b"


@pytest.fixture(scope="module")
def world(demo_world):
    "Forty tasks of the demo log."
    log = demo_world.log
    return ReplayWorld(log.select(task_ids=sample_tasks(log.tasks, 40)), demo_world.pool, demo_world.encoder)


@pytest.fixture(scope="module")
def split(world):
    return splits(world.tasks, FEW.folds)[0]


@pytest.fixture(scope="module")
def tables(world, split):
    return left_out_tables(world, split, FEW, [NEW])


@pytest.fixture(scope="module")
def study(world):
    return new_model_study(Experiment(world, FEW, Results(*[pd.DataFrame()] * 5)), workers=1, progress=False)


# ---------------------------------------------------------------------------- nothing of it is learned

def test_its_runs_are_gone_and_the_tasks_stay(world, split):
    log = world.log
    lonely = split.train[0]
    only = log.episodes[(log.episodes["task_id"] != lonely) | (log.episodes["model"] == NEW)]
    log = replace(log, episodes=only, turns=log.turns[log.turns["episode_id"].isin(only["episode_id"])])
    rest = world_without(ReplayWorld(log, world.pool, world.encoder), [NEW])
    assert list(rest.tasks["task_id"]) == list(world.tasks["task_id"]) and NEW not in set(rest.log.turns["model"])
    assert rest.absent[rest.task_index[lonely]].all(), "nobody else has a run there"
    data = data_without(ReplayWorld(log, world.pool, world.encoder), [NEW], split.train, FEW)
    assert lonely not in set(data.task) and not (data.action == world.pool.index(NEW)).any()


def test_data_are_the_protocols_own_of_the_world_without_it(world, split):
    names = [n for n in world.pool.names if n != NEW]
    small = ReplayWorld(world.log.select(models=names), world.pool.subset(names), world.encoder)
    ours, own = data_without(world, [NEW], split.train, FEW), fold_data(small, split.train, FEW)
    assert np.array_equal(ours.x, own.x) and np.array_equal(ours.target, own.target)
    assert [world.pool.names[a] for a in ours.action] == [names[a] for a in own.action]


def test_its_residual_stays_zero(world, split):
    data = data_without(world, [NEW], split.train, FEW)
    at = world.pool.index(NEW)
    for estimator in quick_fits(data, world.pool, replace(FEW, epochs=6)):
        residual = estimator.network.models.residual.weight.detach().numpy()
        assert (residual[at] == 0).all() and (np.delete(residual, at, 0) != 0).all()


def turned(log, rows):
    "The outcomes of the episodes in `rows` turned round."
    e = log.episodes
    return replace(log, episodes=e.assign(score=np.where(rows, 1 - e["score"], e["score"]),
                                          success=np.where(rows, ~e["success"], e["success"])))


def test_neither_its_outcomes_nor_those_of_test_tasks_change_what_is_said(world, split, tables):
    e = world.log.episodes
    hidden = (e["model"] == NEW) | e["task_id"].isin(split.test)
    other = ReplayWorld(turned(world.log, hidden), world.pool, world.encoder)
    said = left_out_tables(other, split, FEW, [NEW])["said"]
    assert np.array_equal(said["predicted"], tables["said"]["predicted"])
    assert not np.array_equal(said["outcome"], tables["said"]["outcome"])
    graded = e.assign(score=np.where(hidden, e["score"], 1 - e["score"]))  # a success that goes on would have no state
    seen = ReplayWorld(replace(world.log, episodes=graded), world.pool, world.encoder)
    assert not np.allclose(left_out_tables(seen, split, FEW, [NEW])["said"]["predicted"], said["predicted"])


def test_nor_does_what_it_wrote_on_training_tasks(world, split, tables):
    turns = world.log.turns
    mine = (turns["model"] == NEW) & turns["task_id"].isin(split.train)
    log = replace(world.log, turns=turns.assign(action=turns["action"].where(~mine, "Something else.")))
    said = left_out_tables(ReplayWorld(log, world.pool, world.encoder), split, FEW, [NEW])["said"]
    assert np.array_equal(said["predicted"], tables["said"]["predicted"])


def test_many_at_once_learn_nothing_of_those_left_out(world, split):
    rows, out = prompt_rows(world), ["novice-3b", NEW]
    hidden = np.isin(rows.action, [world.pool.index(m) for m in out]) | np.isin(rows.task, split.test)
    other = replace(rows, score=np.where(hidden, 1 - rows.score, rows.score),
                    target=np.where(hidden, 1 - rows.target, rows.target))
    one, two = (first_decisions(r, world.tasks, world.pool, split, FEW, out) for r in (rows, other))
    assert np.array_equal(one["predicted"], two["predicted"]) and np.allclose(one["outcome"], 1 - two["outcome"])


# ---------------------------------------------------------------------------- against loops

def test_stand_ins_agree_with_a_loop():
    rng = np.random.default_rng(0)
    facts, seen = rng.integers(0, 3, (9, 2)).astype(float), rng.random(9) < .7
    tellers = stand_ins(facts, seen)
    alone = stand_ins(facts, np.arange(9) == 4)
    assert np.isnan(alone[OTHERS][4]).all() and (alone[NEAREST][[0, 8], 4] == 1).all()
    for m in range(9):
        others = [k for k in range(9) if seen[k] and k != m]
        far = {k: ((facts[k] - facts[m]) ** 2).sum() for k in others}
        near = [k for k in others if far[k] == min(far.values())]
        for name, chosen in ((OTHERS, others), (NEAREST, near)):
            assert tellers[name][m] == pytest.approx([(k in chosen) / len(chosen) for k in range(9)])


def test_domain_rates_skip_what_is_missing():
    score = pd.DataFrame([[1, np.nan], [0, 1], [1, 0], [0, 0], [1, 1]], list("abcde"), ["m", "n"], dtype=float)
    rates = domain_rates(score, pd.Series(list("xxxyz"), list("abcde")), ["a", "b", "d"])
    assert rates.loc[["a", "b", "c"]].to_numpy().tolist() == [[.5, 1]] * 3
    assert rates.loc["d"].tolist() == [0, 0] and rates.loc["e"].tolist() == pytest.approx([1 / 3, .5])


def test_opinions_agree_with_a_loop(world, split):
    names, log = world.pool.names, world.log
    fits = quick_fits(data_without(world, [NEW], split.train, FEW), world.pool, FEW)
    rows, seen = rows_asked(world, split, [NEW]), np.array(names) != NEW
    rates = pd.DataFrame(np.random.default_rng(0).random((len(rows), 4)), columns=names)
    said = opinions(rows, fits, np.where(seen, rates, np.nan), world.pool, seen)
    said = said.set_index(["model", "task_id", "turn", "by", "source", "fit"])["predicted"]
    tellers, count = stand_ins(world.pool.features(), seen), 0
    by_fit = [e.predict(rows.x)[0] for e in fits]
    for i, (model, task, turn) in enumerate(zip(rows.action, rows.task, rows.situation["turn"])):
        own = FACTS if names[model] == NEW else PEER
        for fit, score in enumerate(by_fit):
            assert said[names[model], task, turn, NETWORK, own, fit] == score[i, model]
            count += 1
        if names[model] != NEW:
            assert said[names[model], task, turn, TABLE, PEER, 0] == rates.iloc[i, model]
            count += 1
            continue
        for name, weights in tellers.items():
            for by, fit, score in [(NETWORK, f, s) for f, s in enumerate(by_fit)] + [(TABLE, 0, rates.to_numpy())]:
                value = sum(weights[model, k] * score[i, k] for k in range(4) if seen[k])
                assert said[names[model], task, turn, by, name, fit] == pytest.approx(value, abs=1e-6)
                count += 1
    assert count == len(said)
    turns = log.turns[log.turns["task_id"].isin(split.test)]
    assert len(rows) == (turns["model"] == NEW).sum() + ((turns["model"] != NEW) & (turns["turn"] == 0)).sum()


def test_auc_is_sklearns_mean_over_fits(study):
    table = auc_table(study["said"], resamples=50).set_index(["turns", "model", "by", "source"])
    said = study["said"].query("source != @PEER")
    for turns, part in ((FIRST, said.query("turn == 0")), (EVERY, said)):
        for key, rows in part.groupby(["model", "by", "source"]):
            each = [roc_auc_score(g["outcome"] > .5, g["predicted"]) for _, g in rows.groupby("fit")]
            assert table.loc[(turns, *key), "auc"] == pytest.approx(np.mean(each))
    one = table["auc"].unstack("model")
    assert one[MEAN].to_numpy() == pytest.approx(one.drop(columns=MEAN).mean(axis=1).to_numpy())
    facts, others = (table.xs(teller, level=("by", "source")) for teller in ((NETWORK, FACTS), (TABLE, OTHERS)))
    assert others["gain"].to_numpy() == pytest.approx((facts["auc"] - others["auc"]).to_numpy())
    assert (table["auc_low"] <= table["auc"] + 1e-9).all() and (table["auc"] <= table["auc_high"] + 1e-9).all()


def test_levels_and_places_by_pandas(study, world):
    said = study["said"]
    first = said[said["turn"] == 0]
    levels = level_table(said, 50).set_index(["model", "by", "source"])
    mean = first[first["source"] != PEER].groupby(["model", "by", "source"])["predicted"].mean()
    means = means_of(said).set_index(["model", "by", "source"])
    for table in (levels, means):
        assert table["predicted"].to_numpy() == pytest.approx(mean[table.index].to_numpy())
    assert np.allclose(means["outcome"], levels.loc[means.index, "outcome"])
    target = first[first["source"] == RUNS].drop_duplicates(["model", "task_id"]).groupby("model")["target"].mean()
    assert (levels["predicted"] - levels["bias"]).to_numpy() == pytest.approx(
        target[levels.index.get_level_values("model")].to_numpy())
    places = place_table(said).set_index("model")
    for model in world.pool.names:
        level = first[(first["left_out"] == model) & (first["by"] == NETWORK) & first["source"].isin([FACTS, PEER])]
        order = level.groupby("model")["predicted"].mean().sort_values(ascending=False)
        assert places.loc[model, "place"] == 1 + list(order.index).index(model)
    success = world.log.episodes.groupby("model")["score"].mean()
    assert (places["by_outcome"] == success.rank(ascending=False, method="min")[places.index]).all()


def test_pools_with_and_without_it_are_played_by_the_same_fits(world, split, tables):
    fits = quick_fits(data_without(world, [NEW], split.train, FEW), world.pool, FEW)
    tasks, rows = world.task_index[list(split.test)].to_numpy(), tables["rows"]
    rest = world_without(world, [NEW])
    places = [world.pool.index(n) for n in rest.pool.names]
    for rights in (MATCHED, OPEN):
        fewer = [SomeModels(e, places) for e in fits]
        for way, own, estimators in ((FACTS, world, fits), (WITHOUT, rest, fewer)):
            for fit, estimator in enumerate(estimators):
                played = roll(own, QRouter(estimator), tasks, rights, FEW.seed)
                mine = rows[(rows["rights"] == rights.name) & (rows["method"] == way) & (rows["fit"] == fit)]
                assert np.array_equal(mine["score"], played.episodes["score"])
                acted = tables["turns"].query("rights == @rights.name and method == @way and fit == @fit")
                count = pd.Series(np.array(own.pool.names)[played.moves["model"]]).value_counts()
                assert acted.set_index("model")["turns"].to_dict() == {n: count.get(n, 0) for n in own.pool.names}


def test_routed_differences_by_pandas(study, world):
    table = routed_table(study["rows"], study["turns"]).set_index(["rights", "model", "way", "other"])
    rows, turns = study["rows"], study["turns"]
    for rights in ("matched", "open"):
        mean = rows[rows["rights"] == rights].groupby(["left_out", "method"])["score"].mean()
        found = table.loc[rights]
        for model in world.pool.names:
            value = {FACTS: mean[model, FACTS], WITHOUT: mean[model, WITHOUT], RUNS: mean["", RUNS]}
            for way, other in ((FACTS, WITHOUT), (RUNS, WITHOUT), (FACTS, RUNS)):
                assert found.loc[(model, way, other), "difference"] == pytest.approx(value[way] - value[other])
            acted = turns.query("rights == @rights and left_out == @model and method == @FACTS")
            share = acted.loc[acted["model"] == model, "turns"].sum() / acted["turns"].sum()
            assert found.loc[(model, FACTS, WITHOUT), "share"] == pytest.approx(share)
        each = found["difference"].unstack("model")
        assert each[MEAN].to_numpy() == pytest.approx(each.drop(columns=MEAN).mean(axis=1).to_numpy())


def test_order_is_scipys_and_the_mean_of_the_others_has_none():
    rng = np.random.default_rng(0)
    means = pd.concat([pd.DataFrame(dict(model=[f"m{i}" for i in range(9)], by=NETWORK, source=source,
                                          predicted=rng.random(9), outcome=np.linspace(0, 1, 9)))
                        for source in (FACTS, OTHERS, NEAREST)])
    table = agreement(means.sample(frac=1, random_state=1), resamples=200).set_index("source")
    for source, rows in means.groupby("source"):
        rho = np.nan if source == OTHERS else spearmanr(rows["predicted"], rows["outcome"]).statistic
        assert table.loc[source, "rho"] == pytest.approx(rho, nan_ok=True)
        error = (rows["predicted"] - rows["outcome"]).abs().mean()
        assert table.loc[source, "error"] == pytest.approx(error)
        assert table.loc[source, "excess"] == pytest.approx(error - table.loc[FACTS, "error"])


def test_panels_hold_every_model_once_and_are_those_of_their_names():
    names = mint_models()
    found = panels(names)
    assert sorted(sum(found, ())) == names and [len(p) for p in found] == [12, 12, 12, 12, 4]
    assert found == panels(np.random.default_rng(0).permutation(names))
    assert sorted(found[0]) == ["CodeActAgent-Llama-2-7b", "CodeActAgent-Mistral-7b-v0.1", "Llama-2-13b-chat-hf",
                                "Llama-2-7b-chat-hf", "Mistral-7B-v0.1", "OpenMath-Mistral-7B-v0.1-hf",
                                "Starling-LM-7B-alpha", "WizardMath-7B-V1.1", "deepseek-llm-67b-chat",
                                "lemur-70b-chat-v1", "lemur-70b-v1", "vicuna-7b-v1.5"]


# ---------------------------------------------------------------------------- worlds of known truth

def made(levels, prices, n=240, seed=0):
    "First decisions of models of the given levels; the state tells the task's ease, which is uniform."
    rng = np.random.default_rng(seed)
    ease, m = rng.random(n), len(levels)
    state = np.column_stack([ease, ease**2, rng.normal(size=(n, 3))]).astype("f4")
    right = (rng.random((n, m)) < ease[:, None] ** (1 / levels - 1)).astype("f4")  # mean over u: the level
    tasks = pd.DataFrame(dict(task_id=[f"t{i:03d}" for i in range(n)], domain=np.where(np.arange(n) % 2, "a", "b")))
    task, model = (g.ravel() for g in np.meshgrid(np.arange(n), np.arange(m), indexing="ij"))
    rows = TrainingSet(x=state[task], action=model, target=right.ravel(), score=right.ravel(),
                       cost=np.zeros(n * m, "f4"), task=tasks["task_id"].to_numpy(object)[task])
    pool = ModelPool(pd.DataFrame(dict(input_usd_per_mtok=prices, output_usd_per_mtok=prices),
                                  index=[f"m{i:02d}" for i in range(m)]))
    fold = np.arange(n) // 2 % 2
    return rows, tasks, pool, Split("test", "0", tuple(tasks["task_id"][fold == 1]), tuple(tasks["task_id"][fold == 0]))


CONFIG = EvaluationConfig(fits=2, epochs=40)


def test_where_facts_tell_everything_new_models_are_ranked_right():
    level = np.linspace(.15, .85, 15)
    rows, tasks, pool, split = made(level, 2.0 ** np.arange(15))
    out = [pool.names[i] for i in (3, 7, 11)]
    said = first_decisions(rows, tasks, pool, split, CONFIG, out)
    whole = first_decisions(rows, tasks, pool, split, CONFIG, [])
    means = means_of(pd.concat([said, whole]))
    own = means[(means["source"] == FACTS) & (means["by"] == NETWORK)].set_index("model")
    assert own.loc[out, "predicted"].is_monotonic_increasing
    assert (own["predicted"] - own["outcome"]).abs().max() < .15 < own["outcome"].std()
    found = agreement(means[means["model"].isin(out)], resamples=50).set_index(["by", "source"])
    assert found.loc[(NETWORK, FACTS), "rho"] == 1 and found.loc[(TABLE, OTHERS), "excess"] > .05


def test_where_facts_are_noise_they_add_nothing_to_the_mean_of_the_others():
    rng = np.random.default_rng(3)
    level = rng.permutation(np.linspace(.15, .85, 15))
    rows, tasks, pool, split = made(level, 2.0 ** rng.permutation(15), 160)
    said = pd.concat([first_decisions(rows, tasks, pool, split, CONFIG, out) for out in (*panels(pool.names, 5), [])])
    table = auc_table(said, 100).query("turns == @FIRST and model == @MEAN").set_index(["by", "source"])
    assert abs(table.loc[(NETWORK, OTHERS), "gain"]) < .03 < .55 < table.loc[(NETWORK, FACTS), "auc"]
    found = agreement(means_of(said), resamples=500).set_index(["by", "source"])
    assert found.loc[(NETWORK, FACTS), "rho_low"] < .2 < .8 < found.loc[(NETWORK, RUNS), "rho"]
    assert found.loc[(NETWORK, OTHERS), "excess"] < .02 and found.loc[(NETWORK, RUNS), "excess_high"] < 0


# ---------------------------------------------------------------------------- order

def test_a_pool_in_another_order_says_the_same(world, split, tables):
    other = ReplayWorld(world.log, world.pool.subset(world.pool.names[::-1]), world.encoder)
    again = left_out_tables(other, split, FEW, [NEW])
    key = ["by", "source", "fit", "model", "task_id", "turn"]
    one, two = (t["said"].set_index(key)["predicted"].sort_index() for t in (tables, again))
    assert one.index.equals(two.index) and one.to_numpy() == pytest.approx(two.to_numpy(), abs=1e-3)
    score = [t["rows"].groupby(["rights", "method"])["score"].mean() for t in (tables, again)]
    assert score[0].to_numpy() == pytest.approx(score[1].to_numpy(), abs=.05)


def test_rows_and_models_in_another_order_give_the_same_tables(study):
    rng = np.random.default_rng(0)
    mixed = {name: part.iloc[rng.permutation(len(part))].reset_index(drop=True) for name, part in study.items()}
    pairs = [(level_table(s["said"], 50).set_index(["model", "by", "source"]),
              place_table(s["said"]).set_index("model")) for s in (study, mixed)]
    for one, two in zip(*pairs):
        pd.testing.assert_frame_equal(one.sort_index(), two.sort_index(), check_like=True)
    gains = [routed_table(s["rows"], s["turns"]).set_index(["rights", "model", "way", "other"]).sort_index()
             for s in (study, mixed)]
    values = ["score", "difference", "share"]
    pd.testing.assert_frame_equal(gains[0][values], gains[1][values])


# ---------------------------------------------------------------------------- the whole

def test_the_study_leaves_out_every_model_and_none(study, world):
    said = study["said"]
    assert set(said["left_out"]) == {"", *world.pool.names} and set(said["fold"]) == {"0", "1"}
    assert (said.query("source == @FACTS")["model"] == said.query("source == @FACTS")["left_out"]).all()
    assert not said.duplicated(["left_out", "by", "source", "fit", "model", "task_id", "turn"]).any()
    assert said["predicted"].notna().all()


def test_many_models_are_left_out_once_and_asked_on_every_task(world):
    many = many_study(world, FEW, 3, workers=1, progress=False)
    facts = many.query("source == @FACTS")
    assert set(facts["model"]) == set(world.pool.names) and set(many["panel"]) == {0, 1, 2}
    assert facts.groupby(["model", "fit"])["task_id"].nunique().eq(len(world.tasks)).all()
    assert facts.groupby("model")["panel"].nunique().eq(1).all() and many["predicted"].notna().all()


def two_new_models(facts, runs, without):
    "Rows and turns of `routed`, from scores (40 tasks, 3 fits) that are the same for either of two new models."
    rows, turns = [], []
    for way, score in ((FACTS, facts), (RUNS, runs), (WITHOUT, without)):
        for out in [""] if way == RUNS else ["a", "b"]:
            task, fit = np.indices(score.shape).reshape(2, -1)
            rows.append(pd.DataFrame(dict(rights="matched", fold=np.where(task % 2, "1", "0"), method=way, left_out=out,
                                          task_id=[f"t{i:02d}" for i in task], fit=fit, score=score.ravel())))
            turns.append(pd.DataFrame(dict(rights="matched", method=way, left_out=out, model=["a", "b"], turns=1)))
    return pd.concat(rows, ignore_index=True), pd.concat(turns, ignore_index=True)


def test_what_the_same_fits_choose_is_paired_over_fits_and_the_whole_pool_is_one():
    rng = np.random.default_rng(0)
    without, runs = rng.random((40, 3)) + [0, .4, .8], rng.random((40, 3)) + [0, .4, .8]
    table = routed_table(*two_new_models(without, runs, without)).set_index(["model", "way", "other"])
    for model in ("a", "b", MEAN):
        r = table.loc[(model, FACTS, WITHOUT)]
        assert (r["difference"], r["difference_low"], r["difference_high"]) == (0, 0, 0), "never another choice"
    flat = np.repeat(without.mean(1, keepdims=True), 3, 1)
    table = routed_table(*two_new_models(flat, runs, flat)).set_index(["model", "way", "other"])
    one, both = (table.loc[(m, RUNS, WITHOUT), "difference_high"] - table.loc[(m, RUNS, WITHOUT), "difference_low"]
                 for m in ("a", MEAN))
    assert np.isclose(one, both, rtol=.1), "the mean over models has the fits of one network, not of two"
