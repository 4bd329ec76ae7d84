"""Every metric against plain loops over rows, on small random outcomes with missing cells and half points."""
import itertools
import math

import moocore
import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.core.splits import stable_hash
from mtrouter_nb.data.outcomes import OutcomeMatrix
from mtrouter_nb.single_turn import metrics as bm
from mtrouter_nb.single_turn.metrics import Anchors, Scores

DATASETS = ("a", "b", "c")


def matrix(seed, n=48, models=4, missing=.08):
    "Random outcomes: scores 0, .5, 1 with holes, and costs with holes of their own."
    rng = np.random.default_rng(seed)
    ids = [f"i{j:03d}" for j in range(n)]
    tasks = pd.DataFrame(dict(task_id=ids, domain=np.resize(list("abac"), n), prompt="p", repeat=0))
    score, cost = rng.choice([0., .5, 1.], (n, models)), rng.integers(1, 9, (n, models)) / 8
    for table in (score, cost): table[rng.random((n, models)) < missing] = np.nan
    none = np.full((n, models), np.nan)
    return OutcomeMatrix("toy", tasks, tuple(f"m{j}" for j in range(models)), score, cost, none, none, none)


def routed(test, seed, settings=3):
    "A router of `settings` configurations that picks columns at random."
    pick = np.random.default_rng(seed).integers(0, len(test.models), (settings, len(test)))
    rows = np.arange(len(test))
    return Scores.of("R", np.arange(settings) / 10, test.score[rows, pick], test.cost[rows, pick], test.tasks, 0)


def everything(seed, **args):
    "(train, test, scores of models, bounds and a router on test)."
    train, test = matrix(seed, **args), matrix(seed + 100, **args)
    return train, test, bm.stack(Scores.of_models(test, 0), bm.bounds(train, test, 0), routed(test, seed))


# loops over rows ------------------------------------------------------------------------------------------------------
def known(values): return [v for v in values if not math.isnan(v)]
def mean(values): return sum(values) / len(values) if len(values) else math.nan


def loop_accuracy(score, dataset):
    return {d: mean(known([s for s, e in zip(score, dataset) if e == d])) for d in DATASETS}


def loop_cost(cost, dataset):
    "Dollars of all rows, a missing one at the mean of its dataset."
    total = 0
    for d in DATASETS:
        mine = [c for c, e in zip(cost, dataset) if e == d]
        total += mean(known(mine)) * len(mine)
    return total


def loop_gain(accuracy, reference):
    "Mean of ratios, and datasets left out where the reference is 0."
    ratios = [accuracy[d] / reference[d] - 1 for d in DATASETS if reference[d] != 0]
    return mean(ratios)


def accuracies(scores):
    "(method, setting) -> {dataset: accuracy} by loops."
    dataset = scores.tasks["domain"].tolist()
    return {(c.method, c.setting if c.setting == c.setting else None): loop_accuracy(scores.score[i].tolist(), dataset)
            for i, c in enumerate(scores.configs.itertuples())}


def loop_pair(scores, i, j):
    "({dataset: accuracy} of configuration i, that of j), on the tasks where both have a score."
    own, its, dataset = scores.score[i].tolist(), scores.score[j].tolist(), scores.tasks["domain"].tolist()
    both = [k for k in range(len(own)) if own[k] == own[k] and its[k] == its[k]]
    return tuple(loop_accuracy([values[k] for k in both], [dataset[k] for k in both]) for values in (own, its))


def loop_pair_costs(scores, i, j):
    "Dollars of i and of j on all rows, each at its mean over the rows of a dataset where both have a price."
    own, its, dataset = scores.cost[i].tolist(), scores.cost[j].tolist(), scores.tasks["domain"].tolist()
    both = [own[k] + its[k] for k in range(len(own))]  # NaN where either is missing
    return tuple(loop_cost([v if b == b else math.nan for v, b in zip(values, both)], dataset) for values in (own, its))


def costs(scores):
    return [loop_cost(row.tolist(), scores.tasks["domain"].tolist()) for row in scores.cost]


def loop_dominated(point, others):
    return any(c <= point[0] and a >= point[1] and (c < point[0] or a > point[1]) for c, a in others)


# bounds ---------------------------------------------------------------------------------------------------------------
def enough(matrix, d, j):
    "Whether a model has a score on four fifths of a dataset."
    mine = [s for s, e in zip(matrix.score[:, j].tolist(), matrix.tasks["domain"]) if e == d]
    return len(known(mine)) >= .8 * len(mine)


def loop_best(matrix):
    "Candidate with the best mean of dataset accuracies; the cheaper of equals."
    dataset = matrix.tasks["domain"].tolist()
    keys = []
    for j, name in enumerate(matrix.models):
        if not all(enough(matrix, d, j) for d in DATASETS): continue
        accuracy = loop_accuracy(matrix.score[:, j].tolist(), dataset)
        dollars = loop_cost(matrix.cost[:, j].tolist(), dataset)
        keys.append((-round(mean(list(accuracy.values())), 9), dollars, stable_hash(name), j))
    return min(keys)[-1]


def loop_experts(matrix):
    dataset, best = matrix.tasks["domain"].tolist(), {}
    for d in DATASETS:
        keys = []
        for j, name in enumerate(matrix.models):
            rows = [i for i, e in enumerate(dataset) if e == d]
            cost = mean(known(matrix.cost[rows, j].tolist()))
            if enough(matrix, d, j):
                accuracy = mean(known(matrix.score[rows, j].tolist()))
                keys.append((-round(accuracy, 9), cost if cost == cost else math.inf, stable_hash(name), j))
        best[d] = min(keys)[-1]
    return best


def loop_bounds(train, test):
    "Bound -> (scores, costs) by loops over tasks."
    single, single_test = loop_best(train), loop_best(test)
    expert, expert_test = loop_experts(train), loop_experts(test)
    rows = {name: ([], []) for name in ("random", "oracle", "single", "single_test", "expert", "expert_test")}
    for i, d in enumerate(test.tasks["domain"]):
        score, cost = test.score[i].tolist(), test.cost[i].tolist()
        ran = [j for j, s in enumerate(score) if not math.isnan(s)]
        best = max((score[j] for j in ran), default=math.nan)
        solvers = [j for j in ran if score[j] == best]
        if best == 0: solvers = ran
        found = dict(random=(mean([score[j] for j in ran]), mean([cost[j] for j in ran])),
                     oracle=(best, min(known([cost[j] for j in solvers]), default=math.nan)))
        fixed = dict(single=single, single_test=single_test, expert=expert[d], expert_test=expert_test[d])
        for name, j in fixed.items(): found[name] = score[j], cost[j]
        for name, pair in found.items():
            for values, value in zip(rows[name], pair): values.append(value)
    return rows


NAMES = dict(random=bm.RANDOM, oracle=bm.ORACLE, single=bm.BEST, single_test=bm.BEST_TEST, expert=bm.PER_DATASET,
             expert_test=bm.PER_DATASET_TEST)


@pytest.mark.parametrize("seed", range(6))
def test_bounds(seed):
    train, test, _ = everything(seed)
    found = bm.bounds(train, test, 0)
    for name, (score, cost) in loop_bounds(train, test).items():
        row = found.configs["method"].tolist().index(NAMES[name])
        np.testing.assert_allclose(found.score[row], score, err_msg=name)
        np.testing.assert_allclose(found.cost[row], cost, err_msg=name)
    assert set(found.configs.loc[found.configs["group"] == "yardstick", "method"]) == {bm.RANDOM, bm.BEST}


def test_training_outcomes_alone_choose():
    train, test, _ = everything(0)
    rng = np.random.default_rng(1)
    other = OutcomeMatrix("toy", test.tasks, test.models, rng.permuted(test.score, axis=1), *[test.cost] * 4)
    for name in (bm.BEST, bm.PER_DATASET):
        rows = [bm.bounds(train, t, 0) for t in (test, other)]
        at = rows[0].configs["method"].tolist().index(name)
        np.testing.assert_array_equal(rows[0].cost[at], rows[1].cost[at])


def test_bounds_that_cannot_be():
    train, test, _ = everything(0)
    with pytest.raises(ValueError, match="different models"): bm.bounds(train.select(["m0"]), test, 0)
    hole = train.score.copy()
    hole[train.domain == 1] = np.nan
    with pytest.raises(ValueError, match="no model has a score on each of a, b, c"):
        bm.bounds(OutcomeMatrix("toy", train.tasks, train.models, hole, *[train.cost] * 4), test, 0)
    unseen = bm.bounds(train.select(domains=["a", "b"]), test, 0)
    single, expert = (unseen.configs["method"].tolist().index(m) for m in (bm.BEST, bm.PER_DATASET))
    new = (test.tasks["domain"] == "c").to_numpy()
    np.testing.assert_array_equal(unseen.score[single, new], unseen.score[expert, new])


# metrics of a configuration -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(6))
def test_config_metrics(seed):
    "Comparisons are of the tasks that both have; a table of means is compared as it stands, and says so."
    _, _, scores = everything(seed)
    accuracy, dollars, names = accuracies(scores), costs(scores), scores.configs["method"].tolist()
    sizes, keys = scores.tasks["domain"].value_counts(), list(accuracy)
    def beside(i, method, paired):
        j = names.index(method)
        return loop_pair(scores, i, j) if paired else (accuracy[keys[i]], accuracy[keys[j]])
    def average(a): return mean(list(a.values()))
    def each(method, compare, paired): return [compare(*beside(i, method, paired)) for i in range(len(keys))]
    def expected(paired):
        return {"AvgAcc": [average(a) for a in accuracy.values()], "Cost": dollars,
                "SampleAvg": [sum(a[d] * sizes[d] for d in DATASETS) / sizes.sum() for a in accuracy.values()],
                "GainAtRandom": each(bm.RANDOM, loop_gain, paired), "GainAtBest": each(bm.BEST, loop_gain, paired),
                "GapAtOracle": each(bm.ORACLE, lambda a, b: -loop_gain(a, b), paired),
                "LeadOverBest": each(bm.BEST, lambda a, b: average(a) - average(b), paired),
                "ImpRandom": each(bm.RANDOM, lambda a, b: average(a) / average(b) - 1, paired),
                "ImpMax": each(bm.PER_DATASET_TEST, lambda a, b: average(a) / average(b) - 1, paired),
                "OracleGap": each(bm.ORACLE, lambda a, b: 1 - average(a) / average(b), paired)}
    functions = dict(AvgAcc=bm.avg_acc, SampleAvg=bm.sample_avg, Cost=bm.total_cost, GainAtRandom=bm.gain_at_random,
                     GainAtBest=bm.gain_at_best, GapAtOracle=bm.gap_at_oracle, LeadOverBest=bm.lead_over_best)
    for cells in (scores, bm.domain_table(scores)):
        table, values = bm.config_table(cells), expected(cells is scores)
        for metric, wanted in values.items():
            np.testing.assert_allclose(table[metric], wanted, err_msg=metric, rtol=1e-9, atol=1e-12)
        for metric, function in functions.items():
            np.testing.assert_allclose(function(cells)["value"], values[metric], atol=1e-12)
        np.testing.assert_allclose(bm.ratio_of_averages(cells, "OracleGap")["value"], values["OracleGap"])
        note = "paired on" if cells is scores else "means as they stand, of different tasks"
        assert table["note"].str.contains(note).any() and not table["note"].isna().any()
    mixed = bm.config_table(cells.sample(frac=1, random_state=seed)).set_index(["method", "setting"])
    pd.testing.assert_frame_equal(mixed.sort_index(), table.set_index(["method", "setting"]).sort_index())


def test_two_lucky_records_of_a_hundred_make_no_best_model():
    "Nor a lead: whoever is compared is compared on what both have, and is named where that is too little."
    tasks = pd.DataFrame(dict(task_id=[f"q{i:03d}" for i in range(100)], domain="a", prompt="p", repeat=0))
    rng, none = np.random.default_rng(0), np.full((100, 3), np.nan)
    score = (rng.random((100, 3)) < [.6, .5, .4]).astype(float)
    score[:, 2] = np.where(np.arange(100) < 2, 1, np.nan)
    score[:2, 0] = 1
    few = OutcomeMatrix("few", tasks, ("big", "mid", "lucky"), score, none, none, none, none)
    assert few.models[bm.best_single(few)] == few.models[bm.best_per_domain(few)["a"]] == "big"
    run = bm.stack(Scores.of_models(few, 0), bm.bounds(few, few, 0))
    table = bm.bench_table(run, resamples=50).set_index(["method", "metric"])
    assert table.at[("lucky", "LeadOverBest"), "value"] == table.at[("lucky", "GainAtBest"), "value"] == 0
    assert table.at[("lucky", "LeadOverBest"), "note"] == "paired on 2 of 100 tasks"
    assert table.at[(bm.BEST, "AvgAcc"), "note"] == "no candidates: lucky (2 of 100 tasks of a)"
    score[19:, 2], score[:79, 2] = np.nan, 1
    for known_rows, best in ((79, "big"), (80, "lucky")):
        score[:known_rows, 2] = 1
        cut = OutcomeMatrix("few", tasks, few.models, score, none, none, none, none)
        assert cut.models[bm.best_single(cut)] == best, "four fifths are enough, less are not"


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_no_best_depends_on_the_order_of_models(order):
    level = matrix(3, models=3, missing=0)
    same = np.repeat(level.score[:, :1], 3, 1), np.repeat(level.cost[:, :1], 3, 1)
    for score, cost in (same, (level.score, level.cost)):
        one = OutcomeMatrix("toy", level.tasks, level.models, score, cost, *[cost] * 3)
        other = one.select([level.models[i] for i in order])
        assert one.models[bm.best_single(one)] == other.models[bm.best_single(other)]
        named = [{d: m.models[c] for d, c in bm.best_per_domain(m).items()} for m in (one, other)]
        assert named[0] == named[1]


def test_missing_cells_are_counted():
    _, test, scores = everything(2)
    cells = bm.domain_table(Scores.of_models(test, 0))
    assert cells["no_score"].sum() == np.isnan(test.score).sum() and cells["no_cost"].sum() == np.isnan(test.cost).sum()
    assert bm.config_table(cells)["no_cost"].sum() == np.isnan(test.cost).sum()
    assert (cells.groupby(["method"])["n"].sum() == len(test)).all()


def test_a_dataset_without_scores_is_missing_with_a_note():
    train, test, scores = everything(0)
    score = scores.score.copy()
    score[0, scores.tasks["domain"] == "b"] = np.nan
    table = bm.config_table(bm.domain_table(Scores(scores.configs, scores.tasks, score, scores.cost, 0)))
    assert table.loc[0, ["AvgAcc", "SampleAvg", "GainAtBest", "GapAtOracle"]].isna().all()
    assert "no score on b" in table["note"][0] and table["Cost"].notna().all() and table.loc[1:, "AvgAcc"].notna().all()


@pytest.mark.parametrize("reference,metric", [(bm.RANDOM, "GainAtRandom"), (bm.BEST, "GainAtBest"),
                                              (bm.ORACLE, "GapAtOracle")])
def test_zero_denominators(reference, metric):
    _, _, scores = everything(3)
    cells = bm.domain_table(scores).drop(columns="no_score")
    zero = (cells["method"] == reference) & (cells["domain"] == "c")
    table = bm.config_table(cells.assign(accuracy=cells["accuracy"].mask(zero, 0.)))
    rest = bm.config_table(cells[cells["domain"] != "c"])
    np.testing.assert_allclose(table[metric], rest[metric])
    assert table["note"].str.contains(f"without c, where {reference} scores 0", regex=False).all()
    nothing = bm.config_table(cells.assign(accuracy=cells["accuracy"].mask(cells["method"] == reference, 0.)))
    assert nothing[metric].isna().all(), "no ratio at all: missing, and not inf"


def test_no_metric_is_ever_infinite():
    tasks = pd.DataFrame(dict(task_id=list("uvwxyz"), domain=list("aabbcc"), prompt="p", repeat=0))
    zero, none = np.zeros((6, 2)), np.full((6, 2), np.nan)
    flat = OutcomeMatrix("flat", tasks, ("m0", "m1"), zero, zero, none, none, none)
    table = bm.bench_table(bm.stack(Scores.of_models(flat, 0), bm.bounds(flat, flat, 0)), resamples=20)
    assert not np.isinf(table[["value", "low", "high"]].to_numpy()).any()
    ratios = table["metric"].isin(["GainAtRandom", "GapAtOracle", "PerfGain", "CostSave"])
    assert ratios.any() and table.loc[ratios, "value"].isna().all()


# accuracy against cost ------------------------------------------------------------------------------------------------
def random_points(seed, n=12):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(dict(method=[f"r{i // 3}" for i in range(n)], setting=[float(i % 3) for i in range(n)],
                             group=["model"] * 3 + ["router"] * (n - 6) + ["bound"] * 3,
                             AvgAcc=rng.integers(1, 9, n) / 10, Cost=rng.integers(1, 9, n) / 4))


@pytest.mark.parametrize("seed", range(8))
def test_pareto_frontier(seed):
    points = random_points(seed)
    pool = points[points["group"] != "bound"][["Cost", "AvgAcc"]].to_numpy().tolist()
    expected = [g != "bound" and not loop_dominated(p, pool)
                for g, p in zip(points["group"], points[["Cost", "AvgAcc"]].to_numpy().tolist())]
    assert bm.pareto_frontier(points)["on_frontier"].tolist() == expected


def loop_distance(points, front, ends, norm, scale):
    "Mean over `points` of the distance to the nearest of `front`, both (cost, accuracy); 0 where nothing dominates."
    f = math.log if scale == "log" else float
    def normal(p):
        return ((f(p[0]) - f(ends[0])) / (f(ends[1]) - f(ends[0])), (p[1] - ends[2]) / (ends[3] - ends[2]))
    total = 0
    for point in points:
        if not loop_dominated(point, front): continue
        x, y = normal(point)
        apart = [(abs(x - u), abs(y - v)) for u, v in map(normal, front)]
        total += min(sum(a) if norm == "L1" else math.hypot(*a) for a in apart)
    return total / len(points)


@pytest.mark.parametrize("seed,norm,scale", [*itertools.product(range(3), ("L1", "L2"), ("linear", "log"))])
def test_pareto_dist(seed, norm, scale):
    points = random_points(seed)
    pool = points[points["group"] != "bound"]
    xy = pool[["Cost", "AvgAcc"]].to_numpy().tolist()
    models = [p for p, g in zip(xy, pool["group"]) if g == "model"]
    for anchors, among in ((None, xy), (Anchors.of(points[points["group"] == "model"]), models)):
        front = [p for p in among if not loop_dominated(p, among)]
        c, a = zip(*among)
        ends = min(c), max(c), min(a), max(a)
        if ends[0] == ends[1] or ends[2] == ends[3]: continue
        expected = [loop_distance(part[["Cost", "AvgAcc"]].to_numpy().tolist(), front, ends, norm, scale)
                    for _, part in pool.groupby("method", sort=False)]
        np.testing.assert_allclose(bm.pareto_dist(points, anchors, norm, scale)["value"], expected, atol=1e-12)


def loop_pareto(points):
    "Method -> ParetoDist by loops: what lacks a number is no point, and moves neither an axis nor the frontier."
    rows = [(r.method, (r.Cost, r.AvgAcc)) for r in points.itertuples() if r.group != "bound"]
    whole = [p for _, p in rows if p[0] == p[0] and p[1] == p[1]]
    front = [p for p in whole if not loop_dominated(p, whole)]
    c, a = zip(*whole)
    ends = min(c), max(c), min(a), max(a)
    found = {}
    for method, point in rows:
        lacks = point[0] != point[0] or point[1] != point[1]
        found.setdefault(method, []).append(math.nan if lacks else loop_distance([point], front, ends, "L1", "linear"))
    return {method: sum(values) / len(values) for method, values in found.items()}


@pytest.mark.parametrize("seed", range(60))
def test_pareto_dist_is_one_number_wherever_it_stands(seed):
    "With prices and accuracies missing at random: the public function, the table and loops agree."
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 9))
    values = rng.integers(1, 30, (n, 2)) / 40
    values[rng.random((n, 2)) < .2] = np.nan
    values[:2] = [[.2, .3], [.9, .8]]
    tasks = pd.DataFrame(dict(task_id=["x"], domain="a", repeat=0))
    configs = pd.DataFrame(dict(method=[f"m{i // 2}" for i in range(n)], setting=[i % 2 for i in range(n)],
                                group="router"))
    scores = bm.stack(Scores(configs, tasks, values[:, 1:], values[:, :1], 0),
                      Scores.of(bm.BEST, [np.nan], [[.5]], [[.5]], tasks, 0, "yardstick"))
    points = bm.config_table(scores)
    expected = pytest.approx(loop_pareto(points), nan_ok=True)
    assert bm.pareto_dist(points).set_index("method")["value"].to_dict() == expected
    table = bm.bench_table(scores, resamples=3)
    assert table[table["metric"] == "ParetoDist"].set_index("method")["value"].to_dict() == expected
    fixed = bm.pareto_dist(points, Anchors.of(points)).set_index("method")["value"].to_dict()
    assert fixed == expected


def test_a_model_without_a_price_moves_no_axis():
    points = pd.DataFrame(dict(method=list("abcd"), setting=np.nan, group="model", AvgAcc=[.2, .4, .3, .6],
                               Cost=[1., 2, 2, np.nan]))
    assert bm.pareto_dist(points)["value"].tolist()[:3] == pytest.approx([0, 0, .5])
    tasks = pd.DataFrame(dict(task_id=["x"], domain="a", repeat=0))
    scores = Scores(points[bm.CONFIG], tasks, points[["AvgAcc"]].to_numpy(), points[["Cost"]].to_numpy(), 0)
    table = bm.bench_table(scores, reference="b", resamples=0).query("metric == 'ParetoDist'")
    assert table["value"].tolist() == pytest.approx([0, 0, .5, math.nan], nan_ok=True), ".25 with the axis moved by d"


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_distance_to_the_steps_is_that_to_many_points_on_them(norm):
    points = random_points(4)
    anchors = Anchors.of(points)
    front = anchors.axes(anchors.frontier)
    ends = [*front[1:, 0], 3.]  # the last step goes on to the right
    def line(x, u, y, v): return np.column_stack([np.linspace(x, u, 4001), np.linspace(y, v, 4001)])
    dense = [line(x, u, y, y) for (x, y), u in zip(front, ends)]
    dense += [line(u, u, y, v) for y, (u, v) in zip(front[:, 1], front[1:])]
    own = anchors.axes(points.loc[points["group"] != "bound", ["Cost", "AvgAcc"]].to_numpy())
    apart = np.abs(own[:, None] - np.vstack(dense)[None])
    expected = (apart.sum(-1) if norm == "L1" else (apart ** 2).sum(-1) ** .5).min(1)
    found = bm.pareto_dist(points.assign(method=points.index.astype(str)), norm=norm, to="steps")["value"]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_fixed_anchors_do_not_move_with_the_roster():
    points = random_points(1)
    models = Anchors.of(points[points["group"] == "model"])
    fewer = points[points["method"] != "r2"]
    for function in (bm.pareto_dist, bm.hypervolume):
        one, other = (function(p, models).set_index("method")["value"] for p in (points, fewer))
        assert one.drop("r2").equals(other)
    assert not bm.pareto_dist(points).set_index("method")["value"].drop("r2").equals(
        bm.pareto_dist(fewer).set_index("method")["value"])


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume(seed):
    "moocore against counting the cells of the grid that the points' own coordinates make."
    rng = np.random.default_rng(seed)
    own = rng.random((7, 2)) * 1.3 - .1
    x, y = (np.unique(np.r_[own[:, i], 0 if i else 1]) for i in (0, 1))
    area = 0
    for (x0, x1), (y0, y1) in itertools.product(zip(x, x[1:]), zip(y, y[1:])):
        inside = any(c <= x0 and a >= y1 for c, a in own.tolist()) and x1 <= 1 and y0 >= 0
        area += (x1 - x0) * (y1 - y0) * inside
    assert moocore.hypervolume(own, ref=[1, 0], maximise=[False, True]) == pytest.approx(area)
    points = pd.DataFrame(dict(method="r", group="router", Cost=own[:, 0], AvgAcc=own[:, 1]))
    unit = Anchors(0, 1, 0, 1, np.array([[0., 1.]]))
    assert bm.hypervolume(points, unit)["value"][0] == pytest.approx(area)
    assert np.isnan(bm.hypervolume(points.assign(Cost=points["Cost"].mask(points.index == 3)), unit)["value"][0])


# PerfGain and CostSave ------------------------------------------------------------------------------------------------
def loop_peak(averages, dollars): return min(range(len(averages)), key=lambda i: (-round(averages[i], 12), dollars[i]))


def loop_cheapest(lead, dollars, averages):
    able = [i for i in range(len(lead)) if lead[i] >= -1e-12]
    return min(able, key=lambda i: (dollars[i], -averages[i]), default=None)


def loop_over_best(run):
    "Per configuration its AvgAcc, dollars, and lead, gain and saving over Best Single on the tasks of both."
    b, rows = run.configs["method"].tolist().index(bm.BEST), []
    for i in range(len(run.configs)):
        own, its = (mean(list(a.values())) for a in loop_pair(run, i, b))
        spent, its_cost = loop_pair_costs(run, i, b)
        average = mean(list(loop_accuracy(run.score[i].tolist(), run.tasks["domain"].tolist()).values()))
        rows.append(dict(average=average, cost=costs(run)[i], lead=own - its, gain=own / its - 1,
                         saved=1 - spent / its_cost))
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_perfcost(seed):
    train, test, scores = everything(seed)
    held_out = matrix(seed + 200)
    held = bm.stack(Scores.of_models(held_out, 0), bm.bounds(train, held_out, 0), routed(held_out, seed))
    found = bm.perfcost(held, scores, resamples=50).set_index(["method", "metric", "chosen"])["value"]
    tried, judged = loop_over_best(held), loop_over_best(scores)
    for method in scores.configs["method"].unique():
        mine = np.flatnonzero(scores.configs["method"] == method)
        able = [judged[i]["saved"] for i in mine if judged[i]["lead"] >= -1e-12]
        assert found[method, "PerfGain", bm.PEAK] == pytest.approx(max(judged[i]["gain"] for i in mine))
        assert found[method, "CostSave", bm.PEAK] == pytest.approx(max(able, default=math.nan), nan_ok=True)
        peak = mine[loop_peak(*zip(*[(tried[i]["average"], tried[i]["cost"]) for i in mine]))]
        assert found[method, "PerfGain", bm.CHOSEN] == pytest.approx(judged[peak]["gain"])
        cheap = loop_cheapest(*zip(*[(tried[i]["lead"], tried[i]["cost"], tried[i]["average"]) for i in mine]))
        chosen = dict(saved=0, lead=0) if cheap is None else judged[mine[cheap]]
        assert found[method, "Saving", bm.CHOSEN] == pytest.approx(chosen["saved"])
        assert found[method, "SavingLead", bm.CHOSEN] == pytest.approx(chosen["lead"])
        assert found[method, "SavingReached", bm.CHOSEN] == (cheap is not None)


def test_a_seed_without_a_setting_that_qualifies_saves_nothing():
    "Its Saving and its lead are 0 and count in the mean and in the interval; the paper's way leaves it out."
    tasks = pd.DataFrame(dict(task_id=[f"q{i:02d}" for i in range(40)], domain="a", repeat=0))
    rng, runs, helds = np.random.default_rng(0), [], []
    best = (rng.random(40) < .6).astype(float)
    for seed in range(5):
        worse = np.where(np.arange(40) < 20, 0, best)
        for out, own in ((runs, best if seed == 0 else worse), (helds, best if seed == 0 else worse)):
            out.append(bm.stack(Scores.of(bm.BEST, [np.nan], [best], [np.full(40, 2.)], tasks, seed, "yardstick"),
                                Scores.of("R", [0, 1], [own, own], np.full((2, 40), .5), tasks, seed)))
    table = bm.over_seeds(runs, helds, resamples=100).query("method == 'R'").set_index(["metric", "chosen"])
    saving, reached = (table.loc[(m, bm.CHOSEN)] for m in ("Saving", "SavingReached"))
    assert saving["value"] == pytest.approx(.75 / 5) and saving["seeds"] == 5
    assert reached["value"] * reached["seeds"] == pytest.approx(1)
    assert table.loc[("SavingLead", bm.CHOSEN), "value"] == 0
    paper = table.loc[("CostSave", bm.PEAK)]
    assert paper["value"] == pytest.approx(.75) and paper["seeds"] == 1, "from one seed of five"
    assert (bm.CHOSEN, "CostSave") not in table.index.swaplevel()


def test_a_router_that_validation_never_met_has_no_saving():
    "It did not fail to qualify, so it is no zero."
    _, _, scores = everything(1, missing=0)
    held = Scores(scores.configs, scores.tasks, np.where((scores.configs["method"] == "R").to_numpy()[:, None], np.nan,
                                                         scores.score), scores.cost, 0)
    found = bm.perfcost(held, scores, resamples=20).query("method == 'R' and chosen == @bm.CHOSEN")
    assert found["value"].isna().all() and found["low"].isna().all() and len(found) == 4
    assert found["note"].eq("no score on validation").all()


def test_every_run_has_its_validation():
    _, _, scores = everything(1)
    with pytest.raises(ValueError, match="2 runs but 1 validations"): bm.over_seeds([scores] * 2, [scores])


def test_shuffled_test_scores_change_no_choice():
    train, test, scores = everything(1)
    held_out = matrix(201)
    held = bm.stack(Scores.of_models(held_out, 0), bm.bounds(train, held_out, 0), routed(held_out, 1))
    mixed = np.random.default_rng(0).permuted(scores.score, axis=1)
    shuffled = Scores(scores.configs, scores.tasks, mixed, scores.cost, 0)
    tables = [bm.perfcost(held, s, resamples=0) for s in (scores, shuffled)]
    chose = "metric in ['PerfGain', 'Saving', 'SavingReached'] and chosen == @bm.CHOSEN"
    notes = [t.query(chose)["note"] for t in tables]
    assert notes[0].tolist() == notes[1].tolist() and "setting" in notes[0].str.cat()


def test_without_costs_the_rest_stands():
    "No price: accuracies as ever, CostSave missing for that reason and no other, no frontier."
    _, _, scores = everything(1)
    free = Scores(scores.configs, scores.tasks, scores.score, np.full_like(scores.cost, np.nan), 0)
    table, priced = (bm.bench_table(s, s, resamples=20).set_index(bm.METRIC_KEYS) for s in (free, scores))
    for metric in ("AvgAcc", "GapAtOracle", "PerfGain"):
        one, other = (t.xs(metric, level="metric")["value"] for t in (table, priced))
        np.testing.assert_allclose(one, other)
    save = table.xs("CostSave", level="metric")
    assert save["value"].isna().all() and save["note"].loc[bm.BEST].eq("a cost is unknown or 0").all()
    assert table.xs("Cost", level="metric")["note"].str.contains("no cost on a").all()
    assert not {"ParetoDist", "ParetoDistFixed", "Hypervolume"} & set(table.index.get_level_values("metric"))


def test_a_reference_is_needed():
    _, test, _ = everything(0)
    models = Scores.of_models(test, 0)
    with pytest.raises(ValueError, match="stack `bounds`"): bm.bench_table(models)
    with pytest.raises(ValueError, match="stack `bounds`"): bm.gain_at_random(bm.domain_table(models))


# intervals ------------------------------------------------------------------------------------------------------------
def resampled(scores, draws, r):
    "The scores of resample r, its rows repeated as often as they were drawn."
    pairs = zip(scores.tasks["domain"], scores.tasks["task_id"])
    rows = np.repeat(np.arange(len(scores.tasks)), [draws[d][1][r, draws[d][0].get_loc(i)] for d, i in pairs])
    return Scores(scores.configs, scores.tasks.iloc[rows].reset_index(drop=True), scores.score[:, rows],
                  scores.cost[:, rows], scores.seed)


def values_of(scores, resamples=0, **args):
    keys = ["method", "setting", "metric", "chosen"]
    table = bm.bench_table(scores, resamples=resamples, **args)
    return table[table["metric"] != "CostSaveQualifies"].set_index(keys)


def test_intervals_are_percentiles_of_tables_of_repeated_rows():
    _, _, scores = everything(5, n=60, missing=.05)
    anchors = Anchors.of(bm.config_table(bm.domain_table(Scores(
        scores.configs.iloc[:4], scores.tasks, scores.score[:4], scores.cost[:4], 0))))
    resamples, draws = 40, bm.task_draws([scores], 40, 7)
    again = pd.concat([values_of(resampled(scores, draws, r + 1), anchors=anchors)["value"] for r in range(resamples)],
                      axis=1)
    table = values_of(scores, resamples, anchors=anchors, seed=7)
    low, high = np.nanpercentile(again.reindex(table.index).to_numpy(), [2.5, 97.5], axis=1)
    defined = table["value"].notna().to_numpy()
    np.testing.assert_allclose(table["low"][defined], low[defined], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table["high"][defined], high[defined], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table["value"], values_of(scores, anchors=anchors)["value"])


def test_qualifying_share():
    _, _, scores = everything(5, n=60, missing=.05)
    draws, share, names = bm.task_draws([scores], 50, 0), [], scores.configs["method"].tolist()
    for r in range(50):
        again = resampled(scores, draws, r + 1)
        pairs = [loop_pair(again, i, names.index(bm.BEST)) for i, m in enumerate(names) if m == "R"]
        lead = [mean(list(own.values())) - mean(list(its.values())) for own, its in pairs]
        share.append(any(v >= -1e-12 for v in lead))
    table = bm.bench_table(scores, resamples=50)
    assert table.query("metric == 'CostSaveQualifies' and method == 'R'")["value"].item() == pytest.approx(mean(share))


def test_table_values_are_those_of_the_public_functions():
    _, _, scores = everything(4, missing=0)
    points = bm.config_table(scores)
    table = bm.bench_table(scores, resamples=0)
    models = Anchors.of(points[points["group"] == "model"])
    for metric in ("AvgAcc", "Cost", "GainAtBest", "OracleGap"):
        np.testing.assert_allclose(table.query("metric == @metric")["value"], points[metric])
    found = dict(ParetoDist=bm.pareto_dist(points), ParetoDistFixed=bm.pareto_dist(points, models),
                 Hypervolume=bm.hypervolume(points, models))
    for metric, expected in found.items():
        rows = table[table["metric"] == metric]
        assert rows["method"].tolist() == expected["method"].tolist()
        np.testing.assert_allclose(rows["value"], expected["value"])
    for metric, expected in dict(PerfGain=bm.perf_gain(points), CostSave=bm.cost_save(points)).items():
        rows = table[table["metric"] == metric]
        assert rows["method"].tolist() == expected["method"].tolist()
        np.testing.assert_allclose(rows["value"], expected["value"])


def overlapping(n_seeds=3):
    "Runs of several seeds, each tested on two thirds of the same tasks."
    whole, rng, runs = matrix(9, n=60, missing=0), np.random.default_rng(0), []
    for seed in range(n_seeds):
        rows = np.sort(rng.permutation(60)[:40])
        test = whole.take(rows)
        run = bm.stack(Scores.of_models(test, seed), bm.bounds(whole, test, seed))
        runs.append(run)
    return runs


def test_seeds_share_their_draws():
    runs = overlapping()
    table, draws = bm.over_seeds(runs, resamples=60, seed=3), bm.task_draws(runs, 60, 3)
    row = table[(table["method"] == "m1") & (table["metric"] == "AvgAcc")].iloc[0]
    def average(r): return mean([mean(list(accuracies(resampled(run, draws, r))["m1", None].values())) for run in runs])
    assert row["value"] == pytest.approx(average(0)) and row["seeds"] == 3
    low, high = np.percentile([average(r) for r in range(1, 61)], [2.5, 97.5])
    assert (row["low"], row["high"]) == pytest.approx((low, high))


@pytest.mark.parametrize("n_seeds", [1, 2, 5])
def test_more_seeds_on_the_same_items_know_no_more(n_seeds):
    "An interval of brute force: rows of all seeds repeated as one draw of tasks says, the mean over all of them."
    whole = matrix(9, n=60, missing=0)
    run = bm.stack(Scores.of_models(whole, 0), bm.bounds(whole, whole, 0))
    runs = [Scores(run.configs, run.tasks, run.score, run.cost, seed) for seed in range(n_seeds)]
    row = bm.over_seeds(runs, resamples=300, seed=3).query("method == 'm1' and metric == 'AvgAcc'").iloc[0]
    rng, means = np.random.default_rng(1), []
    for _ in range(300):
        drawn = np.concatenate([rng.choice(np.flatnonzero(whole.domain == d), (whole.domain == d).sum())
                                for d in range(3)])
        pooled = np.concatenate([whole.score[drawn, 1]] * n_seeds), np.concatenate([whole.domain[drawn]] * n_seeds)
        means.append(mean([pooled[0][pooled[1] == d].mean() for d in range(3)]))
    low, high = np.percentile(means, [2.5, 97.5])
    assert row["high"] - row["low"] == pytest.approx(high - low, rel=.15)


def test_fits_of_a_seed_are_in_the_interval():
    "Two fits as unlike as right and wrong: their mean is unsure by as much as their spread says, however many tasks."
    tasks = pd.DataFrame(dict(task_id=[f"q{i:04d}" for i in range(2000)], domain="a", repeat=0))
    def run(seed, score):
        return bm.stack(Scores.of(bm.BEST, [np.nan], np.full((1, 2000), .5), np.ones((1, 2000)), tasks, seed),
                        Scores.of("R", [np.nan], np.full((1, 2000), score), np.ones((1, 2000)), tasks, seed))
    def width(*runs):
        row = bm.over_seeds(runs, resamples=2000).query("method == 'R' and metric == 'LeadOverBest'").iloc[0]
        assert row["value"] == pytest.approx(0) and row["seeds"] == len({r.seed for r in runs})
        return row["high"] - row["low"]
    assert width(run(0, .5)) == width(run(0, .5), run(0, .5)) == 0
    assert width(run(0, .4), run(0, .6)) == pytest.approx(.2), "one of two is drawn"
    spread, n = np.linspace(.4, .6, 9), 5
    many = width(*(run(s, v) for s in range(n) for v in spread))
    assert many == pytest.approx(2 * 1.96 * spread.std(ddof=1) / (9 * n) ** .5, rel=.1), "nine fits of five seeds"


# invariances ----------------------------------------------------------------------------------------------------------
def test_order_of_items_and_configurations_does_not_matter():
    _, _, scores = everything(6)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(len(scores.configs)), rng.permutation(len(scores.tasks))
    moved = Scores(scores.configs.iloc[rows].reset_index(drop=True), scores.tasks.iloc[columns].reset_index(drop=True),
                   scores.score[np.ix_(rows, columns)], scores.cost[np.ix_(rows, columns)], 0)
    one, other = (values_of(s, 30)[["value", "low", "high"]] for s in (scores, moved))
    pd.testing.assert_frame_equal(one.sort_index(), other.sort_index(), check_exact=False, rtol=1e-9, atol=1e-12)


def test_another_dataset_moves_no_draw():
    runs = overlapping(1)
    fewer = (runs[0].tasks["domain"] != "c").to_numpy()
    part = Scores(runs[0].configs, runs[0].tasks[fewer].reset_index(drop=True), runs[0].score[:, fewer],
                  runs[0].cost[:, fewer], 0)
    whole, less = bm.task_draws(runs, 5, 0), bm.task_draws([part], 5, 0)
    for d in ("a", "b"): np.testing.assert_array_equal(whole[d][1], less[d][1])


def test_repeats_of_an_item_are_drawn_together():
    tasks = pd.DataFrame(dict(task_id=["q1", "q1", "q2", "q2"], domain="a", repeat=[0, 1, 0, 1]))
    score = np.array([[1., 1, 0, 0]])
    run = Scores.of("m", [np.nan], score, score, tasks, 0, "model")
    grid = bm._measured(run, bm.task_draws([run], 200, 0))
    assert set(np.unique(grid.accuracy[1:])) == {0, .5, 1}, "two tasks, so three means"
    assert abs((grid.accuracy[1:] == .5).mean() - .5) < .1


def test_scores_that_do_not_fit():
    _, test, scores = everything(0)
    with pytest.raises(ValueError, match="stands there twice"): bm.stack(scores, scores)
    with pytest.raises(ValueError, match="not on the same tasks"):
        bm.stack(scores, routed(test.take(np.arange(5)), 0))
    with pytest.raises(ValueError, match="one row per configuration"):
        Scores(scores.configs, scores.tasks, scores.score[1:], scores.cost, 0)
    with pytest.raises(ValueError, match="none of router"): Scores(scores.configs.assign(group="?"), scores.tasks,
                                                                   scores.score, scores.cost, 0)
