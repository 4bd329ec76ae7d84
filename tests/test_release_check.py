"""A release beside the printed tables: what agrees, what one altered cell shows, and what the command says."""
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.analyses.release_check import (DATASETS, MODELS, TABLES, TOTAL, agrees, printed_cells, release_check,
                                                spelled_out)
from mtrouter_nb.data.release import write_synthetic_release


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "(folder of a release, its tables' folder, printed cells of that release, from what was written)."
    root = tmp_path_factory.mktemp("made")
    truth = write_synthetic_release(root / "release", rows=2500, seed=5, text=40, quirks=False)
    return root / "release", root / "tables", printed_as(truth)


def printed_as(truth) -> pd.DataFrame:
    "The tables that a paper on the release would print."
    cells = printed_cells()
    for i, (table, row, column) in enumerate(cells[["table", "row", "column"]].itertuples(index=False)):
        _, setting, quantity = TABLES[table]
        matrix = truth.matrices[setting.name]
        mine = (matrix.tasks["domain"] == DATASETS.get(column)).to_numpy() | (column == TOTAL)
        m = matrix.models.index(MODELS[row])
        exact = 100 * matrix.score[mine, m].mean() if quantity == "accuracy" else matrix.cost[mine, m].sum()
        cells.loc[i, "printed"] = round(exact, 2)
    return cells


def test_the_release_that_was_printed_agrees_in_every_cell(made):
    folder, tables, printed = made
    checked = release_check(folder, printed, tables)
    assert checked["agrees"].all() and checked["ours"].notna().all() and len(checked) == 573


@pytest.mark.parametrize("at, by", [(0, .01), (310, -.01), (500, .02)])
def test_one_altered_cell_is_the_one_that_is_named(made, at, by):
    folder, tables, printed = made
    altered = printed.assign(printed=printed["printed"].where(printed.index != at, printed["printed"] + by))
    checked = release_check(folder, altered, tables)
    assert list(checked.index[~checked["agrees"]]) == [at]
    cell = checked.loc[at]
    assert f"Table {cell['table']}, {cell['row']}, {cell['column']}: printed" in spelled_out(checked)


def test_a_dataset_that_is_missing_has_no_numbers(made, tmp_path):
    "And a dash agrees with no records."
    folder, _, printed = made
    files = sorted((folder / "results" / "bench" / "aime").rglob("*.json"))
    for path in files:
        run = json.loads(path.read_text(encoding="utf-8"))
        copy = tmp_path / "results" / "bench" / path.relative_to(folder / "results" / "bench")
        copy.parent.mkdir(parents=True)
        copy.write_text(json.dumps(run), encoding="utf-8")
    dashed = printed.assign(printed=printed["printed"].where(printed["column"] != "HLE"))
    checked = release_check(tmp_path, dashed, tmp_path / "tables")
    aime, dash = checked["column"] == "AIME", checked["column"] == "HLE"
    assert checked.loc[aime | dash, "agrees"].all() and not checked.loc[~aime & ~dash, "agrees"].any()
    assert checked.loc[~aime & (checked["column"] != TOTAL), "ours"].isna().all()


def test_what_is_printed_is_upstreams_reading(tmp_path):
    "A null score is 0, an absent record is in no mean."
    save(tmp_path, "aime", "hybrid", "gpt-5", [1, None, 1, 0], cost=.25)
    save(tmp_path, "aime", "hybrid", "glm-4.6", [1, 0], cost=.5)
    checked = release_check(tmp_path, tables=tmp_path / "tables").set_index(["table", "row", "column"])["ours"]
    assert checked["9", "GPT-5", "AIME"] == 50 and checked["10", "GPT-5", TOTAL] == 1
    assert checked["9", "GLM-4.6", "AIME"] == 50 and checked["10", "GLM-4.6", "AIME"] == 1
    assert checked.notna().sum() == 6


def save(root, dataset, split, model, scores, cost):
    records = [dict(index=i, origin_query=f"q{i}", prompt=f"Q: q{i}", prompt_tokens=9, completion_tokens=5, cost=cost,
                    score=score, raw_output="x") for i, score in enumerate(scores, 1)]
    path = root / "results" / "bench" / dataset / split / model / f"{dataset}-{split}-{model}-20250901_120000.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(dict(demo=False, counts=len(records), model_name=model, dataset_name=dataset,
                                    split=split, records=records)))


def test_half_of_the_last_digit():
    printed, ours = [66.67, 66.67, 66.67, np.nan, np.nan, 1], [66.665, 66.675, 66.6751, np.nan, 0, np.nan]
    assert list(agrees(pd.Series(printed), pd.Series(ours))) == [True, True, False, True, False, False]


# --- the command ------------------------------------------------------------------------------------------------------

@pytest.fixture
def command(made, monkeypatch, tmp_path):
    monkeypatch.setenv("MTROUTER_ROOT", str(tmp_path))
    from mtrouter_nb.__main__ import release
    from mtrouter_nb.studio.reproduce import main
    return lambda folder: main(["--release", str(folder)], release=release)


def test_the_command_is_one_where_a_cell_differs(command, made, tmp_path, capsys):
    assert command(made[0]) == 1
    said, kept = capsys.readouterr().out, pd.read_csv(tmp_path / "build" / "release_check.csv")
    assert "Table 6: " in said and "and 551 more" in said and len(kept) == 573 and not kept["agrees"].all()
    [tables] = (tmp_path / "build").glob("release_*/")
    before = {path: path.stat().st_mtime_ns for path in tables.rglob("*.parquet")}
    assert command(made[0]) == 1 and {path: path.stat().st_mtime_ns for path in before} == before, "converted once"


def test_the_command_is_zero_where_all_agrees(command, made, monkeypatch, capsys):
    monkeypatch.setattr("mtrouter_nb.analyses.release_check.printed_cells", lambda: made[2])
    assert command(made[0]) == 0
    assert capsys.readouterr().out.startswith("Table 6: 300 of 300 cells agree.")


def test_a_folder_without_a_release_is_one_sentence(command, tmp_path, capsys):
    assert command(tmp_path / "none") == 2
    assert "holds no result file" in capsys.readouterr().err


def test_make_hands_the_folder_on(root):
    said = subprocess.run(["make", "-n", "-o", "venv", "reproduce", "RELEASE=a b"], cwd=root, capture_output=True,
                          text=True, check=True).stdout
    assert '--release "a b"' in said
    plain = subprocess.run(["make", "-n", "-o", "venv", "reproduce"], cwd=root, capture_output=True, text=True)
    assert "--release" not in plain.stdout


def test_the_module_offers_the_option():
    asked = subprocess.run([sys.executable, "-m", "mtrouter_nb", "--help"], capture_output=True, text=True, check=True)
    assert "--release FOLDER" in asked.stdout
