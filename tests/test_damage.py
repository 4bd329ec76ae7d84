"""Damage heals: what is lost, cut, emptied or spoilt is named in a sentence and made again; a kill leaves no trace."""
import errno
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from mtrouter_nb.core import files
from mtrouter_nb.data import mint, release, turns, upstream, zeroeval
from mtrouter_nb.data.sources import SOURCES, load_answers, load_outcomes
from mtrouter_nb.data.release import ReleaseError, Setting, convert_release, load_release, quality, release_files
from mtrouter_nb.data.mint import find_mint, load_mint
from mtrouter_nb.data.upstream import DownloadError, download_files
from mtrouter_nb.data.turns import LogError, load_turns, save_turns


def in_two_threads(make):
    "`make(thread, meet)` in two threads that meet where `meet` is called; raises what either raised."
    barrier = threading.Barrier(2, timeout=20)
    with ThreadPoolExecutor(2) as pool:
        for ended in [pool.submit(make, thread, barrier.wait) for thread in "ab"]: ended.result()


def test_two_threads_write_one_file_whole(tmp_path):
    def save(thread, meet):
        def write(file):
            file.write_text(thread * 1000)
            meet()  # both have written before either renames
            assert file.read_text() == thread * 1000
        files.save_atomic(tmp_path / "a.txt", write)
    in_two_threads(save)
    assert (tmp_path / "a.txt").read_text() in ("a" * 1000, "b" * 1000)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_two_threads_fill_folders_apart(tmp_path):
    def fill(thread, meet):
        with files.new_folder(tmp_path / thread) as folder:
            (folder / thread).write_text("")
            meet()
            assert [p.name for p in folder.iterdir()] == [thread]
    in_two_threads(fill)

    def fill_one(thread, meet):
        try:
            with files.new_folder(tmp_path / "one") as folder:
                meet()
                (folder / thread).write_text("")
                meet()
                assert [p.name for p in folder.iterdir()] == [thread]
                raise KeyError(thread)  # what stands is swapped by one writer at a time
        except KeyError: pass
    in_two_threads(fill_one)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


MODEL, MODELS = "gpt-4o-2024-08-06", ["claude-2", "gpt-4-0613"]  # its answers are kept; two of MINT


# --- small sources ----------------------------------------------------------------------------------------------------

def mint_record(task: str) -> dict:
    said = [("user", "What is 6 * 7?"), ("assistant", "<solution> 42 </solution>")]
    return dict(task=dict(task_id=task, prompt="What is 6 * 7?"), state=dict(
        history=[dict(role=role, content=content) for role, content in said], success=True, terminate_reason="done",
        token_counter={}, agent_action_count=dict(use_tool=0, propose_solution=1, invalid_action=0)))


def manifest_of(root: Path) -> pd.DataFrame:
    contents = {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*.json*"))}
    rows = [dict(path=path, bytes=len(c), sha256=hashlib.sha256(c).hexdigest()) for path, c in contents.items()]
    return pd.DataFrame(rows)


@pytest.fixture
def homes(tmp_path, monkeypatch):
    "(a user's folder, the cache): upstream's files are in the cache, nothing is converted, and no network is there."
    mine, cache = tmp_path / "mine", tmp_path / "cache"
    monkeypatch.setenv("MTROUTER_DATA", str(mine))
    monkeypatch.setenv("MTROUTER_CACHE", str(cache))
    for module in (mint, upstream): monkeypatch.setattr(module, "data_homes", lambda: [mine, cache])
    for dataset in ("gsm", "crux", "math-l5"):
        records = [dict(id=str(i), chat_history=["Why?"], output=['{"answer": "1"}'], answer="1") for i in range(9)]
        path = cache / f"zeroeval_upstream/result_dirs/{dataset}/{MODEL}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(records))
    for model in MODELS:
        path = cache / f"mint_upstream/data/outputs/{model}/F=None/max5_p2+tool+cd/reasoning/gsm8k/results.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(mint_record(str(i))) + "\n" for i in range(9)))
    offer(monkeypatch, cache)
    return mine, cache


def offer(monkeypatch, cache):
    "Let the manifests be of the files that lie in the cache now, and the servers out of reach."
    theirs, ours = manifest_of(cache / "zeroeval_upstream"), manifest_of(cache / "mint_upstream")
    ours["model"] = ours.path.str.split("/").str[2]
    fetch = download_files
    monkeypatch.setattr(upstream.OutcomeSource, "manifest", lambda self: theirs)
    monkeypatch.setitem(SOURCES, "zeroeval", replace(SOURCES["zeroeval"], urls={"": "http://127.0.0.1:9"}))
    monkeypatch.setattr(mint, "mint_manifest", lambda models=None: ours[ours.model.isin(models or MODELS)])
    monkeypatch.setattr(mint, "download_mint", lambda models, progress: fetch(
        mint.mint_manifest(models), "http://127.0.0.1:9", cache / "mint_upstream", False, retries=0))
    monkeypatch.setattr(upstream, "download_files", lambda *args: fetch(*args[:3], progress=False, retries=0))


def said(act):
    "(what `act()` returns, warnings)"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = act()
    return result, [str(w.message) for w in caught]


def content(folder: Path) -> dict:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what can befall a table ------------------------------------------------------------------------------------------

def spoil_pages(path: Path):
    "Other bytes in the data, the same footer."
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    for i in range(4, len(data) - footer, 7): data[i] ^= 0xA5
    path.write_bytes(bytes(data))
    assert pq.read_metadata(path).num_rows


def lose_a_row(path: Path): pd.read_parquet(path).iloc[1:].to_parquet(path, index=False)


DAMAGE = {"cut": lambda path: path.write_bytes(path.read_bytes()[:-9]), "emptied": lambda path: path.write_bytes(b""),
          "no Parquet": lambda path: path.write_text("<html>"), "pages": spoil_pages, "a row": lose_a_row,
          "lost": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("table", ["tasks", "outcomes", "answers"])
def test_a_damaged_table_of_the_cache_is_named_and_made_again(homes, table, damage):
    def load(): return load_outcomes("zeroeval", progress=False), load_answers("zeroeval", progress=False)
    matrix, answers = load()
    whole = content(homes[1] / "zeroeval")
    damage(homes[1] / f"zeroeval/{table}.parquet")
    (again, texts), warned = said(load)
    assert again.fingerprint() == matrix.fingerprint() and texts.equals(answers)
    assert content(homes[1] / "zeroeval") == whole
    assert len(warned) == 1 and f"{table}.parquet is damaged (" in warned[0] and "made again" in warned[0]
    assert said(load)[1] == []


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("table", ["tasks", "episodes", "turns"])
def test_mints_tables_heal_and_keep_their_models(homes, table, damage):
    log = load_mint(MODELS, progress=False)
    damage(homes[1] / f"mint/{table}.parquet")
    again, warned = said(lambda: load_mint(MODELS, progress=False))
    assert again.fingerprint() == log.fingerprint() and find_mint(MODELS) == homes[1] / "mint"
    assert len(warned) == 1 and f"{table}.parquet is damaged (" in warned[0]
    assert sorted(p.name for p in homes[1].iterdir()) == ["mint", "mint.lock", "mint_upstream", "zeroeval_upstream"]


def test_finding_survives_damage(homes):
    "The runner looks for tables before it plans: a cut one must not stop figures that need none."
    load_mint(MODELS, progress=False)
    load_outcomes("zeroeval", progress=False)
    for path in ("mint/episodes.parquet", "zeroeval/tasks.parquet"): DAMAGE["cut"](homes[1] / path)
    found, warned = said(lambda: (find_mint(MODELS), SOURCES["zeroeval"].find()))
    assert found == (None, None) and len(warned) == 2
    assert said(lambda: (find_mint(MODELS), SOURCES["zeroeval"].find())) == ((None, None), [])


@pytest.mark.parametrize("marker", [None, "", '{"ta', "[1]", "{}", '{"tasks": "all"}'])
def test_an_emptied_folder_and_a_spoilt_marker_heal(homes, marker):
    matrix = load_outcomes("zeroeval", progress=False)
    whole = content(homes[1] / "zeroeval")
    if marker is not None: (homes[1] / "zeroeval" / "complete.json").write_text(marker)
    else:
        for path in (homes[1] / "zeroeval").iterdir(): path.unlink()
    assert said(lambda: load_outcomes("zeroeval", progress=False))[0].fingerprint() == matrix.fingerprint()
    assert content(homes[1] / "zeroeval") == whole
    assert json.loads(whole["complete.json"]) == dict(tasks=27, outcomes=27, answers=27)


def test_tables_without_a_marker_are_taken_where_they_have_rows(homes):
    load_outcomes("zeroeval", progress=False)
    (homes[1] / "zeroeval" / "complete.json").unlink()
    assert said(lambda: SOURCES["zeroeval"].find()) == (homes[1] / "zeroeval", [])
    path = homes[1] / "zeroeval" / "tasks.parquet"
    pd.read_parquet(path).iloc[:0].to_parquet(path)
    found, warned = said(lambda: SOURCES["zeroeval"].find())
    assert found is None and "tasks.parquet is damaged (it has no rows)" in warned[0]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_users_damaged_folder_is_named_and_left_alone(homes, damage):
    mine, cache = homes
    matrix = load_outcomes("zeroeval", progress=False)
    (cache / "zeroeval").rename(mine.parent / "zeroeval")
    mine.mkdir()
    (mine.parent / "zeroeval").rename(mine / "zeroeval")
    damage(mine / "zeroeval" / "outcomes.parquet")
    before = content(mine)
    again, warned = said(lambda: load_outcomes("zeroeval", progress=False))
    assert again.fingerprint() == matrix.fingerprint() and content(mine) == before
    assert len(warned) == 1 and f"{mine}/zeroeval/outcomes.parquet is damaged (" in warned[0]
    assert "left alone and looked for elsewhere" in warned[0] and "made again" not in warned[0]
    assert (cache / "zeroeval" / "complete.json").exists()


def test_a_users_folder_that_loses_pages_and_nothing_else_ends_in_a_sentence(homes, monkeypatch):
    mine, cache = homes
    load_mint(MODELS, progress=False)
    mine.mkdir()
    (cache / "mint").rename(mine / "mint")
    spoil_pages(mine / "mint" / "turns.parquet")
    for path in cache.rglob("results.jsonl"): path.unlink()  # upstream's files are neither here nor in reach
    with pytest.raises(DownloadError) as raised: said(lambda: load_mint(MODELS, progress=False))
    sentence = str(raised.value)
    assert str(mine) in sentence and str(cache) in sentence and "MTROUTER_DATA" in sentence
    assert "is out of reach; check the network" in sentence and sentence.count(". ") == 0


@pytest.mark.parametrize("load", [lambda: load_mint(MODELS, progress=False),
                                  lambda: load_outcomes("zeroeval", progress=False)])
def test_tables_that_vanish_between_finding_and_reading(homes, monkeypatch, load):
    load()
    read = upstream.read_table

    def vanish(path, **options):
        path.unlink(missing_ok=True)
        return read(path, **options)
    for module in (mint, upstream, zeroeval): monkeypatch.setattr(module, "read_table", vanish)
    with pytest.raises(DownloadError, match="No whole .* lies in .*MTROUTER_DATA.* cannot be made .*MTROUTER_CACHE"):
        said(load)


def test_raw_files_that_vanish_are_fetched_for_all_models(homes):
    "MINT's tables grow by a model: the raw files of those that are held may be gone."
    load_mint(MODELS[:1], progress=False)
    next((homes[1] / "mint_upstream").rglob(f"{MODELS[0]}/**/results.jsonl")).unlink()
    with pytest.raises(DownloadError, match=f"outputs/{MODELS[0]}/.* is out of reach"):
        load_mint(MODELS[1:], progress=False)
    assert load_mint(MODELS[:1], progress=False).models == MODELS[:1]


# --- a full disk, a disk that can only be read ------------------------------------------------------------------------

def fill(monkeypatch, fits: int = 0):
    "Let the disk be full after `fits` more tables: the next one is written by half."
    left = [fits]

    def filling(write):
        def full(table, path, *args, **options):
            write(table, path, *args, **options)
            if not isinstance(path, (str, Path)): return  # pandas has opened it
            left[0] -= 1
            if left[0] < 0:
                DAMAGE["cut"](Path(path))
                raise OSError(errno.ENOSPC, "No space left on device")
        return full
    for owner, name in ((pd.DataFrame, "to_parquet"), (pq, "write_table")):
        monkeypatch.setattr(owner, name, filling(getattr(owner, name)))


@pytest.mark.parametrize("fits", [0, 1, 2])
def test_a_full_disk_leaves_nothing_and_the_next_run_is_right(homes, fits):
    matrix = load_outcomes("zeroeval", progress=False)
    whole = content(homes[1] / "zeroeval")
    DAMAGE["cut"](homes[1] / "zeroeval" / "tasks.parquet")
    damaged = content(homes[1])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DownloadError, match="cannot be made .*No space left"):
        fill(patch, fits)
        said(lambda: load_outcomes("zeroeval", progress=False))
    assert content(homes[1]) == damaged
    assert load_outcomes("zeroeval", progress=False).fingerprint() == matrix.fingerprint()
    assert content(homes[1] / "zeroeval") == whole


@pytest.fixture
def read_only(monkeypatch):
    "Let no file or folder be made (a mode would not stop root)."
    def refuse(*args, **options): raise OSError(errno.EROFS, "Read-only file system")
    for name in ("mkdir", "rename", "replace", "unlink", "remove", "rmdir"): monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(upstream, "FileLock", refuse)
    monkeypatch.setattr(pq, "write_table", refuse)


def test_a_read_only_cache_is_read(homes, request):
    def load(): return load_mint(MODELS[:1], progress=False), load_outcomes("zeroeval", progress=False)
    log, matrix = load_mint(MODELS, progress=False), load_outcomes("zeroeval", progress=False)
    request.getfixturevalue("read_only")
    (few, same), warned = said(load)
    assert few.models == MODELS[:1] and same.fingerprint() == matrix.fingerprint() and warned == []
    assert (find_mint(log.models), SOURCES["zeroeval"].find()) == (homes[1] / "mint", homes[1] / "zeroeval")
    with pytest.raises(DownloadError, match="No whole bfcl lies in .*MTROUTER_DATA.*Read-only.*set MTROUTER_CACHE"):
        load_outcomes("bfcl", progress=False)


# --- logs of one's own ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("damage", [name for name in DAMAGE if name not in ("lost", "a row")])
def test_a_damaged_log_ends_in_a_sentence(homes, tmp_path, damage):
    folder = save_turns(load_mint(MODELS, progress=False), tmp_path / "log")
    DAMAGE[damage](folder / "turns.parquet")
    with pytest.raises(LogError, match="^turns.parquet is no Parquet file that can be read"): load_turns(folder)


def test_a_damaged_header_or_gzip_ends_in_a_sentence(homes, tmp_path):
    folder = save_turns(load_mint(MODELS, progress=False), tmp_path / "log")
    for text in ('{"schema_ver', "[1]", ""):
        (folder / "log.json").write_text(text)
        with pytest.raises(LogError, match="^log.json is damaged .* write it again"): load_turns(folder)
    packed = gzip.compress(b'{"a": 1}\n' * 5000)
    for spoilt in (packed[:-12], packed[:40] + b"????" + packed[44:]):
        (tmp_path / "rows.jsonl.gz").write_bytes(spoilt)
        with pytest.raises(LogError, match="rows.jsonl.gz is damaged after row|rows.jsonl.gz, row"):
            list(turns.json_lines(tmp_path / "rows.jsonl.gz"))


def test_a_swap_that_fails_keeps_the_old_folder(tmp_path, monkeypatch):
    with files.new_folder(tmp_path / "log") as new: (new / "a").write_text("old")
    rename, asked = Path.replace, []

    def second_fails(path, target):
        asked.append(target)
        if len(asked) == 2: raise OSError(errno.EIO, "no")
        return rename(path, target)
    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(OSError), files.new_folder(tmp_path / "log") as new: (new / "a").write_text("new")
    assert content(tmp_path) == {"log/a": b"old"} and len(list(tmp_path.iterdir())) == 1


# --- a converted release ----------------------------------------------------------------------------------------------

MINE = Setting("mine", {"d": "test"}, ("a", "b"))


def record(index, **changes):
    return dict(index=index, origin_query=f"q{index}", prompt=f"Question: q{index}", prompt_tokens=10,
                completion_tokens=5, cost=.25, score=1.0, raw_output="text") | changes


def save(root, model, records):
    path = root / f"results/bench/d/test/{model}/d-test-{model}-20250101_000000.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(model_name=model, dataset_name="d", split="test", records=records)))
    return path


def convert(root, workers=1): return convert_release(root, root / "out", workers=workers, progress=False)


@pytest.fixture
def two(tmp_path):
    "A converted release: models a and b answered the same prompts."
    for model, score in (("a", 1), ("b", .5)): save(tmp_path, model, [record(i, score=score) for i in range(1, 7)])
    convert(tmp_path)
    return tmp_path


def tables(root) -> dict: return {k: v for k, v in content(root / "out").items() if not k.startswith(".")}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("folder", ["rows", "prompts"])
def test_a_damaged_table_of_a_release_is_converted_again(two, folder, damage):
    whole, path = tables(two), sorted((two / "out" / folder).iterdir())[-1]
    damage(path)
    sentence = r"lost or damaged .* run convert_release again|has other tables than|has \d rows"
    with pytest.raises(ReleaseError, match=sentence): load_release(two / "out", MINE)
    with pytest.raises(ReleaseError, match=sentence): quality(two / "out", [MINE])
    if damage is spoil_pages: path.unlink()  # its footer is whole: only who reads it can tell, and says to delete it
    manifest, warned = said(lambda: convert(two))
    assert tables(two) == whole and manifest["status"].tolist() == ["converted"] * 2
    assert len(warned) <= 1 and all(path.name in sentence for sentence in warned)
    assert bool(warned) == (damage not in (Path.unlink, spoil_pages))
    assert load_release(two / "out", MINE).score.tolist() == [[1, .5]] * 6


@pytest.mark.parametrize("lost", ["rows", "prompts", "files.csv", "complete.json"])
def test_whatever_is_lost_of_a_release_comes_back(two, lost):
    whole, path = tables(two), two / "out" / lost
    for file in [path] if path.is_file() else [*path.iterdir()]: file.unlink()
    if path.is_dir(): path.rmdir()
    convert(two)
    assert tables(two) == whole


@pytest.mark.parametrize("end", [b"", b"path,by", None, -1, -30, "row"])
def test_a_cut_manifest_is_named_and_written_again(two, end):
    path, whole = two / "out" / "files.csv", tables(two)
    lines = path.read_bytes()
    if end is None: path.write_bytes(b"\xff\xfe\x00")
    elif end == "row": path.write_bytes(b"".join(lines.splitlines(True)[:-1]))
    else: path.write_bytes(end if isinstance(end, bytes) else lines[:end])
    with pytest.raises(ReleaseError, match="files.csv is damaged .* run convert_release again"):
        release_files(two / "out")
    _, warned = said(lambda: convert(two))
    assert len(warned) == 1 and "files.csv is damaged" in warned[0] and tables(two) == whole


def test_what_cannot_come_back_is_named_until_it_does(two):
    "Its JSON was deleted after converting: only its table knew it."
    victim = next((two / "results").rglob("*-b-*.json"))
    text = victim.read_bytes()
    victim.unlink()
    convert(two)
    table = next(f for f in (two / "out" / "rows").iterdir() if b"/b/" in pq.read_schema(f).metadata[b"about"])
    DAMAGE["cut"](table)
    for _ in range(2):
        with pytest.raises(ReleaseError, match="^d/test/b/.* .its tables are lost or damaged, and its JSON is gone."):
            said(lambda: convert(two))
        assert release_files(two / "out", "unreadable")["model"].tolist() == ["b"]
        assert load_release(two / "out", MINE, models=["a"]).score.tolist() == [[1]] * 6
    victim.write_bytes(text)
    said(lambda: convert(two))
    assert load_release(two / "out", MINE).score.tolist() == [[1, .5]] * 6


def test_shared_prompts_come_back_for_a_file_whose_json_is_gone(two):
    whole = load_release(two / "out", MINE).fingerprint()
    next((two / "results").rglob("*-b-*.json")).unlink()
    convert(two)
    for path in (two / "out" / "prompts").iterdir(): path.unlink()
    manifest = convert(two)
    assert manifest["note"].fillna("").tolist() == ["", "JSON is gone"] and set(manifest["status"]) == {"converted"}
    assert load_release(two / "out", MINE).fingerprint() == whole


def test_a_manifest_older_than_its_tables_is_not_believed(two):
    "A run that was killed after converting, before it wrote the manifest."
    save(two, "b", [record(i, prompt=f"Other: {i}", origin_query=f"o{i}") for i in range(1, 7)])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        def interrupt(*args): raise KeyboardInterrupt
        patch.setattr(release, "_save_manifest", interrupt)
        convert(two)
    with pytest.raises(ReleaseError, match="d/test/b/.* has other tables than .* run convert_release again"):
        load_release(two / "out", MINE)
    convert(two)
    tasks = load_release(two / "out", MINE, models=["b"]).tasks
    assert tasks["prompt"].tolist() == [f"Other: {i}" for i in range(1, 7)]


@pytest.mark.parametrize("fits", [0, 1, 2])
def test_a_full_disk_stops_a_conversion_with_a_sentence(two, tmp_path_factory, fits):
    whole = tables(two)
    for path in (two / "out").rglob("*.parquet"): DAMAGE["cut"](path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ReleaseError, match="out cannot be written .*No space"):
        fill(patch, fits)
        said(lambda: convert(two))
    assert not list((two / "out").rglob("*.part"))
    said(lambda: convert(two))
    assert tables(two) == whole


def test_a_release_that_vanishes_in_mid_run(two, monkeypatch):
    "JSON that goes between listing and reading is named; tables that go while others are made are, too."
    save(two, "c", [record(1)])
    find = release._result_files

    def vanish(root):
        found = find(root)
        next(root.rglob("*-c-*.json")).unlink()
        return found
    monkeypatch.setattr(release, "_result_files", vanish)
    with pytest.raises(ReleaseError, match="^d/test/c/.* is unreadable .FileNotFoundError"): convert(two)
    monkeypatch.undo()
    save(two, "c", [record(1)])
    convert_all, gone = release._convert_all, sorted((two / "out" / "rows").iterdir())

    def lose(*args):
        for path in gone: path.unlink()
        return convert_all(*args)
    monkeypatch.setattr(release, "_convert_all", lose)
    with pytest.raises(ReleaseError, match="is unreadable .its tables vanished while others were made"): convert(two)
    monkeypatch.undo()
    assert convert(two)["status"].tolist() == ["converted"] * 3


def test_what_changes_while_it_is_read_is_converted_again(two, monkeypatch):
    "The table carries size and time of what was read, not of what is there when it is written."
    path, read = save(two, "b", [record(1, score=0)]), Path.read_bytes

    def change(self):
        data = read(self)
        if self == path: save(two, "b", [record(1, score=.25), record(2)])
        return data
    monkeypatch.setattr(Path, "read_bytes", change)
    convert(two)
    monkeypatch.undo()
    convert(two)
    assert load_release(two / "out", MINE).score[:2, 1].tolist() == [.25, 1]


# --- a kill at every step ---------------------------------------------------------------------------------------------

STEPS = '''
import os, shutil, signal, sys, warnings
from pathlib import Path
import pandas as pd
import pyarrow.parquet as pq
warnings.simplefilter("ignore")
{prepare}
place, template = Path(sys.argv[1]) / "place", Path(sys.argv[1]) / "template"
step, last = [0], [None]

def tick(event=None):
    step[0] += 1
    if step[0] == last[0]: os.kill(os.getpid(), signal.SIGKILL)

def halved(write):
    def half(table, path, *args, **options):
        write(table, path, *args, **options)
        if not isinstance(path, (str, Path)): return  # pandas has opened it
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[:len(whole) // 2])
        tick()
        Path(path).write_bytes(whole)
    return half
pq.write_table, pd.DataFrame.to_parquet = halved(pq.write_table), halved(pd.DataFrame.to_parquet)
sys.addaudithook(lambda event, _: tick() if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir") else None)

def forked(kill_at=None):
    if pid := os.fork(): return pid
    last[0], step[0] = kill_at, 0
    try:
        right = work()
        os._exit(0 if right else 3)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(4)

def ended(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for kill_at in range(1, 200):
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place)
    code = ended(forked(kill_at))
    assert code in (0, -signal.SIGKILL), code
    assert ended(forked()) == 0, f"wrong after a kill at step {{kill_at}}"
    assert not [*place.rglob("*.part")], f"half a file stays after a kill at step {{kill_at}}"
    if code == 0: break
shutil.rmtree(place)
shutil.copytree(template, place)
pids = [forked(), forked()]
assert [ended(pid) for pid in pids] == [0, 0], "two at once"
print(kill_at)
'''

OUTCOMES = '''
from mtrouter_nb.data import sources, upstream
root = Path(sys.argv[1]) / "place"
os.environ["MTROUTER_CACHE"] = str(root)
upstream.data_homes = lambda: [root]
upstream.OutcomeSource.download = lambda self, progress: root / "zeroeval_upstream"
def work():
    matrix = sources.load_outcomes("zeroeval", progress=False)
    return matrix.score.tolist() == [[1]] * 27 and sources.SOURCES["zeroeval"].find() == root / "zeroeval"
'''

RELEASE = '''
from mtrouter_nb.data.release import Setting, convert_release, load_release
root = Path(sys.argv[1]) / "place"
def work():
    convert_release(root, root / "out", workers=1, progress=False)
    return load_release(root / "out", Setting("mine", {"d": "test"}, ("a", "b"))).score.tolist() == [[1, .5]] * 6
'''


def kill_at_every_step(root, prepare, folder) -> int:
    done = subprocess.run([sys.executable, "-c", STEPS.format(prepare=prepare), str(folder)], capture_output=True,
                          text=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.long
def test_a_conversion_killed_at_any_step_and_two_at_once(homes, tmp_path, root):
    load_outcomes("zeroeval", progress=False)
    DAMAGE["cut"](homes[1] / "zeroeval" / "tasks.parquet")
    homes[1].rename(tmp_path / "template")
    assert kill_at_every_step(root, OUTCOMES, tmp_path) > 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.long
def test_a_release_killed_at_any_step_and_two_at_once(two, root, tmp_path_factory):
    save(two, "b", [record(i, score=.5, raw_output="other") for i in range(1, 7)])
    for path in (two / "out" / "prompts").iterdir(): DAMAGE["cut"](path)
    folder = tmp_path_factory.mktemp("steps")
    two.rename(folder / "template")
    assert kill_at_every_step(root, RELEASE, folder) > 6
