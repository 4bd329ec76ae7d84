"""Table and text against loops, other orders of rows and models, and outcomes that must not matter."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.analyses.situation_text import (ALL_TURNS, ALONE, BLIND, BY, FIRST_TURN, KEPT, STRENGTHS, TABLE, TEXT,
                                                 TOLD, UNTOLD, Cells, Columns, SituationText, Text, TextRouter,
                                                 fitted, in_groups, left_over, mean_aucs, own_runs, path_losses,
                                                 played_rows, ridge_path, row_parts, saying, share_rows, text_curve,
                                                 unfitted)
from mtrouter_nb.multi_turn.estimator import RIGHTS_DIM, LookupTable
from mtrouter_nb.multi_turn.metrics import weighted_auc
from mtrouter_nb.multi_turn.replay import MATCHED, ReplayWorld
from mtrouter_nb.multi_turn.trials import SMOKE, Trial, splits


@pytest.fixture(scope="module")
def trial(demo_world):
    return Trial(demo_world, splits(demo_world.tasks, 3)[0], SMOKE)


@pytest.fixture(scope="module")
def data(trial):
    "Own runs only."
    return trial.data.take(own_runs(trial))


@pytest.fixture(scope="module")
def part(trial, data):
    return row_parts(trial.world, data)


def history_of(rows):
    return rows.x[:, :-RIGHTS_DIM]


def everyone(rows):
    return np.ones(len(rows), bool)


# ---------------------------------------------------------------------------- tables without parts

def slow_table(rows, levels, lean=10.0):
    "A function (situation, action) -> score by sums over the rows."
    def value(met, action):
        out = np.average(rows.score, weights=rows.weight)
        for level in levels:
            same = [i for i in range(len(rows)) if rows.action[i] == action
                    and all(rows.situation[name][i] == met[name] for name in level)]
            weight = rows.weight[same]
            out = ((weight * rows.score[same]).sum() + lean * out) / (weight.sum() + lean)
        return out
    return value


def test_what_a_table_leaves_agrees_with_sums(trial, data, part):
    some = np.sort(np.random.default_rng(0).choice(len(data), 150, replace=False))
    few, own = data.take(some), part[some]
    left = left_over(few, trial.world.pool, TOLD, own)
    parts = np.unique(own)
    assert set(left) == {frozenset([p]) for p in parts} | {frozenset([p, q]) for p in parts for q in parts if p < q}
    for out in (frozenset(parts[:1].tolist()), frozenset(parts[1:3].tolist())):
        table = slow_table(few.take(~np.isin(own, [*out])), TOLD)
        for i in range(0, 150, 7):
            expected = few.score[i] - table(few.situation[i], few.action[i])
            assert left[out][i] == pytest.approx(expected, abs=1e-6)


def test_what_is_left_without_a_part_does_not_know_its_outcomes(trial, data, part):
    mine = part == 2
    turned = replace(data, score=np.where(mine, 1 - data.score, data.score).astype("f4"))
    before, after = (left_over(d, trial.world.pool, TOLD, part) for d in (data, turned))
    for out in before:
        same = np.allclose(before[out][~mine], after[out][~mine])
        assert same == (2 in out), out


def test_too_few_parts_are_an_error(trial, data, part):
    with pytest.raises(ValueError, match="fewer than three parts"):
        left_over(data, trial.world.pool, TOLD, np.minimum(part, 1))


# ---------------------------------------------------------------------------- columns

def test_columns_by_loop(trial, data):
    rows = data.take(np.arange(0, len(data), 9))
    columns = Columns([(Cells(), ["domain"]), (Text(trial.world.encoder), ["model", "domain"])]).fit(data, 4)
    x = columns.read(rows.situation, history_of(rows), rows.action)
    cells = sorted({(s["turn"], s["proposals"], s["error"]) for s in data.situation})
    domains, text = sorted(set(data.situation["domain"])), columns.readers[1][0]
    z = text.read(rows.situation, history_of(rows))
    f = z.shape[1]
    assert x.shape[1] == len(cells) * (1 + len(domains)) + f * (1 + 4 + len(domains))
    for i, s in enumerate(rows.situation):
        d, start = domains.index(s["domain"]), len(cells) * (1 + len(domains))
        own = [z[i] if m == rows.action[i] else 0 * z[i] for m in range(4)]
        where = [z[i] if k == d else 0 * z[i] for k in range(len(domains))]
        assert np.allclose(x[i, start:], np.concatenate([z[i], *own, *where]))
        assert x[i, :start].sum() == 2 and x[i, :len(cells)].sum() == 1


def test_a_domain_or_situation_that_is_new_has_no_column_of_its_own(trial, data):
    columns = Columns([(Cells(), ["domain"]), (Text(trial.world.encoder), ["domain"])]).fit(data, 4)
    rows = data.take(np.arange(3))
    met = rows.situation.copy()
    met["domain"], met["turn"] = "elsewhere", 77
    x = columns.read(met, history_of(rows), rows.action)
    f, n_cells = columns.readers[1][0].read(met, history_of(rows)).shape[1], len(columns.readers[0][0].known)
    assert not x[:, :n_cells * 3].any() and x[:, n_cells * 3:][:, :f].any() and not x[:, -2 * f:].any()


def test_groups_by_loop():
    rng = np.random.default_rng(0)
    z, group = rng.normal(size=(30, 3)), rng.integers(-1, 4, 30)
    wide = in_groups(z, group, 4).reshape(30, 4, 3)
    for i in range(30):
        for g in range(4): assert np.array_equal(wide[i, g], z[i] if g == group[i] else np.zeros(3))


# ---------------------------------------------------------------------------- the ridge and its strength

def test_the_path_is_what_solving_gives():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(40, 6)), rng.normal(size=40), rng.random(40)
    gram, moment = (x * w[:, None]).T @ x, x.T @ (w * y)
    for strength, coef in zip(STRENGTHS, ridge_path(gram, moment, STRENGTHS)):
        slow = np.zeros(6) if np.isinf(strength) else np.linalg.solve(gram + strength * np.eye(6), moment)
        assert np.allclose(coef, slow)


def test_losses_are_those_of_fits_without_each_part(trial, data, part):
    rng = np.random.default_rng(1)
    x, asked = rng.normal(size=(len(data), 4)), rng.random(len(data)) < 0.7
    left, strengths = left_over(data, trial.world.pool, TOLD, part), (np.inf, 50.0)
    losses, w = path_losses(x, data.weight, part, left, asked, strengths), data.weight
    for loss, strength in zip(losses, strengths):
        slow = 0
        for out in np.unique(part):
            gram, moment = np.zeros((4, 4)), np.zeros(4)
            for i in np.flatnonzero(part != out):
                table = left[frozenset([out, part[i]])]
                gram += w[i] * np.outer(x[i], x[i])
                moment += w[i] * x[i] * table[i]
            coef = 0 * moment if np.isinf(strength) else np.linalg.solve(gram + strength * np.eye(4), moment)
            slow += sum(w[i] * (left[frozenset([out])][i] - x[i] @ coef) ** 2
                        for i in np.flatnonzero((part == out) & asked))
        assert loss == pytest.approx(slow)


def test_a_held_out_part_is_foretold_without_its_outcomes(trial, data, part):
    "The loss of rows of one part moves only with their own outcomes where the text says nothing."
    x = np.random.default_rng(1).normal(size=(len(data), 4))
    mine = part == 3
    turned = replace(data, score=np.where(mine, 1 - data.score, data.score).astype("f4"))
    coefs = []
    for d in (data, turned):
        left = left_over(d, trial.world.pool, TOLD, part)
        known = [p for p in np.unique(part) if p != 3]
        moment = sum(x[part == p].T @ left[frozenset([p, 3])][part == p] for p in known)
        coefs.append(moment)
    assert np.allclose(*coefs)


def test_prediction_by_hand(trial, data, part):
    e = unfitted(trial.world, TEXT).fit(data, part, everyone(data))
    assert e.strength in STRENGTHS
    rows = data.take(np.arange(0, len(data), 11))
    score, usd = e.predict(rows.situation, history_of(rows))
    table = LookupTable(trial.world.pool, TOLD).fit(data)
    base, dollars = table.predict(rows.situation)
    for m in range(4):
        x = e.columns.read(rows.situation, history_of(rows), np.full(len(rows), m))
        assert np.allclose(score[:, m], base[:, m] + x @ e.coef)
    assert np.array_equal(usd, dollars)
    left = left_over(data, trial.world.pool, TOLD, part)
    x, w = e.columns.read(data.situation, history_of(data), data.action), data.weight
    own = np.array([left[frozenset([p])][i] for i, p in enumerate(part)])
    if np.isfinite(e.strength):
        slow = np.linalg.solve((x * w[:, None]).T @ x + e.strength * np.eye(x.shape[1]), x.T @ (w * own))
        assert np.allclose(e.coef, slow, atol=1e-8)


# ---------------------------------------------------------------------------- orders

def test_rows_in_another_order_teach_the_same(trial, data, part):
    order = np.random.default_rng(0).permutation(len(data))
    one = unfitted(trial.world, TEXT).fit(data, part, everyone(data))
    other = unfitted(trial.world, TEXT).fit(data.take(order), part[order], everyone(data))
    assert one.strength == other.strength and one.loss == pytest.approx(other.loss, rel=1e-3)
    a, b = (e.predict(data.situation, history_of(data))[0] for e in (one, other))
    assert np.abs(a - b).max() < 0.01


def test_models_in_another_order_are_told_the_same(trial, data, part):
    world, names = trial.world, trial.world.pool.names[::-1]
    turned = ReplayWorld(world.log, world.pool.subset(names), world.encoder)
    back = np.array([names.index(name) for name in world.pool.names])
    one = unfitted(world, TEXT).fit(data, part, everyone(data))
    other = unfitted(turned, TEXT).fit(replace(data, action=back[data.action]), part, everyone(data))
    a, b = (e.predict(data.situation, history_of(data)) for e in (one, other))
    assert np.allclose(a[0], b[0][:, back], atol=1e-6) and np.allclose(a[1], b[1][:, back])


# ---------------------------------------------------------------------------- trials

def test_own_runs_are_those_of_the_log(trial):
    own, log = own_runs(trial), trial.world.log.select(task_ids=trial.split.train)
    assert own.sum() == len(log.turns)
    assert np.array_equal(trial.data.task[own], log.turns["task_id"])
    assert [trial.world.pool.names[m] for m in trial.data.action[own]] == log.turns["model"].tolist()


def test_shares_grow_and_all_is_all(trial):
    half, whole = (share_rows(trial, share, 1) for share in (0.5, 1.0))
    tasks = {str(t) for t in trial.data.task[half]}
    assert whole.all() and len(tasks) == round(0.5 * len(trial.train)) and tasks <= set(trial.split.train)
    assert not np.array_equal(half, share_rows(trial, 0.5, 2)), "another draw"


def test_test_tasks_teach_nothing(trial, demo_world):
    assert not set(trial.data.task) & set(trial.split.test)
    e = fitted(trial, TEXT, everyone(trial.data))
    score, _ = e.table.predict(trial.data.situation[:5])
    assert np.isfinite(score).all()


@pytest.mark.parametrize("name", [ALONE, BLIND])
def test_who_is_blind_to_text_or_domain_is(trial, data, part, name):
    e = unfitted(trial.world, name).fit(data, part, everyone(data))
    rows = data.take(np.arange(20))
    base = e.predict(rows.situation, history_of(rows))[0]
    other = rows.situation.copy()
    other["domain"] = "elsewhere"
    by_domain = e.predict(other, history_of(rows))[0]
    by_text = e.predict(rows.situation, history_of(rows)[::-1])[0]
    assert np.array_equal(base, by_domain) == (name == BLIND)
    assert np.array_equal(base, by_text) == (name == ALONE)
    assert e.levels == (UNTOLD if name == BLIND else TOLD)


def test_the_router_takes_the_best_of_what_it_reads(trial, data, part):
    world = trial.world
    e = SituationText(world.pool, Columns([(Text(world.encoder), ["model"])]), TOLD, [20.0]).fit(
        data, part, everyone(data))
    tasks = trial.tasks[:12]
    domain = world.tasks["domain"].to_numpy()[tasks]
    play = world.play(tasks, MATCHED)
    play.step(np.arange(12) % 4)
    view = play.view()
    choice = TextRouter(e, domain).choose(view)
    met = np.empty(len(view), data.situation.dtype)
    met["domain"], met["turn"], met["proposals"] = domain[view.row], 1, view.proposals.sum(1)
    met["error"] = view.error
    score, _ = e.predict(met, view.history())
    expected = np.where(view.available, score, -np.inf).argmax(1)
    assert np.array_equal(choice, expected)


def test_a_kept_choice_is_the_first(trial):
    table = LookupTable(trial.world.pool, TOLD).fit(trial.data)
    rows = played_rows(trial, {TABLE: table})
    assert set(rows["method"]) == {TABLE, TABLE + KEPT}
    assert rows.groupby(["method", "parameter"])["task_id"].nunique().eq(len(trial.tasks)).all()


# ---------------------------------------------------------------------------- curves

def made_up(n_tasks=12, turns=3, draws=2, shares=(0.5, 1.0)):
    rng = np.random.default_rng(0)
    rows = [dict(task_id=f"t{t}", model=m, turn=k, outcome=float((t + i) % 2), estimator=e, share=s, draw=d)
            for t in range(n_tasks) for i, m in enumerate("ab") for k in range(turns) for e in (TABLE, ALONE, TEXT)
            for s in shares for d in range(draws if s < 1 else 1)]
    said = pd.DataFrame(rows)
    return said.assign(predicted=(said["outcome"] + 2 * rng.normal(size=len(said))).round(1))


def slow_auc(rows):
    up, down = (rows.loc[(rows["outcome"] > 0.5) == kind, "predicted"].to_numpy()[:, None] for kind in (True, False))
    return ((up > down.T) + 0.5 * (up == down.T)).mean()


def test_auc_is_the_share_of_pairs_in_order_mean_over_draws():
    said = made_up().query("share == 0.5")
    aucs = mean_aucs(said)
    for name, rows in said.groupby("estimator"):
        slow = np.mean([slow_auc(r) for _, r in rows.groupby("draw")])
        assert aucs[name].iloc[0] == pytest.approx(slow)
    mixed = mean_aucs(said.sample(frac=1, random_state=1))
    assert np.allclose(mixed[aucs.columns], aucs)


def test_the_curve_is_differences_of_aucs():
    said = made_up()
    curve = text_curve(said).set_index(["turns", "share", "estimator"])
    for turns, part in ((ALL_TURNS, said), (FIRST_TURN, said[said["turn"] == 0])):
        auc = {(s, e): np.mean([slow_auc(r) for _, r in rows.groupby("draw")])
               for (s, e), rows in part.groupby(["share", "estimator"])}
        for (share, name), value in auc.items():
            r = curve.loc[(turns, share, name)]
            assert r["auc"] == pytest.approx(value) and r["lead"] == pytest.approx(value - auc[share, TABLE])
            assert r["gain"] == pytest.approx(value - auc[share, ALONE])
            if share == 1: assert r["growth"] == pytest.approx(value - auc[0.5, name])
            else: assert np.isnan(r["growth"]) and np.isnan(r["growth_low"])


def test_whoever_reads_finds_what_is_planted_beyond_the_domain(trial, data, part):
    prompt = pd.Series(history_of(data)[:, 0])
    told = (prompt > prompt.groupby(data.situation["domain"]).transform("median")).to_numpy()
    planted = replace(data, score=told.astype("f4"))
    right = np.ones((1, len(data)))
    auc = {}
    for name in BY:
        e = unfitted(trial.world, name).fit(planted, part, everyone(data))
        said = saying(e)(planted)[np.arange(len(data)), data.action]
        auc[name] = weighted_auc(said, told, right)[0]
    assert auc[TEXT] > auc[ALONE] + 0.05
