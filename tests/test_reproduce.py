"""The runner: what it skips, what it runs, how it fails, and what it does without logs."""
import json
import sys
import types

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mtrouter_nb import reproduce

PARAMETERS = 'PROFILE = "full"\nSOURCE = "auto"\nOUT = "figures"\nEVIDENCE = "{}"'
FIGURE = """
import matplotlib.pyplot as plt, pandas as pd
from mtrouter_nb.plots import save_figure, use_style
from mtrouter_nb.reproduce import claim
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
                       "logs/turns.csv": "c\n3\n", "requirements.lock": "numpy==2\n"}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    set_logs(monkeypatch, tmp_path / "logs")
    return tmp_path


class OutOfReach(OSError):
    """Stands for the download error of `sources`."""


def set_logs(monkeypatch, folder, reachable=False):
    """Let the runner find logs in `folder` (None: nowhere), or fetch them there when `reachable`."""
    found = [folder]
    sources = types.ModuleType("mtrouter_nb.sources")

    def load_mint(models):
        if not reachable:
            raise OutOfReach("the file is out of reach; check the network.")
        found[0] = reachable
    sources.find_mint, sources.load_mint, sources.DownloadError = lambda models: found[0], load_mint, OutOfReach
    sources.mint_manifest, sources.mint_models = lambda: pd.DataFrame(dict(bytes=[5_000_000])), lambda: ["a model"]
    monkeypatch.setitem(sys.modules, "mtrouter_nb.sources", sources)


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


def fingerprints(**kw):
    return {job.name: job.fingerprint for job in reproduce.plan(reproduce.paper_notebooks(), **kw)}


# what a fingerprint sees

@pytest.fixture
def one(project):
    write(project, "one", "from mtrouter_nb.metrics import *", evidence="logged")
    return project


@pytest.mark.parametrize("name, old, new", [
    ("nbs/paper/p/one.ipynb", "# one", "# A better title and more words"),
    ("mtrouter_nb/pool.py", "price = 1", "# %% ../nbs/00_pool.ipynb #cell-007\nprice = 1"),
    ("mtrouter_nb/other.py", "x = 1", "x = 2"),
])
def test_prose_comments_and_unused_modules_rerun_nothing(one, name, old, new):
    before = fingerprints()
    (one / name).write_text((one / name).read_text().replace(old, new))
    assert fingerprints() == before


@pytest.mark.parametrize("name, old, new", [
    ("nbs/paper/p/one.ipynb", "import *", "import price"),
    ("mtrouter_nb/metrics.py", "price", "price as p"),
    ("mtrouter_nb/pool.py", "price = 1", "price = 2"),
    ("data/prices.csv", "2", "3"),
    ("logs/turns.csv", "3", "4"),
    ("requirements.lock", "numpy==2", "numpy==3"),
])
def test_code_modules_inputs_and_lock_rerun(one, name, old, new):
    before = fingerprints(logs=[one / "logs"])
    (one / name).write_text((one / name).read_text().replace(old, new))
    assert fingerprints(logs=[one / "logs"]) != before


def test_parameters_and_source_rerun(one):
    kinds = [dict(), dict(profile="smoke"), dict(source="demo"), dict(extra=dict(EVIDENCE="live"))]
    assert len({fingerprints(**kw)["one"] for kw in kinds}) == 4


def test_a_published_notebook_does_not_depend_on_logs(project):
    write(project, "one", "1")
    assert fingerprints(logs=[project / "logs"]) == fingerprints(source="demo")


# running

def test_run_skip_and_rerun(project, capsys):
    """Two notebooks on two workers; then nothing to do; then only what changed or lost an output."""
    paths = [write(project, name, figure(name)) for name in ("one", "two")]
    assert reproduce.main([]) == 0
    made = capsys.readouterr().out
    assert made.startswith("reproduce: 2 of 2 notebooks") and made.count("   made  figures/") == 2
    names = {p.relative_to(project / "figures").as_posix() for p in (project / "figures").rglob("*.*")}
    assert names == {f"{n}.{k}" for n in ("one", "two") for k in ("png", "svg", "csv", "json")} | {
        "claims/one.csv", "claims/two.csv"}
    about = json.loads((project / "figures" / "one.json").read_text())
    assert about["notebook"] == "nbs/paper/p/one.ipynb"
    before = {n: (project / "figures" / n).read_bytes() for n in names if not n.endswith("json")}

    paths[0].write_text(paths[0].read_text().replace("# one", "# Better words"))
    assert reproduce.main([]) == 0
    assert capsys.readouterr().out.count("unchanged") == 2

    paths[0].write_text(paths[0].read_text().replace("fig, ax", "seed = 1\\nfig, ax"))
    (project / "figures" / "two.svg").unlink()
    assert reproduce.main(["--workers", "1"]) == 0
    assert capsys.readouterr().out.count("   made  figures/") == 2
    assert {n: (project / "figures" / n).read_bytes() for n in before} == before, "a second run writes the same bytes"

    assert reproduce.main(["--only", "one", "--force"]) == 0
    assert "1 of 1" in capsys.readouterr().out


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
    assert message in capsys.readouterr().err and not (project / "build").exists()


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
    assert "left as committed  figures/main" in out and "out of reach; check the network" in out
    assert (committed / "figures" / "main.csv").read_text() == "as committed"
    assert (committed / "figures" / "table.png").exists(), "published figures are remade in place"
    assert json.loads((committed / "figures" / "demo" / "main.json").read_text())["caption"] == "demo"
    assert not (committed / "figures" / "demo" / "table.png").exists()
    assert reproduce.main(["--strict"]) == 1
    assert "STRICT: missing logs are a failure." in capsys.readouterr().err


def test_logs_are_fetched_once_when_in_reach(committed, monkeypatch, capsys):
    set_logs(monkeypatch, None, reachable=committed / "logs")
    assert reproduce.main(["--only", "main", "--strict"]) == 0
    assert json.loads((committed / "figures" / "main.json").read_text())["caption"] == "mint"
    assert not (committed / "figures" / "demo").exists()


def test_the_demo_can_be_asked_for(committed, monkeypatch, capsys):
    set_logs(monkeypatch, None)
    assert reproduce.main(["--source", "demo", "--only", "main", "--strict"]) == 0
    out = capsys.readouterr().out
    assert "download: nothing." in out and "left as committed" not in out
    assert (committed / "figures" / "demo" / "main.svg").exists()


def test_mint_asked_for_but_out_of_reach_is_an_error(committed, monkeypatch, capsys):
    set_logs(monkeypatch, None)
    assert reproduce.main(["--source", "mint"]) == 2
    assert "out of reach" in capsys.readouterr().err


def test_a_notebook_that_reads_two_kinds_of_logs_needs_both(project, monkeypatch, capsys):
    path = write(project, "both", figure("both"), evidence="logged")
    path.write_text(path.read_text().replace("PROFILE =", "READS = 'outcomes mint'\\nPROFILE ="))
    here = {"mint": [project / "logs"], "outcomes": []}
    monkeypatch.setattr(reproduce, "_find_logs", here.get)
    monkeypatch.setattr(reproduce, "_fetch_logs", lambda kind: f"{kind} is out of reach.")
    monkeypatch.setattr(reproduce, "_download_size", lambda kind: 7)
    assert reproduce.main([]) == 0
    out = capsys.readouterr().out
    assert "download: the outcomes of ZeroEval, BFCL and MCPMark, 7 MB." in out and "outcomes is out of reach." in out
    assert (project / "figures" / "demo" / "both.png").exists() and not (project / "figures" / "both.png").exists()
    here["outcomes"] = [project / "logs"]
    assert reproduce.main([]) == 0
    assert json.loads((project / "figures" / "both.json").read_text())["caption"] == "mint"


# claims

def test_claims_are_idempotent_and_keep_their_order(project):
    def twice():
        reproduce.claim("fig.b", 1, 1.5, 1, 2, "holds")
        reproduce.claim("fig.a", "5 of 6", float("nan"), None, None, "not testable", evidence="published", note="why")
    twice()
    path = project / "figures" / "claims" / "fig.csv"
    once = path.read_bytes()
    twice()
    assert path.read_bytes() == once
    table = pd.read_csv(path)
    assert table.id.tolist() == ["fig.b", "fig.a"] and table.loc[1, ["ours", "low", "high"]].isna().all()
    reproduce.claim("fig.b", 1, 0.5, 0, 1, "fails")
    table = pd.read_csv(path).set_index("id")
    assert table.verdict.to_dict() == {"fig.b": "fails", "fig.a": "not testable"} and table.ours["fig.b"] == 0.5


@pytest.mark.parametrize("kw, message", [(dict(verdict="maybe"), "'maybe' is none of holds, fails"),
                                         (dict(verdict="holds", evidence="rumour"), "'rumour' is none of")])
def test_a_bad_claim_writes_nothing(project, kw, message):
    with pytest.raises(ValueError, match=message):
        reproduce.claim("fig.a", 1, 1, **kw)
    assert not (project / "figures").exists()


def test_claims_without_a_figure_go_to_the_running_notebook(project, monkeypatch):
    monkeypatch.setenv("MTROUTER_NOTEBOOK", "nbs/paper/p/tour.ipynb")
    reproduce.claim("gain", 1, 1, verdict="holds")
    assert (project / "figures" / "claims" / "tour.csv").exists()
