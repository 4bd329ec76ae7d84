"""MINT: converter against reference tables, download against a local server, finding and loading."""
import functools
import gzip
import hashlib
import http.server
import json
import socket
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from mtrouter_nb.core.files import cache_dir, data_homes
from mtrouter_nb.data import mint
from mtrouter_nb.data import upstream as downloads
from mtrouter_nb.data.pool import MINT_POOL, demo_pool
from mtrouter_nb.core.splits import sample_tasks
from mtrouter_nb.data.mint import download_mint, find_mint, load_mint, mint_manifest, mint_models, read_mint_upstream
from mtrouter_nb.data.sources import load_log, pool_of
from mtrouter_nb.data.upstream import DownloadError, download_files
from mtrouter_nb.data.turns import LogError, TurnLog, proposes

PROVEN = ["Meta-Llama-3-70B-Instruct", "Meta-Llama-3-8B-Instruct", "gpt-4-0613"]


@pytest.fixture(scope="module")
def reference() -> Path:
    "Folder with reference tables and some of upstream's own files; never the cache, which our converter wrote."
    for home in data_homes()[:-1]:
        if (home / "mint_upstream").is_dir() and (home / "mint" / "turns.parquet").exists():
            return home
    pytest.skip("reference tables and upstream's own files are not here")


@pytest.fixture(scope="module")
def upstream(reference) -> Path:
    return reference / "mint_upstream"


@pytest.fixture(scope="module")
def converted(upstream) -> TurnLog:
    return read_mint_upstream(upstream, PROVEN)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    "An empty cache, and no data elsewhere."
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MTROUTER_DATA", raising=False)
    for module in (mint, downloads): monkeypatch.setattr(module, "data_homes", lambda: [tmp_path / "cache"])
    return tmp_path / "cache"


# --- the converter --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("table, key", [("tasks", ["task_id"]), ("episodes", ["model", "task_id"]),
                                        ("turns", ["model", "task_id", "turn"])])
def test_converter_equals_reference_cell_by_cell(reference, converted, table, key):
    expected = pd.read_parquet(reference / "mint" / f"{table}.parquet")
    if "model" in expected:
        expected = expected[expected.model.isin(PROVEN)].astype({"model": "str"})
    expected = expected.astype({"task_id": "str"}).sort_values(key, ignore_index=True)
    ours = getattr(converted, table).sort_values(key, ignore_index=True)
    assert len(ours) == len(expected) == dict(tasks=586, episodes=1758, turns=5075)[table]
    pd.testing.assert_frame_equal(ours[list(expected)], expected, check_dtype=False)


def test_tables_load_as_the_converter_makes_them(converted):
    assert load_mint(PROVEN).fingerprint() == converted.fingerprint()


def test_converted_log_is_valid(converted):
    log = converted.validate(pool_of(converted))
    counted = proposes(log.turns.action).groupby(log.turns.episode_id).sum()[log.episodes.episode_id]
    assert counted.tolist() == log.episodes.n_proposals.tolist()
    assert log.episodes.score.tolist() == log.episodes.success.astype(float).tolist()
    assert (log.evidence, log.source) == ("logged", "mint")


def record(counter: dict) -> dict:
    said = [("user", "x" * 390), ("assistant", "y" * 39), ("user", "z" * 78), ("assistant", "<solution>" + "y" * 29)]
    return dict(task=dict(task_id="5", prompt="Say y."), state=dict(
        history=[dict(role=role, content=content) for role, content in said], success=False, token_counter=counter,
        terminate_reason="max_steps", agent_action_count=dict(use_tool=1, propose_solution=1, invalid_action=0)))


def upstream_file(root, lines, model="claude-2", zipped=False) -> Path:
    path = Path(root, "data/outputs", model, "F=None/max5_p2+tool+cd/reasoning/gsm8k/results.jsonl")
    path.parent.mkdir(parents=True)
    content = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines).encode()
    if zipped:
        path = path.with_suffix(".jsonl.gz")
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


# claude-2 and claude-instant-1 log an empty counter, chat-bison-001 an unsplit one, a failed run zeros
@pytest.mark.parametrize("counter", [{}, dict(token_count=9637), dict(prompt_tokens=0, completion_tokens=0)])
def test_absent_counters_are_estimated_at_3_9_characters(tmp_path, counter):
    upstream_file(tmp_path, [record(counter)], zipped=True)
    log = read_mint_upstream(tmp_path)
    episode = log.episodes.iloc[0]
    assert bool(episode.tokens_estimated) and (episode.input_tokens, episode.output_tokens) == (230, 20)
    assert log.turns.input_tokens.tolist() == [100, 130] and log.turns.output_tokens.tolist() == [10, 10]


def test_estimated_models_are_marked_in_the_reference():
    if find_mint(mint_models()) is None:
        pytest.skip("the tables of all 52 models are not here")
    models = ["claude-2", "claude-instant-1", "chat-bison-001"]
    assert load_mint(models).episodes.tokens_estimated.all()
    assert not load_mint(["gpt-4-0613"]).episodes.tokens_estimated.any()


def test_exact_counters_are_kept(tmp_path):
    upstream_file(tmp_path, [record(dict(prompt_tokens=100, completion_tokens=7))])
    log = read_mint_upstream(tmp_path, ["claude-2"])
    assert not log.episodes.tokens_estimated[0] and log.episodes.input_tokens[0] == 100
    assert log.turns.observation[0] == "Say y." and log.turns.observation[1] == "z" * 78
    assert log.turns.input_tokens.tolist() == [round(100 * 390 / 897), round(100 * 507 / 897)]


def test_a_broken_line_is_named(tmp_path):
    upstream_file(tmp_path, [record({}), "{half a rec\n"])
    with pytest.raises(LogError, match="results.jsonl, row 2 is not JSON"):
        read_mint_upstream(tmp_path)


def test_a_model_without_files_is_named(tmp_path):
    upstream_file(tmp_path, [record({})])
    with pytest.raises(FileNotFoundError, match="holds no results.jsonl of gpt-4-0613"):
        read_mint_upstream(tmp_path, ["claude-2", "gpt-4-0613"])
    with pytest.raises(FileNotFoundError, match="any model"):
        read_mint_upstream(tmp_path / "nowhere")


# --- the download ---------------------------------------------------------------------------------------------------

class Handler(http.server.SimpleHTTPRequestHandler):
    "Serves files; those named truncated* promise all bytes and send half, those named stalled* send half and wait."
    requests: list = []
    over = threading.Event()

    def log_message(self, *args): pass

    def do_GET(self):
        self.requests.append(self.path)
        if "truncated" not in self.path and "stalled" not in self.path:
            return super().do_GET()
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:len(content) // 2])
        if "stalled" in self.path: self.over.wait(30)
        self.close_connection = True


@pytest.fixture
def server(tmp_path):
    "(folder served, address, list of paths asked for)"
    folder = tmp_path / "served"
    folder.mkdir()
    Handler.requests = []
    Handler.over.clear()
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    http_server.handle_error = lambda *_: None  # who was cut off hangs up
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{http_server.server_port}", Handler.requests
    Handler.over.set()
    http_server.shutdown()
    http_server.server_close()


def publish(folder, **contents: bytes) -> pd.DataFrame:
    "Put files there and return their manifest."
    rows = []
    for name, content in contents.items():
        path = f"data/F=None/a+b/{name}.jsonl"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        rows.append(dict(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()))
    return pd.DataFrame(rows)


def files_in(folder) -> set[str]:
    return {path.name for path in Path(folder).rglob("*") if path.is_file()}


def test_good_files_arrive_once(server, tmp_path):
    folder, url, asked = server
    manifest = publish(folder, one=b"first" * 1000, two=b"second" * 1000)
    root = download_files(manifest, url, tmp_path / "cache", progress=False)
    assert (root / manifest.path[1]).read_bytes() == b"second" * 1000 and len(asked) == 2
    download_files(manifest, url, tmp_path / "cache", progress=False)
    assert len(asked) == 2


def test_a_file_spoilt_in_the_cache_is_fetched_again(server, tmp_path):
    folder, url, asked = server
    manifest = publish(folder, one=b"first", two=b"second")
    root = download_files(manifest, url, tmp_path / "cache", progress=False)
    (root / manifest.path[0]).write_bytes(b"rust")
    download_files(manifest, url, tmp_path / "cache", progress=False)
    assert (root / manifest.path[0]).read_bytes() == b"first" and len(asked) == 3


@pytest.mark.parametrize("name, sentence", [("truncated", "arrived truncated; run again"),
                                            ("wrong", "does not have the sha256 of the manifest; run again")])
def test_bad_files_are_refused_and_good_ones_kept(server, tmp_path, name, sentence):
    folder, url, asked = server
    manifest = publish(folder, good=b"good" * 1000, **{name: b"bad" * 1000}, later=b"later")
    if name == "wrong":
        (folder / manifest.path[1]).write_bytes(b"b?d" * 1000)
    with pytest.raises(DownloadError, match=sentence) as raised:
        download_files(manifest, url, tmp_path / "cache", progress=False, retries=0)
    assert f"{name}.jsonl" in str(raised.value) and str(raised.value).count(". ") == 0
    assert files_in(tmp_path / "cache") == {"good.jsonl"}
    # the next run goes on where this one stopped
    manifest = manifest[manifest.path.str.contains("good|later")]
    download_files(manifest, url, tmp_path / "cache", progress=False)
    assert files_in(tmp_path / "cache") == {"good.jsonl", "later.jsonl"}
    assert sum("good" in path for path in asked) == 1


def test_a_refused_file_and_an_unreachable_server(server, tmp_path):
    folder, url, _ = server
    manifest = publish(folder, one=b"first")
    (folder / manifest.path[0]).unlink()
    with pytest.raises(DownloadError, match=r"was refused \(404\)"):
        download_files(manifest, url, tmp_path / "cache", progress=False, retries=0)
    with pytest.raises(DownloadError, match="is out of reach; check the network, or set MTROUTER_DATA"):
        download_files(manifest, "http://127.0.0.1:9", tmp_path / "cache", progress=False, retries=0)
    assert files_in(tmp_path / "cache") == set()


@pytest.mark.parametrize("path", ["../a.jsonl", "data/../../a", "/a", r"..\a", r"a\..\..\b", "C:/a", "//b/a", "", None])
def test_a_path_out_of_the_folder_is_refused_before_anything_is_fetched(server, tmp_path, path):
    folder, url, asked = server
    manifest = publish(folder, one=b"first", two=b"second")
    manifest.loc[1, "path"] = path
    sentence = "^The manifest's row 2, .* is not below its folder; nothing was fetched, mend that row.$"
    with pytest.raises(DownloadError, match=sentence) as raised:
        download_files(manifest, url, tmp_path / "cache", progress=False)
    assert repr(manifest.path[1]) in str(raised.value)
    assert asked == [] and not (tmp_path / "cache").exists() and not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize("column, value", [("sha256", None), ("sha256", "abc"), ("bytes", None), ("bytes", -1)])
def test_a_row_that_cannot_be_verified_is_refused(server, tmp_path, column, value):
    folder, url, asked = server
    manifest = publish(folder, one=b"first", two=b"second").astype({"bytes": object})
    manifest.loc[1, column] = value
    with pytest.raises(DownloadError, match="row 2, .*two.jsonl', lacks a size or a sha256"):
        download_files(manifest, url, tmp_path / "cache", progress=False)
    assert asked == []


def test_a_body_over_its_size_is_cut_off(server, tmp_path):
    "A hundred megabytes arrive where a hundred bytes were promised: they are neither kept nor read to their end."
    folder, url, asked = server
    manifest = publish(folder, good=b"good", long=b"x" * 100)
    with open(folder / manifest.path[1], "wb") as file: file.truncate(100 << 20)
    with pytest.raises(DownloadError, match="long.jsonl .* is longer than the manifest says and was cut off") as raised:
        download_files(manifest, url, tmp_path / "cache", progress=False)
    assert str(raised.value).count(". ") == 0 and sum("long" in path for path in asked) == 1, "asked again for nothing"
    assert files_in(tmp_path / "cache") == {"good.jsonl"}


@pytest.mark.parametrize("kind", ["stalled", "mute"])
def test_a_server_that_never_answers_is_given_up(server, tmp_path, monkeypatch, kind):
    "One stops in the middle of a file, one accepts and says nothing: both end after the one stated time."
    folder, url, asked = server
    monkeypatch.setattr(downloads, "TIMEOUT_S", .3)
    manifest = publish(folder, **{kind: b"x" * 100_000})
    with socket.create_server(("127.0.0.1", 0)) as mute:
        if kind == "mute": url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(DownloadError, match=r"no answer in 0.3 s \(TIMEOUT_S\); check .*, or set MTROUTER_DATA"):
            download_files(manifest, url, tmp_path / "cache", progress=False)
    assert .3 < time.monotonic() - start < 3 and files_in(tmp_path / "cache") == set()


def test_progress_counts_bytes(server, tmp_path, capsys):
    folder, url, _ = server
    download_files(publish(folder, one=b"x" * 2000), url, tmp_path / "cache")
    assert "2.00k/2.00k" in capsys.readouterr().err


def test_mint_downloads_and_converts_into_the_cache(server, upstream, cache, monkeypatch):
    "The whole way from upstream's address to a log, with upstream's own files and the committed manifest."
    folder, url, asked = server
    for path in mint_manifest(PROVEN).path:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(gzip.decompress((upstream / f"{path}.gz").read_bytes()))
    monkeypatch.setattr(mint, "download_mint", functools.partial(download_mint, base_url=url))
    assert find_mint(PROVEN) is None
    first = load_mint(PROVEN[:1], progress=False)
    assert first.models == PROVEN[:1] and len(asked) == 8
    both = load_mint(PROVEN, progress=False)
    assert len(asked) == 24 and both.fingerprint() == read_mint_upstream(upstream, PROVEN).fingerprint()
    assert load_mint(PROVEN[:1]).fingerprint() == first.fingerprint() and len(asked) == 24
    assert find_mint(PROVEN) == cache / "mint" and cache_dir() == cache


def test_the_manifest_covers_52_models():
    manifest = mint_manifest()
    assert len(manifest) == 416 and manifest.model.nunique() == 52 and manifest.path.is_unique
    assert manifest.sha256.str.fullmatch("[0-9a-f]{64}").all() and (manifest.bytes > 0).all()
    assert manifest.groupby("model").size().eq(8).all() and set(MINT_POOL) <= set(mint_models())
    with pytest.raises(LogError, match="no complete logs of model 'gpt-5'"):
        mint_manifest(["gpt-5"])


# --- finding and loading --------------------------------------------------------------------------------------------

def test_data_is_found_in_order(tmp_path, monkeypatch):
    for place, model in dict(mine="a", cache="b").items():
        home = tmp_path / place / "mint"
        home.mkdir(parents=True)
        for table in ("tasks", "episodes", "turns"):
            pd.DataFrame(dict(model=[model, "both"])).to_parquet(home / f"{table}.parquet")
    monkeypatch.setenv("MTROUTER_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path / "cache"))
    assert find_mint(["a"]) == find_mint(["both"]) == tmp_path / "mine" / "mint"
    assert find_mint(["b"]) == tmp_path / "cache" / "mint" and find_mint(["a", "b"]) is None
    homes = data_homes()
    assert homes[0] == tmp_path / "mine" and homes[1].parts[-2:] == ("shared", "data")
    (tmp_path / "mine" / "mint" / "turns.parquet").unlink()
    with pytest.warns(UserWarning, match="mint/turns.parquet is damaged .* left alone and looked for elsewhere"):
        assert find_mint(["both"]) == tmp_path / "cache" / "mint"
    monkeypatch.delenv("MTROUTER_DATA")
    assert len(data_homes()) == 2


def test_without_data_and_network(cache, monkeypatch):
    monkeypatch.setattr(mint, "download_mint", functools.partial(
        lambda models, progress: download_files(mint_manifest(models), "http://127.0.0.1:9", cache, False, retries=0)))
    with pytest.warns(UserWarning, match="MINT's logs are out of reach, the demo log stands in"):
        log = load_log("auto")
    assert log.source == "demo" and log.evidence == "simulated"
    with pytest.raises(DownloadError, match="is out of reach"):
        load_log("logged")
    with pytest.raises(ValueError, match="source 'Mint' is not one of auto, logged, mint, demo"):
        load_log("Mint")


def test_load_mint():
    if find_mint() is None:
        pytest.skip("MINT's tables are not here")
    log = load_log("auto")
    assert (len(log.tasks), len(log.episodes), log.source) == (586, 3516, "mint")
    assert set(log.models) == set(MINT_POOL) and pool_of(log).names == list(MINT_POOL)
    log.validate(pool_of(log))
    few = load_log("mint", n_tasks=24)
    assert few.tasks.domain.nunique() == 8 and len(few.episodes) == 24 * 6
    with pytest.raises(LogError, match="no complete logs of model 'gpt-5'"):
        load_mint(["gpt-5"])


def test_samples_are_in_proportion_and_nested():
    tasks = pd.DataFrame(dict(task_id=[f"{d}/{i}" for d, n in dict(a=60, b=30, c=10).items() for i in range(n)]))
    tasks["domain"] = tasks.task_id.str[0]
    small, large = sample_tasks(tasks, 10), sample_tasks(tasks, 50)
    assert [sum(task[0] == d for task in large) for d in "abc"] == [30, 15, 5]
    assert set(small) < set(large) and {task[0] for task in small} == set("abc")
    assert set(sample_tasks(tasks.sample(frac=1, random_state=0), 10)) == set(small)
    assert len(sample_tasks(tasks, 1000)) == 100


def test_pool_of():
    log = load_log("demo", n_tasks=4)
    assert pool_of(log).names == demo_pool().names
    assert pool_of(log.select(models=["novice-3b", "middle-30b"])).names == ["middle-30b", "novice-3b"]
    log.turns["model"] = log.episodes["model"] = "my-7b"
    with pytest.raises(LogError, match="No prices are known for model 'my-7b'; make a ModelPool"):
        pool_of(log)
