"""The wheel in an environment of its own requirements, used from another folder: no checkout, no notebooks, no git."""
import importlib.metadata as metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_builder import blocks, write_own

import mtrouter_nb
from mtrouter_nb import demo_pool, load_demo, load_outcomes, mint_pool
from mtrouter_nb.core.files import data_dir, in_checkout, project_root

BUILT_FROM = ("mtrouter_nb", "data", "setup.py", "pyproject.toml", "settings.ini", "MANIFEST.in", "README.md",
              "LICENSE", "NOTICE")


def python(*args, cwd, **env):
    """What Python prints; variables that are None in `env` are not set."""
    env = {k: v for k, v in (os.environ | env).items() if v is not None}
    done = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True)
    assert not done.returncode, f"exit {done.returncode}: {done.stderr}"
    return done.stdout


def wheel_of(source, folder) -> Path:
    python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


def inside(wheel) -> set:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def tree(root, tmp_path_factory):
    """A copy of all that a wheel is built from: a build leaves folders behind."""
    tree = tmp_path_factory.mktemp("un dépôt")
    for name in BUILT_FROM:
        if (root / name).is_dir():
            shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(root / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    return wheel_of(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The folder in which the wheel is installed."""
    site = tmp_path_factory.mktemp("mes paquets à moi")
    python("-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=site)
    return site


@pytest.fixture(scope="module")
def installed(site):
    [found] = metadata.distributions(path=[str(site)])
    return found


@pytest.fixture(scope="module")
def strangers(installed):
    """Modules of this environment that neither the wheel's requirements bring nor theirs."""
    needed, todo = {("mtrouter-nb", "")}, [(installed, "")]
    while todo:
        package, extra = todo.pop()
        for r in map(Requirement, package.requires or ()):
            new = {(canonicalize_name(r.name), e) for e in ("", *r.extras)} - needed
            if not r.marker or r.marker.evaluate({"extra": extra}):
                needed |= new
                todo += [(metadata.distribution(name), e) for name, e in new]
    names = {name for name, _ in needed}
    return [module for module, packages in metadata.packages_distributions().items()
            if not names & {canonicalize_name(p) for p in packages}]


# every module and name, what the library reads and writes, then the README's example
LIBRARY = """
import json, pkgutil, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))  # none of them can be imported

from importlib import import_module
import matplotlib.pyplot as plt, pandas as pd
import mtrouter_nb
from mtrouter_nb import *
from mtrouter_nb.core.files import in_checkout

for module in pkgutil.walk_packages(mtrouter_nb.__path__, "mtrouter_nb."): import_module(module.name)
names, data = sorted(globals()), pd.DataFrame(dict(x=[1], evidence="logged"))
drawn = save_figure(plt.figure(), "mine", data, "figures", evidence="logged", caption="Mine.")
claim("mine.claim", 1, 2, verdict="fails")
seen = dict(demo=load_demo().fingerprint(), mint=mint_pool().fingerprint(), names=names, drawn=drawn,
            outcomes=load_outcomes("demo").fingerprint(), checkout=in_checkout())
"""
SEEN = """
seen |= dict(tasks=len(log.tasks), score=result.episodes["score"].tolist(),
             chosen=route(estimator, run.vector, turns_left=4, proposals_left=2),
             homes=[m.__file__ for name, m in list(sys.modules.items()) if name.split(".")[0] == "mtrouter_nb"])
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder far from any checkout, with a short log as a user's own."""
    folder, log = tmp_path_factory.mktemp("données de l'équipe"), load_demo()
    write_own(folder, log.select(task_ids=log.tasks["task_id"][:10]))
    return folder


@pytest.fixture(scope="module")
def seen(root, site, strangers, own):
    """What a program in `own` sees of the installed package, where only the wheel's requirements can be imported."""
    [example, *_] = blocks((root / "README.md").read_text(encoding="utf-8"))
    said = python("-c", LIBRARY + example + SEEN, json.dumps(strangers), cwd=own, PYTHONPATH=str(site),
                  MTROUTER_CACHE=str(own / "caché"), MTROUTER_ROOT=None, MTROUTER_DATA=None, MTROUTER_NOTEBOOK=None,
                  HF_HUB_OFFLINE="1")
    return json.loads(said.splitlines()[-1])


# what is in the wheel

def test_the_wheel_carries_every_small_file(root, site):
    files = {p.relative_to(root / "data") for p in (root / "data").rglob("[!.]*") if p.is_file()}
    carried = site / "mtrouter_nb" / "_data"
    assert {p.relative_to(carried) for p in carried.rglob("*") if p.is_file()} == files
    assert not [f for f in files if (root / "data" / f).read_bytes() != (carried / f).read_bytes()]


def test_the_wheel_holds_the_package_and_nothing_else(root, wheel):
    about = {name for name in inside(wheel) if ".dist-info/" in name}
    modules = {p.relative_to(root).as_posix() for p in (root / "mtrouter_nb").rglob("*.py")}
    modules |= {f"mtrouter_nb/{name}" for name in ("__init__.pyi", "py.typed")}  # what editors read
    assert modules == {name for name in inside(wheel) - about if not name.startswith("mtrouter_nb/_data/")}
    assert {Path(name).name for name in about} >= {"LICENSE", "NOTICE"}


@pytest.mark.long
def test_the_wheel_of_the_sdist_is_the_wheel_of_the_tree(tree, wheel, tmp_path):
    python("-c", "import sys; from setuptools.build_meta import build_sdist as b; b(sys.argv[1])", tmp_path, cwd=tree)
    [sdist] = tmp_path.glob("*.tar.gz")
    assert not [name for name in tarfile.open(sdist).getnames() if "/tests" in name], "tests need the checkout"
    assert inside(wheel_of(sdist, tmp_path)) == inside(wheel)


def test_the_wheel_asks_for_the_requirements_of_settings(root, installed):
    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    asked = [Requirement(r) for r in installed.requires]
    assert {str(r) for r in asked if not r.marker} == {str(Requirement(r))
                                                      for r in settings["DEFAULT"]["requirements"].split()}
    assert {str(r.marker) for r in asked if r.marker} == {'extra == "dev"', 'extra == "dask"'}


# what it does

def test_every_module_comes_from_the_wheel(seen, site):
    assert len(seen["homes"]) == len(list((site / "mtrouter_nb").rglob("*.py")))
    assert all(Path(home).is_relative_to(site) for home in seen["homes"]) and not seen["checkout"]


def test_every_name_is_there_without_the_development_tools(seen, strangers):
    assert {"fastcore", "nbdev", "papermill", "pytest", "nbformat"} <= set(strangers)
    assert set(mtrouter_nb.__all__) <= set(seen["names"])


def test_small_data_are_those_of_the_checkout(seen):
    assert seen["demo"] == load_demo().fingerprint()
    assert seen["mint"] == mint_pool().fingerprint()
    assert seen["outcomes"] == load_outcomes("demo").fingerprint()


def test_figures_and_claims_go_to_the_working_folder_and_name_no_commit(seen, own):
    assert seen["drawn"] == [f"figures/mine.{kind}" for kind in ("png", "svg", "csv", "json")]
    assert json.loads((own / "build" / "runs" / "figures" / "mine.json").read_text())["commit"] is None
    assert "mine.claim,1,2" in (own / "figures" / "claims" / "mine.csv").read_text(encoding="utf-8")


def test_builder_example_runs(seen, own):
    assert seen["tasks"] == 10 and len(seen["score"]) == 2 and set(seen["score"]) <= {0, 1}
    assert seen["chosen"] in demo_pool()
    assert (own / "caché" / "vectors.sqlite").exists()


# the checkout, and a source tree without notebooks

def test_the_checkout_uses_its_own_data(root, monkeypatch):
    monkeypatch.delenv("MTROUTER_ROOT", raising=False)
    assert in_checkout() and project_root() == root and data_dir() == root / "data"


def test_an_unpacked_source_is_no_checkout_but_has_its_data(tree, tmp_path):
    code = "from mtrouter_nb.core.files import *; print(data_dir(), in_checkout(), project_root(), sep='|')"
    said = python("-X", "utf8", "-c", code, cwd=tmp_path, PYTHONPATH=str(tree), MTROUTER_ROOT=None).strip().split("|")
    assert said == [str(tree / "data"), "False", str(tmp_path)]
