"""Noise: the bracket against slow loops, the estimators against known truth, pass@k against enumeration."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

import mtrouter_nb.analyses.noise as noise
from mtrouter_nb.analyses.noise import (CEILING, SMOKE_NOISE, BetaBinomial, LowRank, NoiseConfig, Spiked, all_fail,
                                        best_fixed_set, ceiling, errors, greedy, half_splits, held_out_likelihood,
                                        known_truth, leave_one_run_out, miss, naive_oracle, noise_results, noise_table,
                                        pooled_oracle, repeats_of, retry_or_others, retry_table, shared_luck,
                                        simulated_odds, simulated_repeats)
from mtrouter_nb.data.outcomes import OutcomeError, from_frame


@pytest.fixture(scope="module")
def small():
    "Four runs of eight models on sixty tasks."
    return simulated_repeats(simulated_odds())


def slow_choice(success, train, held, task, by_means):
    "Expected score on the runs `held` of who did best on `train`, written as loops."
    wins = [sum(success[r][task][m] for r in train) for m in range(success.shape[2])]
    tied = [m for m in range(len(wins)) if wins[m] == max(wins)]
    if by_means:
        total = [sum(success[r][t][m] for r in train for t in range(success.shape[1])) for m in tied]
        tied = [m for m, x in zip(tied, total) if x == max(total)]
    return np.mean([np.mean([success[r][task][m] for r in held]) for m in tied])


@pytest.mark.parametrize("ties", ["means", "random"])
def test_choosing_on_some_runs_is_what_loops_say(ties):
    success = np.random.default_rng(3).random((4, 12, 5)) < 0.5
    runs, by_means = set(range(4)), ties == "means"
    for size, found in ((3, leave_one_run_out(success, ties)), (2, half_splits(success, ties))):
        slow = [np.mean([slow_choice(success, train, sorted(runs - set(train)), t, by_means)
                         for train in combinations(range(4), size)]) for t in range(12)]
        np.testing.assert_allclose(found, slow)


def test_the_run_that_scores_is_never_read_by_the_choice():
    success = np.random.default_rng(0).random((4, 30, 6)) < 0.5
    for out in range(4):
        train = [r for r in range(4) if r != out]
        flipped = success.copy()
        flipped[out] = ~flipped[out]
        np.testing.assert_allclose(noise.select_and_score(success, train) + noise.select_and_score(flipped, train), 1)


def test_oracles_are_what_loops_say(small):
    x = small.success
    assert np.allclose(naive_oracle(x), [np.mean([any(x[r, t]) for r in range(4)]) for t in range(60)])
    assert np.allclose(pooled_oracle(x), [any(x[r, t].any() for r in range(4)) for t in range(60)])


def test_the_bracket_holds_the_known_ceiling_in_expectation():
    odds = simulated_odds(n=50, models=10)
    below, above = [], []
    for seed in range(60):
        success = simulated_repeats(odds, seed=seed).success
        below.append([half_splits(success).mean(), leave_one_run_out(success).mean()])
        above.append([naive_oracle(success).mean(), pooled_oracle(success).mean()])
    half, loro = np.mean(below, axis=0)
    naive, pooled = np.mean(above, axis=0)
    assert half < loro < odds.max(1).mean() < naive < pooled
    assert naive == pytest.approx((1 - (1 - odds).prod(1)).mean(), abs=0.01)


# ---------------------------------------------------------------------------- the ceiling

@pytest.mark.parametrize("own", [1.0, 2.0])
def test_posterior_simulation_recovers_a_known_ceiling_and_the_maximum_of_means_does_not(own):
    odds = np.array([simulated_odds(n=120, models=12, own=own, seed=s) for s in range(6)])
    table = errors(known_truth(odds, 4, LowRank(0), 120, 80))["value"]
    assert abs(table["model-based"]) < 0.012
    assert table["maximum of posterior means"] < -0.02 and table["half-splits, random ties"] < -0.05
    assert table["highest mean of all runs"] > 0.02 and table["naive oracle"] > 0.03


def test_a_beta_truth_is_recovered_by_the_beta_candidate():
    "With the 38 models of MCPMark; a beta per task from a dozen cells is too rough (2.5 points low)."
    rng = np.random.default_rng(0)
    odds = np.array([rng.beta(*rng.uniform(0.3, 2, (2, 200, 1)), (200, 38)) for _ in range(4)])
    assert abs(errors(known_truth(odds, 4, BetaBinomial("task"), 100, 0)).loc["model-based", "value"]) < 0.02


def test_posterior_means_are_calibrated():
    odds = simulated_odds(n=300, models=12)
    mean = LowRank(0).draw(simulated_repeats(odds).wins, 4, 200, 100).mean(0)
    groups = pd.qcut(mean.ravel(), 8, labels=False, duplicates="drop")
    gap = pd.Series(odds.ravel() - mean.ravel()).groupby(groups).mean()
    assert gap.abs().max() < 0.03


def test_two_chains_agree_and_one_seed_repeats(small):
    first, again, other = (LowRank(1).draw(small.wins, 4, 400, 100, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and abs(ceiling(first).mean() - ceiling(other).mean()) < 0.012


def test_factors_are_preferred_where_there_are_factors():
    rng = np.random.default_rng(1)
    odds = 1 / (1 + np.exp(-3 * rng.standard_normal((120, 2)) @ rng.standard_normal((2, 15))))
    success = simulated_repeats(odds).success
    flat, factors = (held_out_likelihood(success, LowRank(k, own=False), 100, 100).mean() for k in (0, 2))
    assert factors > flat + 0.05


def test_shared_outages_are_seen(small):
    outage = small.success & (np.random.default_rng(0).random((4, 60, 1)) < 0.7)
    assert shared_luck(outage)["p"] < 0.01 < shared_luck(small.success)["p"]


# ---------------------------------------------------------------------------- a ceiling without knowing the truth

def spiked_odds(n, models, seed):
    "Half of the cells at 0, ½ or 1, half beta, around the means of model and task."
    rng, mean = np.random.default_rng(seed), simulated_odds(n, models, own=0.0, seed=seed)
    smooth = rng.beta(5 * mean + 1e-3, 5 * (1 - mean) + 1e-3)
    return np.where(rng.random((n, models)) < 0.5, rng.binomial(2, mean) / 2, smooth)


def beta_odds(n, models, seed):
    rng = np.random.default_rng(seed)
    return rng.beta(*rng.uniform(0.3, 2, (2, n, 1)), (n, models))


def own_odds(n, models, seed): return simulated_odds(n, models, seed=seed)


def test_spikes_are_found_where_there_are_spikes_and_not_elsewhere():
    stands = {f: np.isin(Spiked().draw(simulated_repeats(f(150, 12, 0), runs=12).wins, 12, 60, 60), (0, 0.5, 1)).mean()
              for f in (spiked_odds, own_odds)}
    assert np.isin(spiked_odds(150, 12, 0), (0, 0.5, 1)).mean() == pytest.approx(stands[spiked_odds], abs=0.1)
    assert stands[own_odds] < stands[spiked_odds] - 0.15


def test_a_cell_whose_few_draws_are_all_0_may_still_succeed():
    odds = np.random.default_rng(0).binomial(2, simulated_odds(60, 12, own=0.0)) / 2
    success = simulated_repeats(odds).success
    expected = Spiked().expected(success[:3].sum(0), 3, 30, 30)
    drawn = Spiked().draw(success[:3].sum(0), 3, 30, 30).mean(0)
    assert (drawn == 0).any() and 0 < expected.min() and expected.max() < 1
    assert np.isfinite(held_out_likelihood(success, Spiked(), 30, 30)).all()


def test_spike_weights_are_chances_with_the_mean_they_are_asked_for():
    mean = np.random.default_rng(0).random((20, 5))
    for half in noise._SHARES:
        weights = noise._spike_weights(mean, half)
        assert (weights >= 0).all() and np.allclose(weights.sum(-1), 1) and np.allclose(weights @ [0, 0.5, 1], mean)


def results_by_hand(small, errors_of):
    "Results with a ceiling of .7 and, per truth, worlds whose model-based errors are given."
    worlds = [dict(world=i, estimate="model-based", value=0.7 + e, truth=0.7, truth_from=name)
              for name, given in errors_of.items() for i, e in enumerate(given)]
    verdicts = pd.DataFrame([dict(candidate=name, likelihood=-0.5 - i, admitted=True, ceiling=0.7)
                             for i, name in enumerate(errors_of)])
    return dict(verdicts=verdicts, ceiling=np.full(60, 0.7), worlds=pd.DataFrame(worlds))


def test_the_interval_holds_the_error_of_every_admitted_truth(small):
    spread = np.random.default_rng(0).normal(0, 0.003, 400)
    wrong = dict(chosen=spread, low=spread - 0.01, high=spread + 0.015)
    table = noise_table(small.success, results_by_hand(small, wrong)).set_index("quantity")
    row = table.loc[f"{CEILING}, these tasks"]
    assert row["value"] == pytest.approx(0.7)
    assert row["low"] == pytest.approx(0.7 - 0.015 - 1.96 * 0.003, abs=1e-3)
    assert row["high"] == pytest.approx(0.7 + 0.01 + 1.96 * 0.003, abs=1e-3)
    alone = noise_table(small.success, results_by_hand(small, dict(chosen=spread))).set_index("quantity")
    for quantity in (CEILING, "noise share of the gap, model-based", "gain of the ceiling over the best single model"):
        inner, outer = alone.loc[quantity], table.loc[quantity]
        assert outer["low"] < inner["low"] < inner["value"] == outer["value"] < inner["high"] < outer["high"]


def test_few_worlds_widen_the_interval():
    few = pd.DataFrame(dict(estimate="model-based", value=[0.01, -0.01, 0.0], truth=0.0, truth_from="a"))
    drawn = noise.drawn_errors(few, 20_000, np.random.default_rng(0))
    assert np.quantile(drawn, 0.975) == pytest.approx(4.303 * 0.01 * np.sqrt(4 / 3), rel=0.05)  # t with 2 degrees


def test_worlds_come_from_every_admitted_candidate(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))
    config = NoiseConfig(draws=40, burn=30, worlds=3, candidates=(LowRank(0, own=False), LowRank(0), LowRank(1)))
    results = noise_results(small, config, progress=False)
    verdicts = results["verdicts"]
    assert set(results["worlds"]["truth_from"]) == set(verdicts.loc[verdicts["admitted"], "candidate"])
    assert len(set(results["worlds"]["truth_from"])) == 2


@pytest.mark.long
def test_the_ceilings_interval_covers_a_known_truth(tmp_path, monkeypatch):
    "The whole procedure, with the candidate chosen anew each time, on worlds of three kinds: 95 % at least."
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))
    config = NoiseConfig(draws=40, burn=30, worlds=10, candidates=(BetaBinomial("task"), Spiked(), LowRank(0)))
    hits = []
    for seed, odds_of in product(range(7), (own_odds, beta_odds, spiked_odds)):
        odds = odds_of(40, 10, 100 + seed)
        world = simulated_repeats(odds, seed=1000 + seed)
        results = noise_results(world, config, progress=False)
        if "ceiling" not in results: continue  # no candidate is admitted, and no ceiling is claimed
        table = noise_table(world.success, results, 500).set_index("quantity")
        row = table.loc[f"{CEILING}, these tasks"]
        hits.append(row["low"] <= odds.max(1).mean() <= row["high"])
    assert len(hits) >= 18 and np.mean(hits) >= 0.95


# ---------------------------------------------------------------------------- retry, or another

def test_miss_is_the_share_of_subsets_of_runs_that_all_fail():
    success = np.random.default_rng(2).random((4, 6, 3)) < 0.4
    chance = miss(success.sum(0), 4)
    for j in range(5):
        slow = np.mean([~success[list(s)].any(0) if j else np.ones((6, 3)) for s in combinations(range(4), j)], axis=0)
        np.testing.assert_allclose(chance[j], slow)


def test_any_of_different_models_is_the_mean_over_all_pairs_of_runs():
    success = np.random.default_rng(2).random((4, 6, 3)) < 0.4
    slow = np.mean([~(success[a, :, 0] | success[b, :, 2]) for a, b in product(range(4), repeat=2)], axis=0)
    np.testing.assert_allclose(all_fail(miss(success.sum(0), 4), [0, 2]), slow)


def test_sets_are_the_best_of_all(small):
    chance = miss(small.wins, 4)
    for k in (1, 2, 3):
        slow = min(all_fail(chance, order).mean() for order in combinations(range(8), k))
        assert best_fixed_set(chance, k).mean() == pytest.approx(slow, abs=1e-6)
    order = greedy(chance, 3, again=True)
    for i, chosen in enumerate(order):
        tried = [all_fail(chance, order[:i] + [m]).mean() for m in range(8)]
        assert tried[chosen] == pytest.approx(min(tried))
    assert len(set(greedy(chance, 8, again=False))) == 8


def test_one_model_alone_is_retried_and_twins_are_not_better_than_a_retry():
    twins = simulated_repeats(np.repeat(simulated_odds(n=400, models=1), 4, axis=1))
    table = retry_table(retry_or_others(twins.success, seeds=1)).set_index("quantity")
    more = table.loc["different models less same model, 4 runs"]
    assert more["low"] < 0.01 and abs(more["value"]) < 0.03


def test_choices_for_a_fold_do_not_read_its_outcomes(small):
    fold = np.random.default_rng(0).permutation(60) % 5
    changed = small.success.copy()
    changed[:, fold == 0] = False
    before, after = (noise._held_out(miss(x.sum(0), 4), fold != 0, fold == 0, 2) for x in (small.success, changed))
    assert all((after[way] == 1).all() for way in after) and before.keys() == after.keys()
    train = miss(small.wins, 4)[:, fold != 0]
    np.testing.assert_allclose(before[noise.SAME],
                               miss(small.wins, 4)[2][fold == 0][:, train[2].mean(0).argmin()])


# ---------------------------------------------------------------------------- from a matrix, and stored

def tidy(success, models="abcd"):
    runs, n, m = success.shape
    return pd.DataFrame([dict(model=models[j], task_id=f"t{i}", domain=f"d{i % 2}", repeat=f"run-{r}",
                              score=float(success[r, i, j])) for r in range(runs) for i in range(n) for j in range(m)])


def test_rows_in_any_order_give_the_same_repeats_and_short_models_are_left_out():
    success = np.random.default_rng(0).random((3, 5, 4)) < 0.5
    frame = tidy(success).query("not (model == 'c' and repeat == 'run-2')").sample(frac=1, random_state=0)
    found = repeats_of(from_frame(frame, "mine"))
    assert found.models == ("a", "b", "d") and found.left_out == ("c",) and found.runs == 3
    at = [int(i[1:]) for i in found.tasks["task_id"]]
    assert np.array_equal(found.success, success[:, at][..., [0, 1, 3]])


def test_unusable_scores_are_refused_in_a_sentence():
    frame = tidy(np.ones((2, 3, 2), bool))
    with pytest.raises(OutcomeError, match="one run per task"):
        repeats_of(from_frame(frame[frame["repeat"] == "run-0"], "mine"))
    with pytest.raises(OutcomeError, match="between 0 and 1"):
        repeats_of(from_frame(frame.assign(score=0.5), "mine"))
    with pytest.raises(OutcomeError, match="no model has all"):
        repeats_of(from_frame(frame.iloc[[0, 1, 8, 9]], "mine"))
    with pytest.raises(ValueError, match="neither"):
        leave_one_run_out(np.ones((2, 2, 2)), "best")


@pytest.mark.long
def test_results_are_stored_by_content(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))
    first = noise_results(small, SMOKE_NOISE, progress=False)
    monkeypatch.setattr(noise, "judge", None)
    monkeypatch.setattr(noise, "ceiling", None)
    again = noise_results(small, SMOKE_NOISE, progress=False)
    assert all(pd.DataFrame(first[k]).reset_index(drop=True).equals(pd.DataFrame(again[k]).reset_index(drop=True))
               for k in first)
    changed = small.success.copy()
    changed[0, 0, 0] ^= True
    other = noise.Repeats("x", changed, small.tasks, small.models)
    with pytest.raises(TypeError):  # which has to be judged anew
        noise_results(other, SMOKE_NOISE, progress=False)


def test_without_an_admitted_candidate_only_the_bracket_is_shown(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))
    bad = noise.NoiseConfig(draws=40, burn=20, worlds=4, candidates=(LowRank(0, own=False),))
    results = noise_results(small, bad, progress=False)
    assert set(results) == {"verdicts"} and not results["verdicts"]["admitted"].any()
    table = noise_table(small.success, results).set_index("quantity")
    assert CEILING not in table.index and 0 < table.loc["noise share of the gap, at most", "value"] < 1
