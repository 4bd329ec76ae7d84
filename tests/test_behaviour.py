"""Behaviour by hand, by brute force, and on labels that say nothing."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from mtrouter_nb.analyses.behaviour import (association, describe_moves, keeping, lift, own_moves, recovery,
                                            share_difference, shares, switching)
from mtrouter_nb.core.stats import ratio_difference, ratio_intervals
from mtrouter_nb.data.pool import demo_pool, mint_pool
from mtrouter_nb.data.mint import find_mint, load_mint
from mtrouter_nb.data.turns import END_REJECTED, END_STEPS, MINT_RULES, TurnLog
from mtrouter_nb.multi_turn.evaluation import cascade_moves, cascade_rows, fixed_moves
from mtrouter_nb.multi_turn.trials import EvaluationConfig, splits
from mtrouter_nb.multi_turn.replay import ReplayWorld

A, B = "grand-120b", "middle-30b"
COMPUTE, SEARCH = "<execute> 1 </execute>", "<execute> wikipedia_search('x') </execute>"
PROPOSE = "<solution> 1 </solution>"
OK, ERROR = "Observation:\n1", "Observation:\nNothing happens."


def hand_world(runs: dict, domain=None) -> ReplayWorld:
    "A world of `runs`: (task, model) -> (list of (action, feedback), success); feedback None ends a success."
    turns, episodes = [], []
    for (task, model), (played, success) in runs.items():
        key = dict(episode_id=f"{model}|{task}", task_id=task, model=model, input_tokens=10, output_tokens=5)
        turns += [dict(key, turn=i, observation="", action=a, feedback=f, attempt=0) for i, (a, f) in enumerate(played)]
        episodes.append(dict(key, router=None, success=success, score=float(success), n_turns=len(played),
                             n_proposals=sum(a == PROPOSE for a, _ in played), tokens_estimated=False))
    tasks = sorted({task for task, _ in runs})
    tasks = pd.DataFrame(dict(task_id=tasks, domain=[(domain or {}).get(t, "d") for t in tasks], prompt="p"))
    log = TurnLog(tasks, pd.DataFrame(episodes), pd.DataFrame(turns), rules=MINT_RULES).validate()
    return ReplayWorld(log, demo_pool().subset([A, B]))


def hand_moves(order: str, task="t", **role) -> pd.DataFrame:
    "Moves of one episode: `order` names a model a turn."
    rows, played = [], {"A": 0, "B": 0}
    for turn, who in enumerate(order):
        rows.append(dict(rights="open", fold="0", method="hand", parameter=np.nan, fit=0, task_id=task, turn=turn,
                         model="AB".index(who), k=played[who], **role))
        played[who] += 1
    return pd.DataFrame(rows)


@pytest.fixture
def six():
    "A: an error, then none, then a last rejected proposal. B: a rejected proposal, a search, and success."
    world = hand_world({("t", A): ([(COMPUTE, ERROR), (COMPUTE, OK), (PROPOSE, END_REJECTED)], False),
                        ("t", B): ([(PROPOSE, "Your answer is wrong"), (SEARCH, OK), (PROPOSE, None)], True)})
    return describe_moves(hand_moves("AABBAB"), world)


def test_six_moves_are_described_as_by_hand(six):
    assert six["kind"].tolist() == ["compute", "compute", "propose", "search", "propose", "propose"]
    assert six["error"].tolist() == [1, 0, 1, 0, 1, 0]
    assert six["switch"].tolist() == [False, False, True, False, True, True]
    assert six["could_stay"].tolist() == [True, True, True, True, False, False]
    assert six["goes_on"].tolist() == [True] * 5 + [False] and six["success"].all()
    assert six["attempt_phase"].tolist() == ["first", "middle", "first", "middle", "last", "last"]
    assert six["episode_phase"].tolist() == ["early", "early", "middle", "middle", "late", "late"]


def test_six_moves_are_counted_as_by_hand(six):
    counts = {name: (int(above.sum()), int(below.sum())) for measure in (switching, keeping, recovery)
              for name, (above, below) in measure(six).items()}
    assert counts == {
        "switches per successful episode": (3, 1), "switches per episode": (3, 1),
        "turns per successful episode": (6, 1), "switched": (3, 5),
        "switched by choice": (2, 4),  # after the second turn of A, and the second of B; A's last turn was forced
        "kept after an error": (2, 2), "kept after an error, raw": (2, 3), "kept after no error": (0, 2),
        "recovered": (2, 2), "no error after moving on": (1, 1), "no error after none": (0, 0)}


def test_what_is_not_logged_is_no_recovery():
    world = hand_world({("t", A): ([(COMPUTE, ERROR), (COMPUTE, END_STEPS)], False),
                        ("t", B): ([(PROPOSE, None)], True)})
    table = describe_moves(hand_moves("AA"), world)
    assert np.isnan(table["error"].iloc[1]) and not recovery(table)["recovered"][1].any()
    assert describe_moves(hand_moves("B"), world)["episode_phase"].isna().all(), "one turn has no phases"


def test_moves_that_the_log_does_not_hold_are_refused():
    world = hand_world({("t", A): ([(PROPOSE, None)], True), ("t", B): ([(COMPUTE, OK), (PROPOSE, None)], True)})
    with pytest.raises(ValueError, match="no turn 1 of model 0"):
        describe_moves(hand_moves("AA"), world)
    with pytest.raises(ValueError, match="turn 1 is missing or comes twice"):
        describe_moves(hand_moves("BB").iloc[1:], world)


@pytest.fixture(scope="module")
def played(demo_world):
    moves = fixed_moves(demo_world, EvaluationConfig(random_seeds=2))
    return describe_moves(moves, demo_world), describe_moves(own_moves(demo_world), demo_world)


def test_shares_agree_with_a_loop_over_episodes(demo_world, played):
    table, _ = played
    table = table[(table["method"] == "Random") & (table["rights"] == "double")]
    kept, errors, switches, won = 0, 0, 0, 0
    for (task_id, _), episode in table.groupby(["task_id", "fit"]):
        t, path = demo_world.task_index[task_id], episode[["model", "k"]].to_numpy().tolist()
        for (model, k), (following, _) in zip(path, path[1:]):
            if demo_world.error[t, model, k] > 0 and k + 1 < demo_world.length[t, model]:
                errors, kept = errors + 1, kept + (following == model)
        model, k = path[-1]
        if demo_world.success[t, model] and k + 1 == demo_world.length[t, model]:
            won, switches = won + 1, switches + sum(a[0] != b[0] for a, b in zip(path, path[1:]))
    values = shares(table, switching, keeping).set_index("quantity")
    assert values["value"]["kept after an error"] == pytest.approx(kept / errors)
    assert values["n"]["kept after an error"] == errors / 2, "per fit"
    assert values["value"]["switches per successful episode"] == pytest.approx(switches / won)


def test_shares_do_not_depend_on_row_labels_or_order(played):
    table, own = played
    both = pd.concat([table, own])  # row labels repeat
    shuffled = both.sample(frac=1, random_state=0)
    value = [shares(t, recovery).sort_values(["rights", "method", "quantity"])["value"].to_numpy()
             for t in (both, both.reset_index(drop=True), shuffled)]
    assert np.array_equal(value[0], value[1], equal_nan=True) and np.allclose(value[0], value[2], equal_nan=True)


def test_ratios_have_scipys_intervals_and_cover_the_truth():
    rng = np.random.default_rng(0)
    below = rng.integers(0, 5, 120)
    above, other = rng.binomial(below, 0.4), rng.binomial(below, 0.3)
    ratio = lambda a, b, axis: a.sum(axis) / b.sum(axis)  # noqa: E731
    theirs = bootstrap((above, below), ratio, paired=True, method="percentile", n_resamples=4000, rng=1)
    assert np.allclose(ratio_intervals(above, below)[1:], theirs.confidence_interval, atol=0.01)
    theirs = bootstrap((above, other, below), lambda a, o, b, axis: ratio(a, b, axis) - ratio(o, b, axis), paired=True,
                       method="percentile", n_resamples=4000, rng=1)
    assert np.allclose(ratio_difference((above, below), (other, below))[1:], theirs.confidence_interval, atol=0.012)
    below = rng.integers(0, 5, (300, 120))
    _, low, high = ratio_intervals(rng.binomial(below, 0.4), below, resamples=500)
    assert 0.91 < ((low <= 0.4) & (0.4 <= high)).mean() < 0.98


def test_difference_to_oneself_is_nothing_and_few_cases_are_missing(played):
    table = played[0][played[0]["rights"] == "open"]
    same = share_difference(table, switching, "switches per episode", "Random", "Random")
    assert same["difference"] == same["low"] == same["high"] == 0
    few = share_difference(table, recovery, "recovered", "Random", "Round-robin")
    assert np.isnan([few["difference"], few["low"], few["high"]]).all(), "taking turns, nobody recovers"
    assert np.isnan(share_difference(table, keeping, "kept after an error", "Random", "nobody")["low"])


def test_a_router_that_knows_only_the_domain_has_no_lift_within_domains(played):
    _, own = played
    by_domain = dict(zip(sorted(own["domain"].unique()), own["name"].unique()))
    table = own[own["name"] == own["domain"].map(by_domain)].assign(method="by domain", fold="0")
    cells = lift(table, own, "kind").dropna(subset="lift").set_index("reference")
    assert cells.loc["everyone", "lift"].abs().max() > 0.5
    assert np.allclose(cells.loc["within domains", ["lift", "low", "high"]], 0)
    bits = association(table, own, "kind").set_index("reference")
    assert bits.loc["everyone", "low"] > 0.1 and np.allclose(bits.loc["within domains", ["bits", "high"]], 0)


def test_lift_splits_into_the_domains_part_and_the_rest(played):
    table, own = played
    cells = lift(table, own, "kind").dropna(subset="lift").set_index(["rights", "method", "model", "value"])
    everyone, within = (cells[cells["reference"] == r] for r in ("everyone", "within domains"))
    between = np.log2(within["expected"] / everyone["expected"])
    assert len(everyone) and np.allclose(everyone["lift"], between + within["lift"])


def test_shuffled_names_have_no_lift(played):
    _, own = played
    sure = []
    for seed in range(40):
        names = own.assign(name=np.random.default_rng(seed).permutation(own["name"]))
        line = association(names, names, "kind", resamples=200).iloc[0]
        cells = lift(names, names, "kind", resamples=200).query("reference == 'everyone'").dropna(subset="lift")
        sure.append([line["low"] > 0, ((cells["low"] > 0) | (cells["high"] < 0)).mean()])
        assert cells["lift"].abs().max() < 0.6 and line["bits"] < 0.02
    assert np.mean(sure, axis=0)[0] <= 0.15 and np.mean(sure, axis=0)[1] < 0.12, "about one time in twenty"


def test_cascades_play_the_turns_that_their_tables_hold(demo_world):
    quick = EvaluationConfig(cost_weights=(0.0, 1.0), clusters=3)
    rows = cascade_rows(demo_world, splits(demo_world.tasks)[:5], quick)
    moves = cascade_moves(demo_world, rows)
    key = ["rights", "method", "parameter", "task_id"]
    models = moves.groupby(key)["model"].nunique()
    told = rows.set_index(key).loc[models.index]
    assert (models - 1 == told["switches"]).all()
    won = describe_moves(moves, demo_world).groupby(key)["success"].first()
    assert (won == (told["score"] > 0.5)).all()


@pytest.mark.skipif(find_mint() is None, reason="MINT's logs are not here")
def test_the_lift_of_chance_is_the_models_style():
    world = ReplayWorld(load_mint(), mint_pool())
    moves = fixed_moves(world, EvaluationConfig(random_seeds=2))
    table, own = describe_moves(moves[moves["method"] == "Random"], world), describe_moves(own_moves(world), world)
    bits = association(table, own, "kind", resamples=200).set_index(["rights", "reference"])["bits"].unstack()
    assert (bits["everyone"] > 0.05).all() and (bits["beyond style"] < bits["everyone"] / 4).all()
