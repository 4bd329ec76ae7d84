"""Analyses of single-turn outcomes against brute force, by hand, and on labels that say nothing."""
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, hypergeom

from mtrouter_nb.analyses.pools import (Routed, accuracy_order, by_bin, clusters_of, count_bins, domain_gain,
                                        estimates_of, greedy_order, interval, task_weights, latency_curves,
                                        latency_limits, latency_table, mean_of_domains, pool_splits, pick_within,
                                        pool_curves, pool_needed, pool_scores, recall_at, routed_of, without_date,
                                        solved_again, subset_means, timed, top_models, unique_solves, yardsticks)
from mtrouter_nb.core.splits import stable_hash
from mtrouter_nb.data.outcomes import SEEDS, from_frame
from mtrouter_nb.single_turn.evaluation import bench_results, rows_of
from mtrouter_nb.single_turn.interface import AvengersProCurve, NearestNeighbours, Queries


def table(n=240, models=5, repeats=1, seed=0, halves=False, domains=3):
    "Random outcomes with costs and seconds; tasks of uneven domains."
    rng = np.random.default_rng(seed)
    names, number = [f"m{j}" for j in range(models)], np.repeat(np.arange(n), repeats)
    ease = rng.normal(0, 1, n)[number, None] + rng.normal(0, .7, models)
    score = (rng.random(ease.shape) < 1 / (1 + np.exp(-ease))) * 1.0
    if halves: score[rng.random(score.shape) < .1] = .5
    rows, group = len(number), np.minimum(number * domains // n, number % domains)
    frame = pd.DataFrame(dict(task_id=np.repeat([f"q{i:03d}" for i in number], models), model=names * rows,
                              domain=np.repeat([f"d{g}" for g in group], models),
                              repeat=np.repeat(np.tile(np.arange(repeats), n), models), score=score.ravel(),
                              cost_usd=rng.random(rows * models),
                              latency_s=(rng.lognormal(0, .5, (rows, models)) * (1 + np.arange(models))).ravel()))
    return from_frame(frame, "random", evidence="simulated")


@pytest.fixture(scope="module")
def outcomes():
    return table()


def resampled_by_hand(matrix, values, resamples=1000):
    "Percentiles of the mean over datasets, drawing the tasks of a dataset one by one."
    rng, means = np.random.default_rng(1), []
    groups = [[np.flatnonzero(matrix.tasks["task_id"] == i) for i in part["task_id"].unique()]
              for _, part in matrix.tasks.groupby("domain", sort=False)]
    for _ in range(resamples):
        means.append(np.mean([values[np.concatenate([g[k] for k in rng.integers(len(g), size=len(g))])].mean()
                              for g in groups]))
    return np.percentile(means, [2.5, 97.5])


@pytest.mark.parametrize("repeats", [1, 3])
def test_intervals_draw_items_within_datasets_and_keep_repeats_together(repeats):
    matrix = table(90, 3, repeats)
    found = interval(mean_of_domains(matrix.score, task_weights(matrix), matrix.domain))
    for m in range(3):
        assert np.allclose([found["low"][m], found["high"][m]], resampled_by_hand(matrix, matrix.score[:, m]), atol=.02)


def test_an_interval_of_one_dataset_is_scipys_bootstrap():
    matrix = table(150, 2, domains=1)
    found = interval(mean_of_domains(matrix.score[:, 0], task_weights(matrix, 4000), matrix.domain))
    theirs = bootstrap((matrix.score[:, 0],), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert np.allclose([found["low"], found["high"]], theirs, atol=.011)


def test_leaders_and_lone_solvers_by_hand():
    cells = {"a": [1, 1, 0, 0, 1], "b": [0, 1, 0, 0, 1], "c": [0, 0, 1, 0, np.nan]}
    frame = pd.DataFrame([(f"q{i}", "x" if i < 2 else "y", m, s) for m, v in cells.items() for i, s in enumerate(v)],
                         columns=["task_id", "domain", "model", "score"])
    matrix = from_frame(frame, "hand")
    weights = task_weights(matrix, 50)
    first = top_models(matrix, weights, 1)
    assert first["model"].tolist() == ["a", "c"] and first["value"].tolist() == [1, .5]
    alone = unique_solves(matrix, weights).set_index("model")
    assert alone["count"].to_dict() == {"a": 1, "b": 0, "c": 1, "any": 2}, "q4 says nothing: c's score is missing"
    assert (alone["n"] == 4).all() and np.isnan(solved_again(matrix, weights)["value"])


def test_a_lone_success_is_followed_through_the_other_runs():
    runs = {("q0", 0): [1, 0], ("q0", 1): [1, 1], ("q0", 2): [0, 0], ("q1", 0): [0, 1], ("q1", 1): [0, 1],
            ("q1", 2): [0, 1]}
    frame = pd.DataFrame([(i, "d", r, m, s) for (i, r), v in runs.items() for m, s in zip("ab", v)],
                         columns=["task_id", "domain", "repeat", "model", "score"])
    matrix = from_frame(frame, "runs")
    # q0 run 0: a alone, and once more in two others; q1: b alone three times, each time twice more
    assert solved_again(matrix, task_weights(matrix, 20))["value"] == pytest.approx((1 + 6) / (2 + 6))


def test_the_gain_of_a_leader_per_dataset_is_not_flattered_by_noise():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame([(f"q{i}", f"d{i % 8}", f"m{j}") for i in range(320) for j in range(20)],
                         columns=["task_id", "domain", "model"])
    matrix = from_frame(frame.assign(score=(rng.random(len(frame)) < .5) * 1.0), "noise")
    weights = task_weights(matrix)
    naive = top_models(matrix, weights, 1)["value"].mean() - matrix.score.mean(0).max()
    gain = domain_gain(matrix, weights)
    assert naive > .08 and gain["low"] < 0 < gain["high"] and abs(gain["value"]) < .05


@pytest.mark.parametrize("halves", [False, True])
def test_the_bins_add_up_to_the_gap(halves):
    matrix = table(halves=halves)
    parts, weights = pool_splits(matrix), task_weights(matrix, 200)
    routed = yardsticks(matrix, parts)
    found = by_bin(matrix, routed, weights)
    wide = found.pivot(index=["router", "quantity"], columns="bin", values="value")
    oracle = routed.score["Oracle"].mean()
    for router, score in routed.score.items():
        assert wide.loc[(router, "gap")].sum() == pytest.approx(oracle - score.mean())
        assert wide.loc[(router, "share of tasks")].sum() == pytest.approx(1)
        if router != "Oracle": assert wide.loc[(router, "share of gap")].sum() == pytest.approx(1)
    right = (matrix.score[routed.rows] > .5).sum(1)
    for label, (low, high) in count_bins(5).items():
        mine = (low <= right) & (right <= high)
        ours = wide.loc[("Random", "accuracy"), label]
        assert ours == pytest.approx(routed.score["Random"][mine].mean() if mine.any() else np.nan, nan_ok=True)


@pytest.mark.parametrize("models", range(2, 80))
def test_bins_cover_every_count_once(models):
    bins = [*count_bins(models).values()]
    assert [k for low, high in bins for k in range(low, high + 1)] == [*range(models + 1)]


def test_a_missing_answer_is_left_out_and_not_wrong(outcomes):
    routed = yardsticks(outcomes, pool_splits(outcomes))
    score, weights = routed.score["Best single"].copy(), task_weights(outcomes, 20)
    score[::3] = np.nan
    found = by_bin(outcomes, Routed(routed.rows, {"R": score}), weights).set_index(["quantity", "bin"])["value"]
    assert (found["accuracy"] * found["share of tasks"]).sum() == pytest.approx(np.nanmean(score))


def test_recall_by_brute_force(outcomes):
    routed = yardsticks(outcomes, pool_splits(outcomes))
    found = recall_at(outcomes, routed, task_weights(outcomes, 20), (1, 2, 3, 9)).set_index(["router", "k"])["value"]
    assert 9 not in found.index.get_level_values("k"), "there are five models"
    right, places = outcomes.score[routed.rows] > .5, sorted(range(5), key=lambda j: stable_hash(f"m{j}"))
    for router, rank in routed.ranking.items():
        for k in (1, 2, 3):
            hits = [right[i, sorted(places, key=lambda j, row=rank[i]: -row[j])[:k]].any()
                    for i in np.flatnonzero(right.any(1))]
            assert found[router, k] == pytest.approx(np.mean(hits))
    r = right.sum(1)[right.any(1)]
    assert found["Random", 2] == pytest.approx(np.mean(1 - hypergeom.pmf(0, 5, r, 2)))
    assert found["Best single", 1] == pytest.approx(routed.score["Best single"][right.any(1)].mean())


def test_all_subsets_of_a_size_by_brute_force():
    rng = np.random.default_rng(3)
    score, estimate = rng.random((7, 6)), rng.random((7, 6))
    for size in range(1, 7):
        each = [score[np.arange(7), [c[k] for k in estimate[:, c].argmax(1)]] for c in
                map(list, combinations(range(6), size))]
        assert np.allclose(subset_means(score, estimate)[:, size - 1], np.mean(each, 0))
        assert np.allclose(subset_means(score, score)[:, size - 1],
                           np.mean([score[:, list(c)].max(1) for c in combinations(range(6), size)], 0))


def test_pools_in_an_order_by_brute_force():
    rng = np.random.default_rng(4)
    score, estimate, order = rng.random((7, 5)), rng.random((7, 5)), np.array([3, 0, 4, 1, 2])
    found = pool_scores(score, estimate, order)
    for k in range(1, 6):
        best = order[:k][estimate[:, order[:k]].argmax(1)]
        assert np.allclose(found[:, k - 1], score[np.arange(7), best])


def test_greedy_takes_the_best_next_model_each_time(outcomes):
    score, dataset = outcomes.score, outcomes.domain
    rng = np.random.default_rng(5)
    for estimate in (score, rng.random(score.shape)):
        def reached(pool, estimate=estimate):
            chosen = np.array(pool)[estimate[:, pool].argmax(1)]
            return np.mean([score[np.arange(len(score)), chosen][dataset == d].mean() for d in np.unique(dataset)])
        order = [*greedy_order(score, estimate, dataset)]
        assert sorted(order) == [*range(5)]
        for k in range(1, 5):
            assert reached(order[:k]) == pytest.approx(max(reached([*order[:k - 1], j]) for j in range(5)
                                                           if j not in order[:k - 1]))
    assert greedy_order(score, score, dataset)[0] == accuracy_order(score, dataset)[0]


def test_pools_are_chosen_without_a_look_at_test_scores(outcomes):
    test = pool_splits(outcomes, (42,))[0][-1]
    shuffled = outcomes.score.copy()
    shuffled[test] = np.random.default_rng(0).permuted(shuffled[test], axis=1)
    other, weights = replace(outcomes, score=shuffled), task_weights(outcomes, 10)
    queries = Queries(np.random.default_rng(1).normal(size=(len(outcomes), 8)).astype("f4"), outcomes.tasks)
    def estimates(matrix): return estimates_of(matrix, queries, lambda seed: NearestNeighbours(seed=seed), (42,))
    ours, theirs = estimates(outcomes), estimates(other)
    assert np.array_equal(ours.test[0], theirs.test[0]) and np.array_equal(ours.held[0], theirs.held[0])
    train = pool_splits(outcomes, (42,))[0][0]
    assert np.array_equal(outcomes.score[train], other.score[train])
    full = {c.who: c.sampled[0, -1] for c in pool_curves(outcomes, weights, {"kNN": ours}, (42,), 5)}
    assert full["oracle"] >= max(full["kNN"], full["best single"])


def test_pool_curves_agree_at_the_full_pool_and_refuse_missing_scores(outcomes):
    queries = Queries(np.random.default_rng(1).normal(size=(len(outcomes), 8)).astype("f4"), outcomes.tasks)
    estimates = {"kNN": estimates_of(outcomes, queries, lambda seed: NearestNeighbours(seed=seed))}
    curves = pool_curves(outcomes, task_weights(outcomes, 50), estimates, subsets=20)
    for who in ("oracle", "best single", "kNN"):
        ends = [c.sampled[:, -1] for c in curves if c.who == who]
        assert np.allclose(ends[0], ends[1]) and np.allclose(ends[0], ends[2])
    assert all(((c.sampled[0] >= c.spread[0] - .03) & (c.sampled[0] <= c.spread[1] + .03)).all()
               for c in curves if c.spread is not None)
    needed = pd.concat([pool_needed(c) for c in curves if c.who == "oracle"])
    assert (needed["low"] <= needed["value"]).all() and (needed["value"] <= needed["high"]).all()
    holed = replace(outcomes, score=np.where(np.arange(len(outcomes))[:, None] == 3, np.nan, outcomes.score))
    with pytest.raises(ValueError, match="complete"): pool_curves(holed, task_weights(holed, 5), {})


def test_routers_of_the_bench_stand_at_the_setting_that_validation_chose(tmp_path, monkeypatch, outcomes):
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))
    queries = Queries(np.random.default_rng(1).normal(size=(len(outcomes), 8)).astype("f4"), outcomes.tasks)
    routers = {"kNN": lambda seed: NearestNeighbours(seed=seed),
               "Avengers-Pro": lambda seed: AvengersProCurve(seed=seed)}
    bench = bench_results(outcomes, queries, routers, SEEDS[:2], workers=1, progress=False)
    routed, parts = routed_of(bench), pool_splits(outcomes, SEEDS[:2])
    assert np.array_equal(routed.rows, np.concatenate([part[-1] for part in parts]))
    for name in routers:
        done = 0
        for seed, (*_, test) in zip(SEEDS, parts):
            held = np.concatenate(rows_of(outcomes, seed)[1:3])
            fit, mine = bench.fits[name, seed], routed.score[name][done:done + len(test)]
            average = mean_of_domains(fit.held_score.T, np.ones((1, len(held))), outcomes.domain[held])[0]
            best = fit.score[np.isclose(average, average.max())]
            assert any(np.allclose(mine, row) for row in best)
            done += len(test)
        assert routed.ranking[name].shape == (len(routed.rows), 5)
    with pytest.raises(ValueError, match="same rows"): routed | yardsticks(outcomes, parts[:1])


def test_the_same_split_three_times_is_no_more_evidence(outcomes):
    "Items are drawn once for all seeds, so an interval does not shrink with their number."
    weights = task_weights(outcomes, 100)
    def sampled(seeds):
        parts = pool_splits(outcomes, seeds)
        curves = [interval(c.sampled) for c in pool_curves(outcomes, weights, {}, seeds, 5)]
        bins = by_bin(outcomes, yardsticks(outcomes, parts), weights)[["value", "low", "high"]].to_dict("records")
        return [*curves, domain_gain(outcomes, weights, seeds), *bins]
    for one, three in zip(sampled((42,)), sampled((42, 42, 42))):
        for end in ("value", "low", "high"): assert np.allclose(one[end], three[end], equal_nan=True)


def test_no_number_turns_with_the_order_of_models(outcomes):
    "Two models that are level everywhere, and everyone's columns moved about."
    twins = replace(outcomes, **{f: np.column_stack([getattr(outcomes, f)[:, [0, 0, 1, 1]], getattr(outcomes, f)[:, 2]])
                                 for f in ("score", "cost", "latency")})
    moved = twins.select(["m4", "m1", "m3", "m0", "m2"])
    def everything(matrix):
        weights, parts = task_weights(matrix, 20), pool_splits(matrix, (42,))
        simple = yardsticks(matrix, parts)
        curves = pool_curves(matrix, weights, {}, (42,), 10)
        return [top_models(matrix, weights), recall_at(matrix, simple, weights), by_bin(matrix, simple, weights),
                latency_curves(matrix, weights, {"domain": [matrix.domain]}, seeds=(42,)),
                pd.concat([pd.DataFrame(c.sampled).assign(who=c.who, how=c.curation) for c in curves]),
                pd.DataFrame([domain_gain(matrix, weights, (42,))])]
    for one, other in zip(everything(twins), everything(moved)):
        pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-9)


def test_quantiles_are_numpys(outcomes):
    found = latency_table(timed(outcomes), task_weights(outcomes, 10)).set_index(["quantity", "model"])
    for m, model in enumerate(outcomes.models):
        for name, q in (("p50", .5), ("p95", .95)):
            assert found.loc[(name, model), "value"] == np.quantile(outcomes.latency[:, m], q, method="inverted_cdf")
        assert found.loc[("cost", model), "value"] == pytest.approx(outcomes.cost[:, m].mean())


def test_a_latency_of_zero_is_missing_and_a_model_without_latency_is_left_out(outcomes):
    latency = outcomes.latency.copy()
    latency[0, 0], latency[:, 1] = 0, np.nan
    kept = timed(replace(outcomes, latency=latency))
    assert kept.models == ("m0", "m2", "m3", "m4")
    assert np.isnan(kept.latency[0, 0]) and np.isnan(kept.latency).sum() == 1


def test_the_pick_under_a_limit_by_brute_force(outcomes):
    limits, weight = np.array([.5, 1.5, 3, 20]), np.ones(len(outcomes))
    for statistic, measure in (("mean", np.mean), ("p95", lambda v: np.percentile(v, 95))):
        picks = pick_within(outcomes.score, outcomes.latency, weight, outcomes.domain, limits, statistic, 4)
        for i, limit in enumerate(limits):
            for g in range(3):
                mine = outcomes.domain == g
                ok = [m for m in range(5) if measure(outcomes.latency[mine, m]) <= limit]
                best = max(ok, key=lambda m: (outcomes.score[mine, m].mean(), -m)) if ok else -1
                assert picks[i, g] == best
        assert (picks[:, 3] == -1).all(), "no row of that group was seen"


def test_curves_under_a_limit(outcomes):
    matrix, parts = timed(outcomes), pool_splits(outcomes)
    weights = task_weights(matrix, 100)
    everyone = {"everyone": [np.zeros(len(matrix), int)] * 5, "domain": [matrix.domain] * 5}
    found = latency_curves(matrix, weights, everyone)
    at = found.set_index(["method", "quantity", "limit"])["value"].sort_index()
    assert np.allclose(at["everyone", "accuracy"], at["single", "accuracy"], equal_nan=True)
    assert (at["everyone", "gain"].dropna() == 0).all()
    best = yardsticks(matrix, parts).score["Best single"]
    rows = np.concatenate([part[-1] for part in parts])
    assert at["single", "accuracy"].iloc[-1] == pytest.approx(
        mean_of_domains(best, np.ones((1, len(rows))), matrix.domain[rows])[0]), "the loosest limit is none"
    limits = latency_limits(matrix, "mean")
    assert (np.diff(limits) > 0).all() and limits[-1] >= matrix.latency.mean(0).max()


def test_clusters_are_of_training_prompts(outcomes):
    rng = np.random.default_rng(0)
    vectors = (np.eye(3)[outcomes.domain] + rng.normal(0, .05, (len(outcomes), 3))).astype("f4")
    parts = pool_splits(outcomes, (42,))
    labels, = clusters_of(outcomes, vectors, parts, (42,), prompts=50)
    assert len(np.unique(labels)) == 3
    assert all(len(np.unique(labels[outcomes.domain == d])) == 1 for d in range(3))
    moved = vectors.copy()
    moved[parts[0][-1]] = rng.normal(size=(len(parts[0][-1]), 3))
    again, = clusters_of(outcomes, moved, parts, (42,), prompts=50)
    assert np.array_equal(labels[parts[0][0]], again[parts[0][0]]), "test prompts move no centre"


def test_short_names_stay_distinct():
    names = ["gpt-4o-2024-05-13", "gpt-4o-2024-08-06", "claude-3-5-sonnet-20240620", "claude-3-5-sonnet-20241022",
             "NousResearch_Hermes-2-Pro-Mistral-7B", "snowflake_arctic", "mistral-large-2407"]
    assert [*map(without_date, names)] == [
        "gpt-4o 24-05", "gpt-4o 24-08", "claude-3-5-sonnet 24-06", "claude-3-5-sonnet 24-10", "Hermes-2-Pro-Mistral-7B",
        "snowflake_arctic", "mistral-large-2407"]
