"""Upstream's own loader and tables on a generated release, as committed numbers, beside what is made of it here."""
import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.data.outcomes import prompt_order_split
from mtrouter_nb.data.release import PERF_COST, PERFORMANCE, convert_release, load_release, write_synthetic_release
from mtrouter_nb.single_turn.metrics import (ORACLE, PER_DATASET_TEST, RANDOM, Scores, bounds, config_table,
                                             domain_table, stack)

SETTINGS = {setting.name: setting for setting in (PERFORMANCE, PERF_COST)}
SAME = {RANDOM: "AVG", PER_DATASET_TEST: "Max Expert", ORACLE: "Oracle"}  # upstream's name
MEANS = [("accuracy", "Dataset-Avg", "AvgAcc"), ("accuracy", "Sample-Avg", "SampleAvg"),
         ("cost", "Dataset-Sum", "Cost")]  # quantity, upstream's column, ours
KEYS = ["release", "setting", "rows", "quantity", "dataset", "method"]


def summary(matrix) -> pd.DataFrame:
    "(quantity, dataset, method, ours): what upstream's two tables hold, by this package's metrics."
    cells = domain_table(stack(Scores.of_models(matrix, 0), bounds(matrix, matrix, 0))).replace({"method": SAME})
    whole = config_table(cells)
    parts = [cells.rename(columns=dict(domain="dataset")).assign(quantity=quantity, ours=cells[column])
             for quantity, column in (("accuracy", "accuracy"), ("cost", "cost_usd"))]
    parts += [whole.assign(quantity=kind, dataset=name, ours=whole[column]) for kind, name, column in MEANS]
    return pd.concat(parts, ignore_index=True)[["quantity", "dataset", "method", "ours"]]


def clean_release(out) -> pd.DataFrame:
    "Everything that upstream's tables hold but Random, on all rows and on the test rows of seed 42."
    parts = []
    for name, setting in SETTINGS.items():
        matrix = load_release(out, setting, sorted(setting.splits), as_upstream=True)
        taken = {"all": matrix, "test, seed 42": matrix.take(prompt_order_split(matrix, 42)[1])}
        parts += [summary(part).assign(setting=name, rows=rows) for rows, part in taken.items()]
    return pd.concat(parts).assign(release="clean")


def odd_release(out) -> pd.DataFrame:
    "Means and sums of each model's records, in a release with null scores, failed calls and absent records."
    rows = []
    for name, setting in SETTINGS.items():
        matrix = load_release(out, setting, as_upstream=True)
        for model, score, cost in zip(matrix.models, matrix.score.T, matrix.cost.T):
            of = [(d, matrix.domain == i) for i, d in enumerate(matrix.domains)]
            of = [(dataset, mine) for dataset, mine in of if not np.isnan(score[mine]).all()]
            means, sums = {d: np.nanmean(score[mine]) for d, mine in of}, {d: np.nansum(cost[mine]) for d, mine in of}
            means |= {"Dataset-Avg": np.mean([*means.values()]), "Sample-Avg": np.nanmean(score)}
            sums["Dataset-Sum"] = np.nansum(cost)
            rows += [(name, kind, dataset, model, value) for kind, values in (("accuracy", means), ("cost", sums))
                     for dataset, value in values.items()]
    table = pd.DataFrame(rows, columns=["setting", "quantity", "dataset", "method", "ours"])
    return table.assign(release="odd", rows="all")


@pytest.fixture(scope="module")
def remade(tmp_path_factory):
    "This package's side, from the same generated release."
    tables = {}
    for release, make in (("clean", clean_release), ("odd", odd_release)):
        root = tmp_path_factory.mktemp(release)
        write_synthetic_release(root / "made", rows=19_000, seed=13, text=60, quirks=release == "odd")
        convert_release(root / "made", root / "tables", workers=1, progress=False)
        tables[release] = make(root / "tables")
    return pd.concat(tables.values()).set_index(KEYS)["ours"]


@pytest.fixture(scope="module")
def committed(root):
    "Upstream's numbers, and ours as they were then."
    table = pd.read_csv(root / "data" / "published" / "upstream_agreement.csv", comment="#", keep_default_na=False)
    return table.set_index(KEYS)


def test_the_committed_numbers_are_those_of_this_package(committed, remade):
    assert committed.index.is_unique and len(committed) > 2000
    np.testing.assert_allclose(remade.reindex(committed.index), committed["ours"], rtol=0, atol=1e-9)


def test_both_agree_on_every_accuracy_mean_and_cost(committed):
    far = (committed["upstream"] - committed["ours"]).abs() > 1e-9
    unexplained = committed[far & (committed["why"] == "")]
    assert unexplained.empty, unexplained
    assert committed[committed["why"] != ""].index.equals(committed[far].index), "a reason where nothing differs"


def test_what_differs_is_a_bound_that_is_defined_otherwise(committed):
    told = committed[committed["why"] != ""].reset_index()
    assert set(told["method"]) == {"Max Expert", "Oracle"} and set(told["quantity"]) == {"cost"} and len(told) <= 10


def test_every_dataset_model_and_quantity_is_there(committed):
    cells = committed.reset_index()
    for name, setting in SETTINGS.items():
        mine = cells[(cells["setting"] == name) & (cells["release"] == "clean") & (cells["quantity"] == "accuracy")]
        assert set(mine["dataset"]) == {*setting.splits, "Dataset-Avg", "Sample-Avg"}
        assert set(mine["method"]) == {*setting.models, *SAME.values()}
    assert set(cells[cells["quantity"] == "cost"]["setting"]) == {PERF_COST.name}, "small models have no price"
