"""The official release: what is written comes back cell by cell, every quirk is counted, and nothing is lost."""
import json
import os
import random
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.data.outcomes import VALUES, OutcomeError, prompt_order_split
from mtrouter_nb.data.release import (PERFORMANCE, PERF_COST, QUIRKS, ReleaseError, Setting, convert_release,
                                      load_release, openrouter_choices, quality, release_files,
                                      write_synthetic_release, zero_filled)

KEYS = ["dataset", "split", "model", "kind", "count"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "(folder of a synthetic release, folder of its tables, what must come out)."
    root, out = tmp_path_factory.mktemp("release"), tmp_path_factory.mktemp("tables")
    truth = write_synthetic_release(root, rows=3900, seed=1, text=200)
    convert_release(root, out, workers=2, progress=False)
    return root, out, truth


def counted(table):
    return {tuple(row) for row in table[KEYS].astype(str).to_numpy()}


def same(matrix, true):
    assert matrix.models == true.models and matrix.evidence == true.evidence == "simulated"
    assert matrix.tasks.astype(str).equals(true.tasks.astype(str))
    for field in VALUES: np.testing.assert_array_equal(getattr(matrix, field), getattr(true, field), err_msg=field)


# --- an independent reading: json and dictionaries --------------------------------------------------------------------

def upstream_cells(root):
    "(dataset, split, model) -> records of the newest run that is no demo, as upstream's loader finds them."
    newest = {}
    for path in sorted((root / "results" / "bench").rglob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        key, stamp = (run["dataset_name"], run["split"], run["model_name"]), path.name[-20:]
        if not run["demo"] and stamp >= newest.get(key, ("", None))[0]: newest[key] = stamp, run["records"]
    return {key: records for key, (_, records) in newest.items()}


@pytest.mark.parametrize("setting", [PERFORMANCE, PERF_COST], ids=lambda s: s.name)
def test_matrix_is_the_truth(made, setting):
    same(load_release(made[1], setting), made[2].matrices[setting.name])


@pytest.mark.parametrize("setting", [PERFORMANCE, PERF_COST], ids=lambda s: s.name)
def test_as_upstream_has_upstreams_means(made, setting):
    root, out, _ = made
    matrix, cells = load_release(out, setting, as_upstream=True), upstream_cells(root)
    filled, absent = zero_filled(matrix), 0
    for d, dataset in enumerate(matrix.domains):
        mine = matrix.domain == d
        for m, model in enumerate(matrix.models):
            records = cells.get((dataset, setting.splits[dataset], model), [])
            score, cost = matrix.score[mine, m], matrix.cost[mine, m]
            assert (~np.isnan(score)).sum() == (~np.isnan(cost)).sum() == len(records)
            absent += mine.sum() - len(records)
            if records:
                assert np.nanmean(score) == pytest.approx(np.mean([r["score"] or 0 for r in records]))
                assert np.nanmean(cost) == pytest.approx(np.mean([r["cost"] for r in records]))
            assert filled.score[mine, m].sum() == pytest.approx(np.nansum(score))
    assert absent == np.isnan(matrix.score).sum() > 0 and not np.isnan(filled.score).any()


@pytest.mark.parametrize("seed", [42, 3407])
def test_the_papers_split_is_upstreams_on_a_release(made, seed):
    "Upstream's rule over its records: datasets by path, prompts by first index, one stream of random numbers."
    root, out, _ = made
    matrix, cells = load_release(out, as_upstream=True), upstream_cells(root)
    rng, want = random.Random(seed), set()
    for dataset, part in sorted(PERF_COST.splits.items()):
        first = {}
        for model in matrix.models:
            for r in cells.get((dataset, part, model), []): first.setdefault(r["prompt"], r["index"])
        prompts = sorted(first, key=first.get)
        order = list(range(len(prompts)))
        rng.shuffle(order)
        want |= {(dataset, prompts[i]) for i in order[:int(len(prompts) * .7)]}
    got = matrix.tasks.iloc[prompt_order_split(matrix, seed)[0]]
    assert list(matrix.domains) != sorted(matrix.domains) and set(zip(got["domain"], got["prompt"])) == want


def test_nothing_unknown_becomes_zero(made):
    for setting in (PERFORMANCE, PERF_COST):
        matrix = load_release(made[1], setting)
        assert not (matrix.cost == 0).any() and not (matrix.input_tokens <= 0).any()
        assert not (matrix.output_tokens < 0).any()
    assert np.isnan(load_release(made[1], PERFORMANCE).cost).all(), "small models have no price"


def test_prompts_and_scores_by_hand(made):
    "By prompt text, not by index: every record of a release that is no failure has its score in the matrix."
    root, out, _ = made
    matrix, cells = load_release(out), upstream_cells(root)
    for m, model in enumerate(matrix.models):
        records = cells["gpqa", "test", model]
        at = dict(zip(matrix.tasks["prompt"], matrix.score[:, m]))
        for r in records:
            known = r["score"] if "failed:" not in r["raw_output"] else None
            assert at[r["prompt"]] == known if known is not None else np.isnan(at[r["prompt"]])


def test_quality_counts_every_quirk_and_nothing_else(made):
    table = quality(made[1])
    assert counted(table) == counted(made[2].issues)
    assert set(table["kind"]) < set(QUIRKS) and table["read_as"].notna().all()
    assert (table["count"] <= table["of"]).all()


def test_a_clean_release_has_no_quirk_but_missing_prices(tmp_path):
    truth = write_synthetic_release(tmp_path / "r", rows=2000, text=50, quirks=False)
    convert_release(tmp_path / "r", tmp_path / "o", workers=1, progress=False)
    kinds = quality(tmp_path / "o").groupby("kind")["count"].sum()
    assert set(kinds.index) == {"no price", "overlapping splits"}
    assert counted(quality(tmp_path / "o").query("kind == 'no price'")) == counted(truth.issues)
    same(load_release(tmp_path / "o"), truth.matrices[PERF_COST.name])
    with pytest.raises(ReleaseError, match="no record of 'openrouter'"): openrouter_choices(tmp_path / "o")


def test_openrouters_choices(made):
    got, want = openrouter_choices(made[1]), made[2].choices
    pd.testing.assert_frame_equal(*(t.astype(object).where(t.notna(), "") for t in (got, want)))
    logged = {(r["prompt"], r["extra_fields"]["actual_model"])
              for r in upstream_cells(made[0])["hle", "test", "openrouter"]}
    prompts = load_release(made[1]).tasks.set_index("task_id")["prompt"]
    mine = got[got["domain"] == "hle"]
    assert set(zip(mine["task_id"].map(prompts), mine["chosen"])) == logged


def test_the_writer_is_deterministic_and_has_upstreams_layout(tmp_path):
    for name in "ab": write_synthetic_release(tmp_path / name, rows=1000, seed=3, text=60)
    files = sorted((tmp_path / "a").rglob("*.json"))
    assert len(files) > 400
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        run = json.loads(path.read_text(encoding="utf-8"))
        assert list(run) == ["performance", "time_taken", "prompt_tokens", "completion_tokens", "cost", "counts",
                             "model_name", "dataset_name", "split", "demo", "extra_metrics", "data_fingerprint",
                             "records"]
        assert path.read_text(encoding="utf-8").startswith('{\n  "performance": ')
    with pytest.raises(ReleaseError, match="holds results"): write_synthetic_release(tmp_path / "a")


# --- one release by hand ----------------------------------------------------------------------------------------------

MINE = Setting("mine", {"d": "test"}, ("a", "b"))


def record(index, **changes):
    base = dict(index=index, origin_query=f"q{index}", prompt=f"Question: q{index}", prompt_tokens=10,
                completion_tokens=5, cost=.25, score=1.0, prediction="x", ground_truth="x", raw_output="text",
                extra_fields={})
    return base | changes


def save(root, model, records, name="d-test-{}-20250101_000000.json", folder="d/test/{}", **header):
    path = root / "results" / "bench" / folder.format(model) / name.format(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    run = dict(performance=0, demo=False, counts=len(records), model_name=model, dataset_name="d",
               split="test") | header
    path.write_text(json.dumps(run | dict(records=records), indent=2))
    return path


@pytest.fixture
def two(tmp_path):
    "A release of models a and b with three records each."
    for model in "ab": save(tmp_path, model, [record(i) for i in (1, 2, 3)])
    return tmp_path


def read(root, **args):
    convert_release(root, root / "out", workers=1, progress=False)
    return load_release(root / "out", **{"setting": MINE} | args)


def test_identity_is_the_headers(tmp_path):
    save(tmp_path, "a", [record(1)], folder="elsewhere")
    save(tmp_path, "b", [record(1, score=0)], folder="else/where/b/deep", name="x.json")
    matrix = read(tmp_path)
    assert matrix.score.tolist() == [[1, 0]] and matrix.tasks["task_id"].tolist() == ["d/test/1"]
    assert matrix.evidence == "logged"


def test_newest_run_by_name_then_by_file_time(two):
    save(two, "a", [record(i, score=0) for i in (1, 2, 3)], name="d-test-a-20250102_000000.json")
    save(two, "a", [record(i, score=.5) for i in (1, 2, 3)], name="d-test-a-20241231_235959.json")
    stamped = save(two, "b", [record(1, score=.5)], name="result.json")
    os.utime(stamped, (1, 1))  # 1970: older than the one with a name
    assert read(two).score.T.tolist() == [[0, 0, 0], [1, 1, 1]]
    os.utime(stamped, None)
    np.testing.assert_array_equal(read(two).score[:, 1], [.5, np.nan, np.nan])
    assert quality(two / "out", [MINE]).set_index(["kind", "model"])["count"].to_dict()["older run", "a"] == 2


def test_resumes_and_converts_only_what_changed(two):
    read(two)
    tables = {p.name: p.stat().st_mtime_ns for p in (two / "out" / "rows").iterdir()}
    time.sleep(.02)
    save(two, "b", [record(1, score=.5)])
    read(two)
    after = {p.name: p.stat().st_mtime_ns for p in (two / "out" / "rows").iterdir()}
    assert set(after) == set(tables) and sum(after[k] != tables[k] for k in tables) == 1
    assert not [p for p in (two / "out").rglob("*.part")]


def test_json_may_go_once_it_is_converted(two):
    before = read(two)
    next((two / "results").rglob("*-a-*.json")).unlink()
    assert np.array_equal(read(two).score, before.score)
    assert release_files(two / "out")["note"].fillna("").tolist().count("JSON is gone") == 1


@pytest.mark.parametrize("damage", [
    lambda b: b[:-40], lambda b: b"", lambda b: b.replace(b'"index": 2', b'"index": "?"'), lambda b: b"\xff\xfe" + b,
    lambda b: b.replace(b'"score": 1.0', b'"score": "good"')])
def test_an_unreadable_file_is_named_and_loses_nothing(two, damage):
    victim = next((two / "results").rglob("*-b-*.json"))
    whole = victim.read_bytes()
    victim.write_bytes(damage(whole))
    with pytest.raises(ReleaseError, match=r"^d/test/b/d-test-b-\S+ is unreadable \(.+\); all other files are conv"):
        read(two)
    assert load_release(two / "out", MINE, models=["a"]).score.tolist() == [[1], [1], [1]]
    assert quality(two / "out", []).query("kind == 'unreadable'")["model"].tolist() == ["d/test/b/" + victim.name]
    with pytest.raises(ReleaseError, match="no model 'b'; it has a"): load_release(two / "out", MINE)
    kept = next((two / "out" / "rows").iterdir())
    stamp = kept.stat().st_mtime_ns
    victim.write_bytes(whole)
    assert read(two).score.shape == (3, 2) and kept.stat().st_mtime_ns == stamp


def test_a_file_that_breaks_later_is_not_read_from_its_old_table(two):
    read(two)
    victim = next((two / "results").rglob("*-b-*.json"))
    victim.write_bytes(victim.read_bytes()[:-40])
    with pytest.raises(ReleaseError, match="unreadable"): read(two)
    with pytest.raises(ReleaseError, match="no model 'b'"): load_release(two / "out", MINE)


def test_nan_as_python_writes_it_is_null(two):
    save(two, "b", [record(1, score=float("nan"), extra_fields=dict(x=float("inf"))), record(2), record(3)])
    np.testing.assert_array_equal(read(two).score[:, 1], [np.nan, 1, 1])


def test_missing_fields_are_missing(two):
    save(two, "b", [{k: v for k, v in record(i).items() if k not in ("cost", "prompt_tokens")} for i in (1, 2, 3)])
    matrix = read(two)
    assert np.isnan(matrix.cost[:, 1]).all() and np.isnan(matrix.input_tokens[:, 1]).all()
    assert quality(two / "out", []).query("kind == 'no cost' and model == 'b'")["count"].tolist() == [3]


@pytest.mark.parametrize("words", ["Generation failed: x", "Multimodal generation failed: x", "Processing failed: x",
                                   "Unexpected error: x"])
def test_failed_calls_are_missing(two, words):
    save(two, "b", [record(1, raw_output=words, score=0, cost=0), record(2, raw_output=f"I say: {words}"), record(3)])
    matrix = read(two)
    np.testing.assert_array_equal(matrix.score[:, 1], [np.nan, 1, 1])
    np.testing.assert_array_equal(matrix.cost[:, 1], [np.nan, .25, .25])


def test_texts_that_are_no_strings(two):
    for model in "ab": save(two, model, [record(1, prompt=[dict(role="user", content="é")], raw_output=dict(a=1))])
    assert read(two).tasks["prompt"].tolist() == ['[{"role":"user","content":"é"}]']


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("gap", [None, 0, 1, 4])
def test_numbers_follow_the_questions(tmp_path, first, gap):
    "Two models count from 1, b from 0 or 1 and may lack a record: each score lands on its own question."
    for model in "ac": save(tmp_path, model, [record(i, prompt=f"q{i}", origin_query=f"q{i}") for i in range(1, 6)])
    save(tmp_path, "b", [record(i + first, prompt=f"q{i + 1}", origin_query=f"q{i + 1}", score=i / 10)
                         for i in range(5) if i != gap])
    matrix = read(tmp_path, setting=Setting("mine", {"d": "test"}, ("a", "b", "c")))
    want = [np.nan if i == gap else i / 10 for i in range(5)]
    np.testing.assert_array_equal(matrix.score[:, 1], want)
    assert matrix.tasks["prompt"].tolist() == [f"q{i}" for i in range(1, 6)]


def test_another_template_is_told_another_question_is_refused(two):
    save(two, "b", [record(1), record(2, prompt="Q: q2"), record(3, prompt="other", origin_query=" q3\n")])
    assert read(two).tasks["prompt"].tolist() == [f"Question: q{i}" for i in (1, 2, 3)]
    assert quality(two / "out", []).query("kind == 'prompt differs, same question'")["count"].tolist() == [2]
    save(two, "b", [record(1), record(2), record(3, prompt="Who?", origin_query="Who?")])
    with pytest.raises(OutcomeError, match=r"model b has another question than a as task 3; leave one of them out"):
        read(two)
    assert read(two, models=["b"]).tasks["prompt"].iloc[2] == "Who?"
    assert quality(two / "out", []).query("kind == 'question differs'")["count"].tolist() == [1]


def test_a_record_twice_is_refused(two):
    save(two, "b", [record(1), record(2), record(2), record(3)])
    with pytest.raises(OutcomeError, match="model b has record 2 twice"): read(two)
    assert quality(two / "out", []).query("kind == 'record twice'")["count"].tolist() == [1]


def test_a_score_outside_0_to_1_is_refused(two):
    save(two, "b", [record(1), record(2, score=7), record(3)])
    with pytest.raises(OutcomeError, match="model b has the score 7.0 on task 2"): read(two)
    assert quality(two / "out", []).query("kind == 'score outside 0 to 1'")["count"].tolist() == [1]


def test_empty_dataset_and_empty_file(two):
    save(two, "b", [])
    assert np.isnan(read(two).score[:, 1]).all()
    assert quality(two / "out", [MINE]).query("model == 'b'")["kind"].tolist() == ["empty file"]
    save(two, "a", [])
    with pytest.raises(ReleaseError, match="d/test has no records"): read(two)


@pytest.mark.parametrize("args, words", [
    (dict(models=["a", "z"]), "no model 'z'; it has a, b"), (dict(datasets=["e"]), "no dataset 'e'; it has d"),
    (dict(setting=Setting("s", {"e": "test"}, ("a",))), "no dataset 'e'; it has d"),
    (dict(setting=Setting("s", {"d": "valid"}, ("a",))), "no split 'valid'; it has test")])
def test_what_is_not_there_is_said_with_what_is(two, args, words):
    with pytest.raises(ReleaseError, match=words): read(two, **args)


def test_nothing_converted_and_nothing_found(tmp_path):
    with pytest.raises(ReleaseError, match="run convert_release"): load_release(tmp_path)
    with pytest.raises(ReleaseError, match="holds no result file"): convert_release(tmp_path, tmp_path / "out")


def test_header_without_split_and_wrong_count(tmp_path):
    save(tmp_path, "a", [record(1)], split=None, counts=9, folder="d/{}")
    assert read(tmp_path, models=["a"]).score.tolist() == [[1]]
    assert set(quality(tmp_path / "out", [])["kind"]) == {"no split in the header", "no split folder",
                                                          "count differs from header"}


def test_records_may_stand_before_the_header(tmp_path):
    path = save(tmp_path, "a", [])
    run = json.loads(path.read_text())
    path.write_text(json.dumps(dict(records=[record(1)] * 1) | {k: v for k, v in run.items() if k != "records"}))
    assert read(tmp_path, models=["a"]).score.tolist() == [[1]]


# --- memory -----------------------------------------------------------------------------------------------------------

PEAK = """
import re, sys
from pathlib import Path
from mtrouter_nb.data.release import _convert_file
base = Path(sys.argv[1])
(base / "out/rows").mkdir(parents=True); (base / "out/prompts").mkdir()
assert _convert_file(next(base.rglob("*.json")), base, base / "out") == ""
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.long
def test_a_file_of_150_MB_takes_less_than_400_MB(tmp_path, root):
    "Two workers and the parent stay under 1 GB at the largest file that the release may have (4,326 records)."
    text = "A long answer, \\frac{1}{2} — with some signs.\n" * 700
    path = save(tmp_path, "a", [record(i, prompt=f"{i} {text[:2000]}", raw_output=text) for i in range(1, 4327)])
    assert path.stat().st_size > 145e6
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, cwd=root,
                          env=os.environ | {"PYTHONPATH": str(root)}, check=True)
    assert float(done.stdout) < 400, "two workers would come too near to 1 GB"
