"""The notebooks are the source: modules follow from them, they are clean, and no file tells where it was made."""
import ast
import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from fastcore.xtras import globtastic

NBDEV = Path(sys.executable).parent
# character classes, so that this file does not match itself
TELLTALES = re.compile(r"/(wor[k]|tm[p]|roo[t]|hom[e]|User[s])/|pypi\.or[g]|pythonhoste[d]|npmj[s]|deb\.debia[n]")


def notebooks(root, folder="nbs"):
    return sorted(p for p in (root / folder).rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.fixture(scope="module")
def copy(root, tmp_path_factory):
    """A copy of what export and clean read and write, after both ran."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "mtrouter_nb"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(root / name, copy / name)
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    for command in (["nbdev_clean", "--fname", "nbs"], ["nbdev_export"]):
        subprocess.run([NBDEV / command[0], *command[1:]], cwd=copy, env=env, check=True, capture_output=True)
    return copy


def differing(root, copy, files):
    return [str(f) for f in files
            if not ((root / f).exists() and (copy / f).exists() and filecmp.cmp(root / f, copy / f, shallow=False))]


def test_export_gives_no_diff(root, copy):
    files = {p.relative_to(base) for base in (root, copy) for p in (base / "mtrouter_nb").rglob("*.py")}
    files.add(Path("pyproject.toml"))
    assert not differing(root, copy, sorted(files)), "run nbdev_export: modules do not follow from the notebooks"


def test_the_stub_is_what_its_notebook_says(root):
    cells = nbformat.read(root / "nbs" / "api.ipynb", as_version=4).cells
    [stub] = [c.source for c in cells if c.source.startswith("STUB = ")]
    assert (root / "mtrouter_nb" / "__init__.pyi").read_text(encoding="utf-8") == ast.literal_eval(stub[7:])


def test_notebooks_are_clean(root, copy):
    files = [p.relative_to(root) for p in notebooks(root)]
    assert not differing(root, copy, files), "run nbdev_clean: notebooks hold run-time metadata"


def test_notebooks_hold_no_failed_cell(root):
    for path in notebooks(root):
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
        failed = [c.id for c in nb.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
        assert not failed, f"{path.name}: cells {failed} end in an error"


def test_paper_notebooks_keep_their_form(root):
    """One cell tagged `parameters` with the names that the runner gives, and fewer than fifteen code cells."""
    for path in notebooks(root, "nbs/paper"):
        code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        tagged = [c.source for c in code if "parameters" in c.metadata.get("tags", [])]
        assert len(tagged) == 1, f"{path.name}: exactly one cell is tagged parameters"
        for name in ("PROFILE", "SOURCE", "OUT", "EVIDENCE"):
            assert re.search(rf"^{name}\s*=", tagged[0], re.M), f"{path.name}: no {name} among the parameters"
        assert len(code) < 15, f"{path.name}: {len(code)} code cells"


def test_every_module_has_its_notebook(root):
    for path in sorted((root / "mtrouter_nb").rglob("[!_]*.py")):
        source = re.search(r"File to edit: (?:\.\./)+(nbs/\S+\.ipynb)", path.read_text())
        assert source and (root / source[1]).exists(), f"{path.name} is not the export of a notebook"


def test_tracked_files_name_no_machine(root):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = root / name
        if path.exists() and path.suffix not in {".png", ".parquet"}:
            found = TELLTALES.search(path.read_text(errors="ignore"))
            assert not found, f"{name} holds {found[0]}"


def test_make_runs_the_cells_of_every_notebook(root):
    "`make test` those that export, `make smoke` the tour, whose 80 tasks take a minute to embed."
    make = (root / "Makefile").read_text()
    [(folders, files)] = re.findall(r"\$\(CELLS\) --skip_folder_re '(.*)' --skip_file_re '(.*)'", make)
    found = {*globtastic(root / "nbs", file_glob="*.ipynb", skip_folder_re=folders, skip_file_re=files)}
    found |= {str(root / "nbs" / name) for name in re.findall(r"\$\(CELLS\) --file_glob '(.*)'", make)}
    assert found == {str(p) for p in notebooks(root) if root / "nbs" / "paper" not in p.parents} != set()
