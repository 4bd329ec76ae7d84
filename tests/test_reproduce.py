"""The runner: what it skips, what it runs, how it fails, and what it does without logs."""
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mtrouter_nb.core.files import Digests
from mtrouter_nb.studio import claims, reproduce
from mtrouter_nb.studio.reproduce import Logs

PARAMETERS = 'PROFILE = "full"\nSOURCE = "auto"\nOUT = "figures"\nEVIDENCE = "{}"'
FIGURE = """
import matplotlib.pyplot as plt, pandas as pd
from mtrouter_nb.studio.plots import save_figure, use_style
from mtrouter_nb.studio.claims import claim
use_style()
fig, ax = plt.subplots(figsize=(2, 1))
ax.plot([1, 2])
label = "published" if EVIDENCE == "published" else "simulated"
save_figure(fig, NAME, pd.DataFrame(dict(x=[1, 2], evidence=label)), OUT, evidence=label, caption=SOURCE)
claim(f"{NAME}.profile", PROFILE, SOURCE, verdict="holds", evidence=label, out=OUT)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with one package module and no notebook; logs are there."""
    monkeypatch.setenv("MTROUTER_ROOT", str(tmp_path))
    monkeypatch.delenv("MTROUTER_NOTEBOOK", raising=False)
    for name, text in {"mtrouter_nb/__init__.py": "", "mtrouter_nb/metrics.py": "from .pool import price\n",
                       "mtrouter_nb/pool.py": "price = 1\n", "mtrouter_nb/other.py": "x = 1\n",
                       "data/published/table.csv": "a\n1\n", "data/prices.csv": "b\n2\n",
                       "logs/turns.parquet": "c\n3\n"}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    set_logs(monkeypatch, tmp_path / "logs")
    return tmp_path


TITLES = {"mint": "MINT's logs", "zeroeval": "ZeroEval's outcomes", "bfcl": "BFCL's outcomes",
          "mcpmark": "MCPMark's outcomes"}
MAIN = reproduce.main


@dataclass
class ToySource:
    """A source whose tables are in `folder` (None: nowhere), or can be fetched into `reachable`."""
    name: str
    folder: Path = None
    reachable: Path = None

    @property
    def title(self): return TITLES[self.name]

    def find(self): return self.folder

    def fetch(self):
        if not self.reachable: raise OSError(f"{self.name} is out of reach; check the network, or set MTROUTER_DATA.")
        self.folder = self.reachable

    def manifest(self): return dict(bytes=[4_000_000, 1_000_000])


def set_logs(monkeypatch, folder, reachable=None, **others):
    """Let the runner find logs of every source in `folder`, or fetch them when `reachable`; `others` elsewhere."""
    found = {name: ToySource(name, others.get(name, folder), reachable) for name in TITLES}
    monkeypatch.setattr(reproduce, "main", partial(MAIN, catalogue=lambda: found))
    return found


def write(project, name, *cells, evidence="published", tags=("parameters",)):
    parameters = new_code_cell(PARAMETERS.format(evidence), metadata=dict(tags=list(tags)))
    nb = new_notebook(cells=[new_markdown_cell(f"# {name}"), parameters, *map(new_code_cell, cells)])
    path = project / "nbs" / "paper" / "p" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(nb))
    return path


def figure(name):
    """A cell that draws figure `name` and makes a claim."""
    return f'NAME = "{name}"' + FIGURE


def jobs(project, logs=None, missing=(), **kw):
    """The jobs of every notebook, with the logs in a folder."""
    found = Logs({"mint": logs} if logs else {}, dict.fromkeys(missing, "why"))
    digests = Digests(project / "build" / "digests.json")
    return {job.name: job for job in reproduce.plan(reproduce.paper_notebooks(), found, digests, **kw)}


def fingerprint(project, **kw): return jobs(project, **kw)["one"].fingerprint


# what a fingerprint sees

CODE = "from mtrouter_nb.metrics import bill\nbill()"


@pytest.fixture
def one(project):
    write(project, "one", CODE, evidence="logged")
    (project / "mtrouter_nb" / "metrics.py").write_text("from .pool import price\ndef bill(): return price()\n")
    (project / "mtrouter_nb" / "pool.py").write_text(
        "NAME = 'prices.csv'\ndef price():\n    return NAME\ndef lose(): return 1\n")
    return project


@pytest.mark.parametrize("name, old, new", [
    ("nbs/paper/p/one.ipynb", "# one", "# A better title and more words"),
    ("nbs/paper/p/one.ipynb", "bill()\"", "bill()  # of the shop\""),
    ("mtrouter_nb/pool.py", "def price():", "# %% ../nbs/00_pool.ipynb #cell-007\ndef price():\n    'In dollars.'"),
    ("mtrouter_nb/pool.py", "return 1", "return 2"),
    ("mtrouter_nb/other.py", "x = 1", "x = 2"),
    ("data/published/table.csv", "1", "2"),
])
def test_prose_comments_and_what_is_not_reached_rerun_nothing(one, name, old, new):
    before = fingerprint(one)
    assert old in (one / name).read_text()
    (one / name).write_text((one / name).read_text().replace(old, new))
    assert fingerprint(one) == before


@pytest.mark.parametrize("name, old, new", [
    ("nbs/paper/p/one.ipynb", "bill()\"", "bill() + 1\""),
    ("mtrouter_nb/metrics.py", "price()", "price() * 2"),
    ("mtrouter_nb/pool.py", "return NAME", "return -NAME"),
    ("data/prices.csv", "2", "3"),
    ("logs/turns.parquet", "3", "4"),
])
def test_code_data_and_logs_rerun(one, name, old, new):
    before = fingerprint(one, logs=one / "logs")
    assert old in (one / name).read_text()
    (one / name).write_text((one / name).read_text().replace(old, new))
    assert fingerprint(one, logs=one / "logs") != before


def test_a_library_that_is_upgraded_reruns(one, monkeypatch):
    before = fingerprint(one)
    monkeypatch.setattr(reproduce, "versions", lambda externals: ["numpy 9.9"])
    assert fingerprint(one) != before and jobs(one)["one"].sources.key, "what is installed is no part of the sources"


def test_parameters_and_source_rerun(one):
    kinds = [dict(), dict(profile="smoke"), dict(source="demo"), dict(missing=["mint"], source="mint"),
             dict(extra=dict(EVIDENCE="live"))]
    assert len({fingerprint(one, **kw) for kw in kinds}) == 4


@pytest.mark.parametrize("code, counts", [
    ("kind = 'published'", False), ("open(ROOT / 'data' / 'published' / f'{kind}.csv')", True),
    ("open('data/published/' + kind)", True), ("open(os.path.join('data', 'published', kind))", True)])
def test_a_folder_counts_where_it_is_part_of_a_path(project, code, counts):
    write(project, "one", code)
    before = fingerprint(project)
    (project / "data" / "published" / "table.csv").write_text("a\n2\n")
    assert (fingerprint(project) != before) == counts


def test_a_published_notebook_does_not_depend_on_logs(project):
    write(project, "one", "1")
    assert fingerprint(project, logs=project / "logs") == fingerprint(project, missing=["mint"], source="demo")


def test_a_file_with_the_same_size_and_time_is_read_anew_when_asked(one):
    def digest(**kw):
        digests = Digests(one / "build" / "digests.json", **kw)
        found = digests(one / "data" / "prices.csv")
        digests.save()
        return found
    path, before = one / "data" / "prices.csv", digest()
    about = path.stat()
    with path.open("r+") as file: file.write("B")  # in place: the same inode and size
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert digest() == before != digest(trusted=False)


# running

def test_run_skip_and_rerun(project, capsys):
    """Two notebooks on two workers; then nothing to do; then only what changed or lost an output."""
    paths = [write(project, name, figure(name)) for name in ("one", "two")]
    assert reproduce.main([]) == 0
    made = capsys.readouterr().out
    assert made.startswith("reproduce: 2 of 2 notebooks") and made.count("   made  figures/") == 2
    names = {p.relative_to(project / "figures").as_posix() for p in (project / "figures").rglob("*.*")}
    assert names == {f"{n}.{k}" for n in ("one", "two") for k in ("png", "svg", "csv", "json")} | {
        "claims/one.csv", "claims/two.csv", "MANIFEST.json"}
    about = json.loads((project / "figures" / "one.json").read_text())
    assert about["notebook"] == "nbs/paper/p/one.ipynb"
    before = {n: (project / "figures" / n).read_bytes() for n in names}

    paths[0].write_text(paths[0].read_text().replace("# one", "# Better words"))
    assert reproduce.main([]) == 0
    assert capsys.readouterr().out.count("unchanged") == 2

    paths[0].write_text(paths[0].read_text().replace("fig, ax", "seed = 1\\nfig, ax"))
    (project / "figures" / "two.svg").unlink()
    assert reproduce.main(["--workers", "1"]) == 0
    assert capsys.readouterr().out.count("   made  figures/") == 2
    after = {n: (project / "figures" / n).read_bytes() for n in before}
    assert [n for n in before if after[n] != before[n]] == ["MANIFEST.json"], "a second run writes the same bytes"


def test_a_failed_notebook_keeps_its_copy_and_the_others_go_on(project, capsys):
    write(project, "bad", "x = 1", "raise ValueError('no such column')", "x = 2")
    write(project, "good", "1")
    write(project, "typo", "if:")
    assert reproduce.main([]) == 1
    out = capsys.readouterr()
    assert "FAILED  figures/bad" in out.out and "ValueError: no such column" in out.out
    assert "made  figures/good" in out.out and "FAILED  figures/typo" in out.out
    kept = nbformat.read(project / "build" / "failed" / "bad.ipynb", as_version=4)
    assert any(o.output_type == "error" for c in kept.cells if c.cell_type == "code" for o in c.outputs)
    assert not (project / "build" / "executed" / "bad.ipynb").exists()
    assert reproduce.main([]) == 1, "a failure is not remembered as done"


def test_the_longest_of_each_set_of_logs_begins(project):
    def job(name, *logs, measured=()):
        parameters = dict(PROFILE="full", OUT="figures")
        return reproduce.Job(project / "nbs" / "paper" / "p" / f"{name}.ipynb", parameters, "logged", None,
                             {f"{log}/table.parquet": "digest" for log in logs}, [], measured)
    jobs = [job("short", "mint"), job("long", "mint"), job("longer", "mint"), job("other", "bfcl"), job("none"),
            job("timed", "zeroeval", measured=("ms",))]
    seconds = dict(short=1, long=50, longer=60, other=5, none=2, timed=90)
    state = {j.key: dict(seconds=seconds[j.name]) for j in jobs}
    assert [j.name for j in reproduce._in_order(jobs, state)] == ["longer", "other", "none", "long", "short", "timed"]


@pytest.mark.long
def test_what_measures_runs_last_and_alone(project):
    clock = "import time\nfrom pathlib import Path\nstart = time.time()\ntime.sleep(.5)\n"
    for name, more in {"a": "MEASURED = 'value'\n", "b": "MEASURED = 'value'\n", "c": "", "d": ""}.items():
        path = write(project, name, clock + f"Path('{project}/{name}').write_text(f'{{start}} {{time.time()}}')")
        book = nbformat.read(path, as_version=4)
        book.cells[1].source += "\n" + more
        nbformat.write(book, path)
    assert reproduce.main([]) == 0
    span = {name: [float(t) for t in (project / name).read_text().split()] for name in "abcd"}
    (_, first), (second, _) = sorted([span["a"], span["b"]])
    assert max(span["c"][1], span["d"][1]) < min(span["a"][0], span["b"][0]) and first < second


def test_a_killed_kernel_is_a_failure(project, capsys):
    write(project, "dies", "import os; os._exit(9)")
    assert reproduce.main([]) == 1
    assert "FAILED  figures/dies" in capsys.readouterr().out


def test_smoke_writes_only_under_build(project):
    write(project, "one", figure("one"))
    assert reproduce.main(["--profile", "smoke"]) == 0
    assert (project / "build" / "smoke" / "one.png").exists() and not (project / "figures").exists()
    assert "smoke" in (project / "build" / "smoke" / "claims" / "one.csv").read_text()


@pytest.mark.parametrize("argv, message", [
    (["--param", "SEEED=1"], "one.ipynb has no parameter SEEED; it has PROFILE"),
    (["--only", "three"], "No paper notebook is called three; there are: one"),
])
def test_unknown_names_are_errors_before_anything_runs(project, capsys, argv, message):
    write(project, "one", "1")
    assert reproduce.main(argv) == 2
    assert message in capsys.readouterr().err and not (project / "build" / "executed").exists()


def test_a_notebook_without_parameters_is_an_error(project, capsys):
    write(project, "one", "1", tags=())
    assert reproduce.main([]) == 2
    assert "one.ipynb has 0 cells tagged parameters" in capsys.readouterr().err


def test_a_given_parameter_reaches_the_notebook(project):
    path = write(project, "one", "from pathlib import Path\nPath(OUT_FILE).write_text(str(SEED + 1))")
    path.write_text(path.read_text().replace("PROFILE =", f"OUT_FILE = '{project}/seed'\\nSEED = 0\\nPROFILE ="))
    assert reproduce.main(["--param", "SEED=41"]) == 0
    assert (project / "seed").read_text() == "42"


# logs

@pytest.fixture
def committed(project):
    """A published and a logged notebook, with the figure of the latter committed."""
    write(project, "table", figure("table"))
    write(project, "main", figure("main"), evidence="logged")
    (project / "figures").mkdir()
    (project / "figures" / "main.json").write_text('{"notebook": "nbs/paper/p/main.ipynb"}')
    (project / "figures" / "main.csv").write_text("as committed")
    return project


def test_without_logs_and_network_the_demo_stands_in(committed, monkeypatch, capsys):
    set_logs(monkeypatch, None)
    assert reproduce.main([]) == 0
    out = capsys.readouterr().out
    assert "download: MINT's logs, 5 MB" in out.splitlines()[0]
    assert "left as committed  figures/main" in out and "out of reach; check the network, or set MTROUTER_DATA" in out
    assert (committed / "figures" / "main.csv").read_text() == "as committed"
    assert (committed / "figures" / "table.png").exists(), "published figures are remade in place"
    assert json.loads((committed / "figures" / "demo" / "main.json").read_text())["caption"] == "demo"
    assert not (committed / "figures" / "demo" / "table.png").exists()
    (committed / "figures" / "demo" / "main.png").unlink()
    assert reproduce.main(["--strict"]) == 2
    assert "MINT's logs are missing, and STRICT asks for them." in capsys.readouterr().err
    assert not (committed / "figures" / "demo" / "main.png").exists(), "it failed before any work"


def test_what_was_played_live_is_left_where_it_is_not_at_hand(committed, monkeypatch, capsys):
    write(committed, "played", figure("played"), evidence="live")
    (committed / "figures" / "played.json").write_text('{"notebook": "nbs/paper/p/played.ipynb"}')
    set_logs(monkeypatch, None)
    assert reproduce.main(["--only", "played", "--only", "table"]) == 0
    out = capsys.readouterr().out
    assert "left as committed  figures/played" in out and "left as committed  figures/table" not in out
    assert not (committed / "figures" / "demo").exists() and not (committed / "figures" / "played.png").exists()
    assert reproduce.main(["--source", "demo", "--explain", "played"]) == 0
    assert "stands in for nothing that was played live" in capsys.readouterr().out
    set_logs(monkeypatch, committed / "logs")
    assert reproduce.main(["--only", "played"]) == 0 and (committed / "figures" / "played.png").exists()


def test_logs_are_fetched_once_when_in_reach(committed, monkeypatch, capsys):
    set_logs(monkeypatch, None, reachable=committed / "logs")
    assert reproduce.main(["--only", "main", "--strict"]) == 0
    assert json.loads((committed / "figures" / "main.json").read_text())["caption"] == "logged"
    assert not (committed / "figures" / "demo").exists()


@pytest.mark.long
def test_the_demo_can_be_asked_for(committed, monkeypatch, capsys):
    set_logs(monkeypatch, None)
    assert reproduce.main(["--source", "demo", "--only", "main", "--strict"]) == 0
    out = capsys.readouterr().out
    assert "download: nothing." in out and "left as committed" not in out
    assert (committed / "figures" / "demo" / "main.svg").exists()


def test_mint_asked_for_but_out_of_reach_is_an_error(committed, monkeypatch, capsys):
    set_logs(monkeypatch, None)
    assert reproduce.main(["--source", "logged"]) == 2
    assert "out of reach" in capsys.readouterr().err


@pytest.mark.long
def test_a_missing_source_changes_only_its_own_figures(project, monkeypatch, capsys):
    for name, sources in (("both", "bfcl mint"), ("mine", "mint"), ("none", "")):
        path = write(project, name, figure(name), evidence="logged")
        path.write_text(path.read_text().replace("PROFILE =", f"READS = '{sources}'\\nPROFILE ="))
    here = set_logs(monkeypatch, project / "logs", bfcl=None)
    assert reproduce.main([]) == 0
    out = capsys.readouterr().out
    assert "download: BFCL's outcomes, 5 MB." in out and "bfcl is out of reach; check" in out
    assert {p.name for p in (project / "figures").glob("*.png")} == {"mine.png", "none.png"}
    assert (project / "figures" / "demo" / "both.png").exists()
    here["bfcl"].folder = project / "logs"
    assert reproduce.main([]) == 0
    assert json.loads((project / "figures" / "both.json").read_text())["caption"] == "logged"


# state, and what harms it

@pytest.mark.long
def test_a_damaged_state_or_sidecar_is_made_again(project, capsys):
    write(project, "one", figure("one"))
    assert reproduce.main([]) == 0
    memories = [project / "build" / f"{name}.json" for name in ("reproduce", "digests", "sources")]
    sidecar = project / "figures" / "one.json"
    for harm in ("{", "[1]", '{"figures/one": 3}',
                 '{"figures/one": {"parts": 1, "outputs": [], "seconds": "x"}, "one": {"files": 1}}'):
        for path in (*memories, project / "figures" / "MANIFEST.json"): path.write_text(harm)
        assert reproduce.main(["--explain", "one"]) == 0
        assert reproduce.main([]) == 0 and reproduce.main(["--check"]) == 0
        for cut in (harm, '{"note')[:1 + (harm == "{")]:
            sidecar.write_text(cut)
            assert reproduce.main([]) == 0
            assert json.loads(sidecar.read_text())["figure"] == "one"


def test_no_change_starts_nothing_and_imports_nothing_heavy(project, monkeypatch):
    write(project, "one", figure("one"))
    assert reproduce.main([]) == 0
    code = ("import sys\nfrom mtrouter_nb.studio.reproduce import main\nassert main([]) == 0\n"
            "print(sorted({'torch', 'pandas', 'papermill', 'matplotlib', 'joblib'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, cwd=project)
    assert done.stdout.splitlines() == ["  unchanged  figures/one", "[]"], done.stderr


def test_what_would_run_and_why(project, capsys):
    path = write(project, "one", figure("one"))
    write(project, "two", figure("two"))
    assert reproduce.main(["--only", "one"]) == 0
    capsys.readouterr()
    assert reproduce.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["unchanged", "figures/one"] and lines[1].split()[:3] == ["to", "be", "made"]
    assert lines[1].endswith("make reproduce ONLY=two")
    path.write_text(path.read_text().replace("fig, ax", "seed = 1\\nfig, ax"))
    assert reproduce.main(["--explain", "one"]) == 0
    assert "code: __main__:seed" in capsys.readouterr().out
    assert not (project / "figures" / "two.png").exists()


def test_a_changed_parameter_is_one_reason(project):
    write(project, "one", "1")
    job = jobs(project)["one"]
    state = {job.key: dict(parts=job.parts, outputs={})}
    other = dataclasses.replace(job, parameters=job.parameters | dict(PROFILE="smoke"))
    assert reproduce.why_stale(other, state) == ["parameters: PROFILE='smoke' is new or changed"]


CLAIMS = "id,published,ours,low,high,verdict,evidence,note\nspeed.a,{},{},,,{},simulated,{} s; aim: at most 2\n"


@pytest.mark.parametrize("said, kept", [
    (("3", "1.7", "holds", "1.7"), True), (("4", "1.5", "holds", "1.5"), False),
    (("3", "2.5", "fails", "2.5"), False), (("3", "1.5", "holds", "about 1.5"), False)])
def test_a_claim_that_says_something_else_is_no_measurement(project, said, kept):
    write(project, "speed", "1")
    job = dataclasses.replace(jobs(project)["speed"], measured=("s",))
    claims_file = project / "figures" / "claims" / "speed.csv"
    claims_file.parent.mkdir(parents=True)
    (project / "figures" / "MANIFEST.json").write_text(json.dumps(
        {"speed": dict(notebook=job.source, source=job.sources.key, files={}, claims=None)}))
    claims_file.write_text(CLAIMS.format("3", "1.5", "holds", "1.5"))
    before = reproduce._kept_bytes(job)
    claims_file.write_text(CLAIMS.format(*said))
    reproduce._settle(job, before)
    assert (claims_file.read_bytes() == before["claims/speed.csv"]) is kept


@pytest.mark.parametrize("named, handed", [
    ("logs", "{here}/logs"), ("", "{beside}"), ("/mine", "/mine"), (None, "{beside}")])
def test_a_copy_is_told_where_the_logs_are(project, monkeypatch, named, handed):
    beside = project.parent / "shared" / "data"
    beside.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(project)
    if named is None: monkeypatch.delenv("MTROUTER_DATA", raising=False)
    else: monkeypatch.setenv("MTROUTER_DATA", named)
    seen = {}
    monkeypatch.setattr(subprocess, "run", lambda *_, env, **__: seen.update(env) or subprocess.CompletedProcess([], 0))
    reproduce._made_in(project / "copy", project.parent, {}, reproduce._options([]))
    assert seen["MTROUTER_DATA"] == handed.format(here=project, beside=beside)
    assert seen["MTROUTER_ROOT"] == str(project / "copy")


def test_a_notebook_run_here_leaves_the_environment_as_it_was(project, monkeypatch):
    path = write(project, "one", "1")
    monkeypatch.setattr(reproduce, "_executed", lambda *_: os.environ["MPLBACKEND"] * (os.environ["A"] != "1"))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("A", "0")
    before = dict(os.environ)
    assert reproduce._run(path, "one", {}, dict(MPLBACKEND="agg", A="1"))[1] == ""
    assert dict(os.environ) == before


@pytest.mark.long
def test_a_measurement_that_comes_out_otherwise_changes_no_file(project):
    cells = figure("speed").replace("dict(x=[1, 2]", "dict(x=[1, 2], s=time.time()").replace("ax.plot([1, 2])",
                                                                                           "ax.plot([1, time.time()])")
    path = write(project, "speed", "import time\n" + cells)
    path.write_text(path.read_text().replace("PROFILE =", "MEASURED = 's'\\nPROFILE ="))
    assert reproduce.main([]) == 0
    before = {p: p.read_bytes() for p in (project / "figures").rglob("*.*")}
    assert reproduce.main(["--force"]) == 0
    assert {p: p.read_bytes() for p in before} == before
    assert (project / "build" / "measured" / "speed.csv").read_bytes() != before[project / "figures" / "speed.csv"]
    path.write_text(path.read_text().replace("x=[1, 2]", "x=[1, 3]"))
    assert reproduce.main([]) == 0
    assert (project / "figures" / "speed.csv").read_bytes() != before[project / "figures" / "speed.csv"]


def test_the_manifest_finds_what_no_notebook_made(project, capsys):
    path = write(project, "one", figure("one"))
    write(project, "two", figure("two"))
    assert reproduce.main([]) == 0 and reproduce.main(["--check"]) == 0
    harms = {
        "one.csv is not what": lambda: (project / "figures" / "one.csv").write_text("x,evidence\n7,published\n"),
        "claims/one.csv is not what": lambda: (project / "figures" / "claims" / "one.csv").write_text("id\n"),
        "two.svg is not there": lambda: (project / "figures" / "two.svg").unlink(),
        "has changed since": lambda: path.write_text(path.read_text().replace("fig, ax", "seed = 1\\nfig, ax")),
        "three.csv belongs to no": lambda: (project / "figures" / "three.csv").write_text(""),
        "four.ipynb has no figure in the manifest": lambda: write(project, "four", figure("four")),
    }
    for sentence, harm in harms.items():
        harm()
        capsys.readouterr()
        assert reproduce.main(["--check"]) == 1
        assert sentence in capsys.readouterr().err


@pytest.mark.long
def test_what_code_no_longer_makes_goes(project):
    def drawn(name): return figure(name).rsplit("claim(", 1)[0]
    write(project, "one", figure("one"), drawn("old"))
    assert reproduce.main([]) == 0
    assert (project / "figures" / "old.csv").exists() and (project / "figures" / "claims" / "one.csv").exists()
    write(project, "one", drawn("one"))
    assert reproduce.main([]) == 0 and reproduce.main(["--check"]) == 0
    left = {p.relative_to(project / "figures").as_posix() for p in (project / "figures").rglob("*.*")}
    assert left == {"MANIFEST.json", "one.png", "one.svg", "one.csv", "one.json"}
    assert [*json.loads((project / "figures" / "MANIFEST.json").read_text())] == ["one"]


@pytest.mark.long
def test_folders_may_be_named_from_where_one_stands(project, monkeypatch):
    write(project, "one", figure("one"))
    monkeypatch.chdir(project)
    monkeypatch.setenv("MTROUTER_ROOT", ".")
    assert reproduce.main(["--workers", "1"]) == 0 and (project / "figures" / "one.png").exists()


@pytest.mark.long
def test_a_memory_with_a_wrong_digit_is_not_believed(project):
    write(project, "one", "def never():\n    from mtrouter_nb.other import x\n    x\n" + figure("one"))
    assert reproduce.main([]) == 0
    memory, manifest = project / "build" / "sources.json", project / "figures" / "MANIFEST.json"
    held, right = json.loads(memory.read_text()), manifest.read_text()
    for known in held.values(): known["sources"][0][0] = known["sources"][0][0][:-1] + "z"
    memory.write_text(json.dumps(held))
    assert reproduce.main([]) == 0 and manifest.read_text() == right and reproduce.main(["--check"]) == 0


def test_a_file_beside_the_notebook_counts(project):
    path = write(project, "one", "from helper import x\nx")
    (path.parent / "helper.py").write_text("x = 1")
    before = fingerprint(project)
    (path.parent / "helper.py").write_text("x = 2")
    assert fingerprint(project) != before


@pytest.mark.parametrize("name, old, new", [
    ("nbs/paper/p/deeper.py", "1", "2"), ("nbs/paper/p/room/__init__.py", "3", "4"),
    ("nbs/paper/p/room/far.py", "5", "6"), ("mtrouter_nb/other.py", "7", "8"),
    ("data/zprices.csv", "b", "c"), ("data/published/table.csv", "a", "b"),
])
def test_code_beside_the_notebook_and_what_it_reaches_count(project, name, old, new):
    texts = {"nbs/paper/p/beside.py": "import deeper, room\nfrom mtrouter_nb.other import far\ndef g(): return far()",
             "nbs/paper/p/deeper.py": "k = 1", "nbs/paper/p/room/__init__.py": "from .far import q\nk = 3",
             "nbs/paper/p/room/far.py": "q = 5", "mtrouter_nb/other.py": "def far(): return 7",
             "data/zprices.csv": "b\n1"}
    write(project, "one", "import beside\nbeside.g()\nname = 'zprices'\nopen(f'{name}.csv'), glob('published/*.csv')")
    for file, text in texts.items():
        (project / file).parent.mkdir(exist_ok=True)
        (project / file).write_text(text)
    before = fingerprint(project)
    (project / name).write_text((project / name).read_text().replace(old, new))
    assert fingerprint(project) != before


@pytest.mark.long
def test_a_manifest_that_is_lost_or_old_comes_back(project):
    write(project, "one", figure("one"))
    assert reproduce.main([]) == 0
    manifest = project / "figures" / "MANIFEST.json"
    whole = manifest.read_text()
    for harm in (None, "{", '{"one": {"notebook": "x"}}', whole.replace('"source": "', '"source": "0')):
        if harm is None: manifest.unlink()
        else: manifest.write_text(harm)
        assert reproduce.main(["--check"]) == 1
        assert reproduce.main([]) == 0 and reproduce.main(["--check"]) == 0 and manifest.read_text() == whole


@pytest.mark.parametrize("cells", ["[]", '{"cells": null}', '{"cells": {"a": 1}}',
                                   '{"cells": [{"cell_type": "code"}]}'])
def test_what_is_no_notebook_is_one_sentence(project, capsys, cells):
    write(project, "one", "1").write_text(cells)
    assert reproduce.main([]) == 2
    assert "one.ipynb cannot be read as a notebook" in capsys.readouterr().err


@pytest.mark.parametrize("line, says", [
    ("if:", "NAME = value"), ("X = print(1)", "NAME = value"), ("A, B = 1, 2", "NAME = value"),
    ("A: int", "NAME = value"), ("A: int = f()", "NAME = value"), ("OUT += 'x'", "NAME = value"),
    ("import os", "sets nothing"),
    ("EVIDENCE = 'seen'", "is none of published"), ("READS = ['mint']", "must be text")])
def test_parameters_that_are_none_are_one_sentence(project, capsys, line, says):
    path = write(project, "one", "1")
    book = nbformat.read(path, as_version=4)
    book.cells[1].source += f"\n{line}"
    nbformat.write(book, path)
    assert reproduce.main([]) == 2 and says in capsys.readouterr().err


def test_a_parameter_may_bear_its_type(project):
    path = write(project, "one", "1")
    book = nbformat.read(path, as_version=4)
    book.cells[1].source += "\nTASKS: int = 40\nA = B = 2"
    nbformat.write(book, path)
    known = reproduce.notebook_parameters(path)
    assert known["TASKS"] == 40 and known["A"] == known["B"] == 2
    assert reproduce.checked_parameters(path, dict(TASKS=3)) == dict(TASKS=3)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.long
def test_kernels_of_a_killed_runner_write_nothing_more(project):
    late = f"import time, pathlib\npathlib.Path('{project}/began').write_text('')\ntime.sleep(4)\n"
    for name in ("one", "two"): write(project, name, late + f"pathlib.Path('{project}/late').write_text('')")
    process = subprocess.Popen([sys.executable, "-m", "mtrouter_nb"], cwd=project,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (project / "began").exists(): time.sleep(.1)
    process.kill()
    process.wait()
    time.sleep(5)
    assert not (project / "late").exists()


def test_outside_of_a_checkout_it_says_so(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "MTROUTER_ROOT"} | dict(MTROUTER_ROOT=str(tmp_path))
    done = subprocess.run([sys.executable, "-m", "mtrouter_nb"], cwd=tmp_path, env=env, text=True,
                          capture_output=True)
    assert done.returncode == 2 and "inside a checkout" in done.stderr and not done.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_is_one_sentence_and_the_next_run_goes_on(project, capsys):
    write(project, "a_quick", figure("a_quick"))
    write(project, "slow", "import time\ntime.sleep(60)")
    process = subprocess.Popen([sys.executable, "-m", "mtrouter_nb"], cwd=project, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    for line in process.stdout:
        if "made  figures/a_quick" in line: break
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from here" in err and "Traceback" not in out + err
    assert not any(word in out + err for word in ("ipykernel", "KeyboardInterrupt")), err
    assert "a_quick" in (project / "build" / "reproduce.json").read_text()


# claims

def test_claims_are_idempotent_and_keep_their_order(project):
    def twice():
        claims.claim("fig.b", 1, 1.5, 1, 2, "holds")
        claims.claim("fig.a", "5 of 6", float("nan"), None, None, "not testable", evidence="published", note="why")
    twice()
    path = project / "figures" / "claims" / "fig.csv"
    once = path.read_bytes()
    twice()
    assert path.read_bytes() == once
    table = pd.read_csv(path)
    assert table.id.tolist() == ["fig.b", "fig.a"] and table.loc[1, ["ours", "low", "high"]].isna().all()
    claims.claim("fig.b", 1, 0.5, 0, 1, "fails")
    table = pd.read_csv(path).set_index("id")
    assert table.verdict.to_dict() == {"fig.b": "fails", "fig.a": "not testable"} and table.ours["fig.b"] == 0.5


def test_a_run_drops_claims_of_code_that_is_gone(project, monkeypatch):
    claims.claim("fig.old", 1, 1, verdict="holds")
    monkeypatch.setattr(claims, "_ROWS", {})  # as in a new process
    claims.claim("fig.new", 1, 1, verdict="holds")
    assert pd.read_csv(project / "figures" / "claims" / "fig.csv")["id"].tolist() == ["fig.new"]


@pytest.mark.parametrize("kw, message", [(dict(verdict="maybe"), "'maybe' is none of holds, fails"),
                                         (dict(verdict="holds", evidence="rumour"), "'rumour' is none of")])
def test_a_bad_claim_writes_nothing(project, kw, message):
    with pytest.raises(ValueError, match=message):
        claims.claim("fig.a", 1, 1, **kw)
    assert not (project / "figures").exists()


def test_claims_without_a_figure_go_to_the_running_notebook(project, monkeypatch):
    monkeypatch.setenv("MTROUTER_NOTEBOOK", "nbs/paper/p/tour.ipynb")
    claims.claim("gain", 1, 1, verdict="holds")
    assert (project / "figures" / "claims" / "tour.csv").exists()
