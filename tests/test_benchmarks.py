"""Outcome sources: readers against reference tables, prices, download from a local server, loading, bad input."""
import functools
import gzip
import hashlib
import http.server
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.core.files import data_homes
from mtrouter_nb.data import bfcl, upstream
from mtrouter_nb.data.bfcl import read_bfcl_upstream
from mtrouter_nb.data.mcpmark import read_mcpmark_upstream
from mtrouter_nb.data.sources import (SOURCES, load_all, load_answers, load_outcomes, measured_models,
                                      sample_outcomes)
from mtrouter_nb.data.upstream import DownloadError, OutcomeSource, list_prices
from mtrouter_nb.data.zeroeval import ANSWER_MODELS, final_answer, is_correct, read_zeroeval_upstream
from mtrouter_nb.data.outcomes import OutcomeError
from mtrouter_nb.data.pool import MINT_POOL
from mtrouter_nb.data.mint import find_mint, mint_models
from mtrouter_nb.data.turns import LogError

READERS = {"zeroeval": read_zeroeval_upstream, "bfcl": read_bfcl_upstream, "mcpmark": read_mcpmark_upstream}
PRICES = {"zeroeval": "zeroeval_list_prices", "mcpmark": "mcpmark_prices"}
KEYS = {"tasks": ["task_id"], "outcomes": ["model", "task_id"], "answers": ["model", "task_id"],
        "runs": ["model", "task_id", "run"]}
SIZES = {("zeroeval", "tasks"): 2840, ("zeroeval", "outcomes"): 2 * 2840, ("zeroeval", "answers"): 2 * 2840,
         ("bfcl", "tasks"): 840, ("bfcl", "outcomes"): 2 * 1390, ("mcpmark", "tasks"): 5, ("mcpmark", "runs"): 2 * 508}


@pytest.fixture(scope="module")
def reference() -> Path:
    "Folder with reference tables and some of upstream's own files; never the cache, which our readers wrote."
    for home in data_homes()[:-1]:
        if all((home / f"{name}_upstream").is_dir() and (home / name).is_dir() for name in READERS):
            return home
    pytest.skip("reference tables and upstream's own files are not here")


@functools.cache
def converted(home: Path, name: str) -> dict:
    return READERS[name](home / f"{name}_upstream")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    "An empty cache, and no data elsewhere."
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(upstream, "data_homes", lambda: [tmp_path / "cache"])
    return tmp_path / "cache"


# --- the readers ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, table", SIZES)
def test_reader_equals_reference_cell_by_cell(reference, name, table):
    ours = converted(reference, name)[table].sort_values(KEYS[table], ignore_index=True)
    expected = pd.read_parquet(reference / name / f"{table}.parquet")
    for column in KEYS[table]:  # upstream's sample has two models, and some of the prompts
        expected = expected[expected[column].isin(ours[column].unique())]
    expected = expected.sort_values(KEYS[table], ignore_index=True)
    assert len(ours) == len(expected) == SIZES[name, table] and list(ours) == list(expected)
    pd.testing.assert_frame_equal(ours, expected, check_exact=True)


def test_every_kept_answer_is_scored_as_in_the_reference(reference):
    outcomes, tasks, answers = (pd.read_parquet(reference / "zeroeval" / f"{table}.parquet")
                                for table in ("outcomes", "tasks", "answers"))
    frame = answers.merge(tasks[["task_id", "dataset", "gold"]]).merge(outcomes[["task_id", "model", "correct"]])
    ours = [is_correct(*row) for row in zip(frame.dataset, frame.answer, frame.gold)]
    assert len(frame) == 12 * 2840 and frame.correct.tolist() == ours
    assert set(frame.model) == set(ANSWER_MODELS)


@pytest.mark.parametrize("name", ["zeroeval", "mcpmark"])
def test_prices_are_those_that_the_reference_costs_imply(reference, name):
    frame = pd.read_parquet(reference / name / f"{dict(zeroeval='outcomes', mcpmark='runs')[name]}.parquet")
    frame, prices = frame.fillna({"input_tokens": 0, "output_tokens": 0}), list_prices(PRICES[name])
    assert set(prices.index) == set(frame.model)
    for model, rows in frame.groupby("model"):
        tokens = rows[["input_tokens", "output_tokens"]].to_numpy(float)
        fitted = np.linalg.lstsq(tokens, rows.cost_usd * 1e6, rcond=None)[0]
        assert fitted == pytest.approx(prices.loc[model].iloc[:2].to_numpy(float), abs=1e-6)
        assert np.abs(tokens @ prices.loc[model].iloc[:2].to_numpy(float) / 1e6 - rows.cost_usd).max() < 1e-12


def test_manifest_is_of_upstream_files(reference):
    checked = 0
    for name in READERS:
        root, manifest = reference / f"{name}_upstream", SOURCES[name].manifest().set_index("path")
        for file in [f for f in sorted(root.rglob("*.gz")) if "model_results" not in f.parts]:
            content = gzip.decompress(file.read_bytes())
            entry = manifest.loc[str(file.relative_to(root)).removesuffix(".gz")]
            assert (len(content), hashlib.sha256(content).hexdigest()) == (entry.bytes, entry.sha256), file
            checked += 1
    assert checked == 6 + 31 + 5


# --- the rule of ZeroEval ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, answer", [
    ('{"answer": "42"}', "42"), ('{"answer" : 42}', "42}"), ("no json", None),
    ('"answer": "___" then "answer": "7"', "7"),
    (r'"answer": "\"x\""', '"x"'), (r'"answer": "a\nb"', "a\nb"), (r'"answer": "\frac{1}{2} \q"', r"\frac{1}{2} \q"),
    ('"answer": "1"\n"answer": [2, 3]', "1"), ('"answer": [2, 3]\n}', "[2, 3]")])
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize("dataset, said, gold, right", [
    ("gsm", "$1,018.00 a day", "# 1,018", True), ("gsm", "8 - 4 = 4", "# 4", False), ("gsm", "2:00 pm", "# 2", True),
    ("math-l5", "5/6", "5", False), ("math-l5", "10/2", "5", True), ("math-l5", "1/0", "1", True),
    ("math-l5", "none", "5", False), ("crux", "'ab'", "'ab'", True), ("crux", " ab", "'ab'", True),
    ("crux", "AB", "'ab'", False), ("crux", "'moo#'", "'moo#'", False), ("crux", "", "''", True)])
def test_is_correct(dataset, said, gold, right):
    assert is_correct(dataset, f'{{"answer": "{said}"}}', gold) is right
    assert not is_correct(dataset, said, gold)  # no field, no answer


# --- bad files --------------------------------------------------------------------------------------------------------

def write(root, path, content):
    file = Path(root, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


RECORD = dict(id="0", chat_history=["Why?"], output=['{"answer": "1"}'], answer="1")


def zeroeval_files(root, model="gpt-4o-2024-05-13", **changed):
    for dataset in ("gsm", "crux", "math-l5"):
        write(root, f"result_dirs/{dataset}/{model}.json", changed.get(dataset.replace("-", "_"), [RECORD]))


@pytest.mark.parametrize("changed, sentence", [
    (dict(gsm='[{"id"'), r"gsm/gpt-4o-2024-05-13.json is not whole JSON"),
    (dict(crux=[RECORD, {**RECORD, "id": "1", "output": []}]), r"crux/gpt-4o-2024-05-13.json, record 2 .*IndexError"),
    (dict(crux=[{k: v for k, v in RECORD.items() if k != "answer"}]), r"record 1 is not as .*'answer'"),
    (dict(math_l5=[RECORD, RECORD]), r"two rows of math-l5 / math-l5/0 / gpt-4o-2024-05-13")])
def test_a_broken_zeroeval_file_is_named(tmp_path, changed, sentence):
    zeroeval_files(tmp_path, **changed)
    with pytest.raises(OutcomeError, match=sentence): read_zeroeval_upstream(tmp_path)


def test_a_truncated_gzip_is_named(tmp_path):
    zeroeval_files(tmp_path)
    path = tmp_path / "result_dirs/gsm/gpt-4o-2024-05-13.json"
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes())[:-12])
    path.unlink()
    with pytest.raises(OutcomeError, match=r"gsm/gpt-4o-2024-05-13.json.gz is not whole JSON"):
        read_zeroeval_upstream(tmp_path)


def test_a_zeroeval_model_without_all_files_is_left_out_or_named(tmp_path):
    zeroeval_files(tmp_path)
    zeroeval_files(tmp_path, "gemma-2-9b-it")
    (tmp_path / "result_dirs/gsm/gemma-2-9b-it.json").unlink()
    assert read_zeroeval_upstream(tmp_path)["outcomes"].model.unique().tolist() == ["gpt-4o-2024-05-13"]
    with pytest.raises(OutcomeError, match="lacks the three files .* of gemma-2-9b-it"):
        read_zeroeval_upstream(tmp_path, ["gemma-2-9b-it"])
    with pytest.raises(OutcomeError, match="of any model"): read_zeroeval_upstream(tmp_path / "nowhere")


def test_prompts_that_differ_between_models_are_refused(tmp_path):
    zeroeval_files(tmp_path)
    zeroeval_files(tmp_path, "gemma-2-9b-it", gsm=[{**RECORD, "chat_history": ["How?"]}])
    with pytest.raises(OutcomeError, match="disagree on gsm/0"): read_zeroeval_upstream(tmp_path)


RESULTS, SCORES = '{"id": "simple_0"}\n{"id": "simple_1"}', '{"total_count": 2, "correct_count": 1}\n{"id": 2}'


def bfcl_files(root, results=RESULTS, scores=SCORES):
    for category in bfcl._CATEGORIES:
        lines = results.replace("simple", category)
        write(root, f"2024-08-11/result/m/gorilla_openfunctions_v1_test_{category}_result.json", lines)
        write(root, f"2024-08-11/score/m/{category}_score.json", scores)


def test_bfcl_without_counters_is_missing_not_zero(tmp_path):
    bfcl_files(tmp_path)
    outcomes = read_bfcl_upstream(tmp_path)["outcomes"]
    assert outcomes[["input_tokens", "output_tokens", "latency_s"]].isna().all(axis=None)
    assert outcomes.correct.tolist() == [True, False] * 7


@pytest.mark.parametrize("changed, error, sentence", [
    (dict(results='{"id": "simple_0"}\n{half'), LogError, r"_simple_result.json, row 2 is not JSON"),
    (dict(results='{"id": "simple_0"}\n{}'), OutcomeError, r"_simple_result.json, record 2 .*'id'"),
    (dict(results=RESULTS[:18]), OutcomeError, "m/simple_score.json counts 1 of 2 right, but the files list 1 answers"),
    (dict(scores=SCORES.replace('"id": 2', '"id": 3')), OutcomeError, "counts 1 of 2 right"),
    (dict(scores=""), OutcomeError, "counts None of None right")])
def test_a_broken_bfcl_file_is_named(tmp_path, changed, error, sentence):
    bfcl_files(tmp_path, **changed)
    with pytest.raises(error, match=sentence): read_bfcl_upstream(tmp_path)


def test_a_missing_bfcl_file_is_named(tmp_path):
    bfcl_files(tmp_path)
    (tmp_path / "2024-08-11/score/m/java_score.json").unlink()
    with pytest.raises(OutcomeError, match="2024-08-11/score/m/java_score.json is missing; fetch it, or leave m out"):
        read_bfcl_upstream(tmp_path)
    with pytest.raises(OutcomeError, match="of gpt-4o"): read_bfcl_upstream(tmp_path, ["m", "gpt-4o"])


def test_a_broken_mcpmark_file_is_named(tmp_path):
    write(tmp_path, "model_results/o3/t.json", dict(model="o3", service="notion", task="t", runs={"run-1": {}}))
    with pytest.raises(OutcomeError, match="o3/t.json, record 1 .*'token_usage'"): read_mcpmark_upstream(tmp_path)
    write(tmp_path, "task_results/t.json", dict(service="notion", models={"o3": dict(runs=[{}])}))
    with pytest.raises(OutcomeError, match="task_results/t.json"): read_mcpmark_upstream(tmp_path)
    with pytest.raises(OutcomeError, match="of any model"): read_mcpmark_upstream(tmp_path / "nowhere")


# --- matrices ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, shape, left_out", [
    ("zeroeval", (2840, 26), "o1-mini-2024-09-12"), ("bfcl", (1390, 71), None),
    ("mcpmark", (508, 38), "claude-opus-4-1")])
def test_default_matrices(reference, name, shape, left_out):
    matrix = load_outcomes(name)
    assert matrix.score.shape == shape and not np.isnan(matrix.score).any() and matrix.evidence == "logged"
    assert matrix.tasks["prompt"].notna().all() and left_out not in matrix.models
    assert not (matrix.cost == 0).any() and not (matrix.latency == 0).any()  # what is unknown is no zero
    table = pd.read_parquet(reference / name / f"{'runs' if name == 'mcpmark' else 'outcomes'}.parquet")
    for model in matrix.models[::9]:
        mine = table[table.model == model]
        right = mine["success" if name == "mcpmark" else "correct"]
        assert right.mean() == pytest.approx(matrix.score[:, matrix.models.index(model)].mean())


def test_order_of_rows_is_that_of_the_tasks(reference):
    tasks = load_outcomes("zeroeval").tasks["task_id"]
    assert tasks.tolist() == pd.read_parquet(reference / "zeroeval/tasks.parquet").task_id.tolist()


def test_mcpmark_repeats(reference):
    matrix = load_outcomes("mcpmark", ["claude-opus-4-1", "o3"])
    assert matrix.models == ("claude-opus-4-1", "o3") and matrix.tasks["repeat"].value_counts().tolist() == [127] * 4
    once = ~np.isnan(matrix.score[:, 0])
    assert (matrix.tasks["repeat"][once] == 0).all() and once.sum() == 127 and not np.isnan(matrix.score[:, 1]).any()


def test_mcpmark_runs_without_tokens_have_no_cost(reference):
    runs = pd.read_parquet(reference / "mcpmark/runs.parquet")
    runs = runs[runs.model != "claude-opus-4-1"]
    matrix = load_outcomes("mcpmark")
    assert np.isnan(matrix.cost).sum() == (~(runs.input_tokens > 0)).sum() == 70
    assert np.nansum(matrix.cost) == pytest.approx(runs.cost_usd.sum())
    assert (matrix.score[np.isnan(matrix.cost)] == 0).all() and (matrix.latency > 0).all()


def test_bfcl_pools(reference):
    table = pd.read_parquet(reference / "bfcl/outcomes.parquet")
    whole = table.dropna().groupby("model").size()
    matrix = load_outcomes("bfcl")
    measured = measured_models(matrix)
    assert measured == sorted(whole.index[whole == 1390]) and len(measured) == 50
    priced, prices = measured_models(matrix, SOURCES["bfcl"].complete), list_prices("bfcl_list_prices")
    assert priced == [m for m in measured if not np.isnan(prices.input_usd_per_mtok[m])] and len(priced) == 44
    matrix = load_outcomes("bfcl", ["gpt-4o-mini-2024-07-18"])
    first = table[(table.model == "gpt-4o-mini-2024-07-18") & (table.task_id == matrix.tasks["task_id"][0])].iloc[0]
    assert matrix.cost[0, 0] == pytest.approx((first.input_tokens * .15 + first.output_tokens * .6) / 1e6)


def test_answers_belong_to_items(reference):
    answers, matrix = load_answers(), load_outcomes("zeroeval")
    assert set(answers.task_id) == set(matrix.tasks["task_id"]) and set(answers.model) == set(ANSWER_MODELS)
    with pytest.raises(OutcomeError, match="not kept of bfcl"): load_answers("bfcl")


@pytest.mark.long
def test_tasks_of_mint_from_start_to_end(reference):
    folder, model = find_mint(mint_models()), "gpt-4-0613"
    if folder is None: pytest.skip("MINT's tables are not here")
    matrix = load_outcomes("mint", MINT_POOL)
    tasks, episodes, turns = (pd.read_parquet(folder / f"{t}.parquet") for t in ("tasks", "episodes", "turns"))
    own = episodes[episodes.model == model].set_index("task_id")
    assert matrix.models == MINT_POOL and set(matrix.tasks["task_id"]) == set(tasks.task_id) and len(matrix) == 586
    rows = own.loc[matrix.tasks["task_id"]]
    assert np.array_equal(matrix.score[:, 0], rows.success)
    price_in, price_out = pd.read_csv(folder / "prices.csv", index_col="model").loc[model].iloc[:2].astype(float)
    assert np.allclose(matrix.cost[:, 0], (rows.input_tokens * price_in + rows.output_tokens * price_out) / 1e6)
    said = load_answers("mint").set_index(["model", "task_id"]).answer.loc[model]
    last = turns[turns.model == model].sort_values("turn").groupby("task_id").action.last()
    assert all(said[task].endswith(last[task]) for task in last.index) and len(said) == 586


def test_names_that_are_not_there(reference):
    for name in ("zeroeval", "bfcl", "mcpmark"):
        with pytest.raises(OutcomeError, match=f"^{name} has no model 'gpt-9'; it has "): load_outcomes(name, ["gpt-9"])
    with pytest.raises(OutcomeError, match="'zero' is not one of zeroeval"): load_outcomes("zero")
    for args in [("zeroeval",), ("auto", "quick")]:
        with pytest.raises(ValueError, match="is not one of"): load_all(*args)


def test_all_of_them(reference):
    full, small = load_all(), load_all(profile="smoke")
    assert [m.name for m in full] == [m.name for m in small] == list(READERS)
    for big, few in zip(full, small):
        assert len(few.models) == 6 and set(few.models) < set(big.models) and few.domains == big.domains
        assert few.tasks["task_id"].nunique() == 30 and not np.isnan(few.score).any()
        assert np.isnan(few.cost).mean() < (.01 if few.name == "mcpmark" else 1e-9)
        again = sample_outcomes(big.select(few.models), 30)
        assert again.fingerprint() == few.fingerprint()


def test_measured_models_of_the_demo():
    demo = load_outcomes("demo", ["sums-8b", "grand-120b"])
    assert demo.models == ("sums-8b", "grand-120b") and measured_models(demo, ["cost"]) == list(demo.models)
    assert demo.evidence == "simulated" and measured_models(demo) == []


# --- the download -----------------------------------------------------------------------------------------------------

@pytest.fixture
def server(tmp_path):
    "(folder served, address)"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def serve_from(monkeypatch, name, url):
    "Let a source's files come from `url`."
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], urls=dict.fromkeys(SOURCES[name].urls, url)))


def test_download_convert_and_keep(cache, server, monkeypatch):
    folder, url = server
    zeroeval_files(folder)
    paths = [str(f.relative_to(folder)) for f in sorted(folder.rglob("*.json"))]
    contents = [(folder / path).read_bytes() for path in paths]
    manifest = pd.DataFrame(dict(path=paths, bytes=[len(c) for c in contents],
                                 sha256=[hashlib.sha256(c).hexdigest() for c in contents]))
    monkeypatch.setattr(OutcomeSource, "manifest", lambda self: manifest)
    serve_from(monkeypatch, "zeroeval", url)
    assert SOURCES["zeroeval"].find() is None
    matrix = load_outcomes("zeroeval", progress=False)
    assert matrix.models == ("gpt-4o-2024-05-13",) and matrix.score.tolist() == [[1]] * 3
    serve_from(monkeypatch, "zeroeval", "http://127.0.0.1:9")  # nothing is fetched again
    assert load_outcomes("zeroeval").fingerprint() == matrix.fingerprint()
    assert SOURCES["zeroeval"].find() == cache / "zeroeval"
    assert sorted(f.name for f in SOURCES["zeroeval"].find().iterdir()) == [
        "answers.parquet", "complete.json", "outcomes.parquet", "tasks.parquet"]


def test_a_path_out_of_the_cache_is_refused_before_any_part_is_fetched(cache, monkeypatch):
    "BFCL comes from two addresses: a bad row of the second, or of neither, stops the first."
    manifest = SOURCES["bfcl"].manifest()
    for row, path in ((len(manifest) - 1, f"{bfcl._PROMPTS}/../../../../a"), (3, "../a")):
        spoilt = manifest.copy()
        spoilt.loc[row, "path"] = path
        monkeypatch.setattr(OutcomeSource, "manifest", lambda self, spoilt=spoilt: spoilt)
        monkeypatch.setattr(upstream, "download_files", lambda *args: pytest.fail("something was fetched"))
        with pytest.raises(DownloadError, match=f"No whole bfcl .*MTROUTER_DATA.* row {row + 1}, .* is not below its"):
            load_outcomes("bfcl", progress=False)


def test_out_of_reach(cache, monkeypatch):
    for name in READERS: serve_from(monkeypatch, name, "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="out of reach; check the network, or set MTROUTER_DATA"):
        load_outcomes("bfcl", progress=False)
    with pytest.warns(UserWarning, match="the demo log stands in") as caught: matrices = load_all(profile="smoke")
    assert len(caught) == 1 and [m.name for m in matrices] == ["demo"] and len(matrices[0]) == 30


def test_addresses_are_pinned():
    for name in READERS:
        addresses = SOURCES[name].urls
        for address in addresses.values():
            assert re.fullmatch(r"https://raw.githubusercontent.com/[\w-]+/[\w-]+/[0-9a-f]{40}", address)
        paths = SOURCES[name].manifest().path
        assert paths.str.startswith(tuple(addresses)).all() and paths.is_unique
