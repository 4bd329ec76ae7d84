"""Floors of the package: who may import whom, and that nothing private crosses a module."""
import ast
import re
from pathlib import Path

import pytest

MAY = dict(core=set(), learners={"core"}, data={"core"}, multi_turn={"core", "learners", "data"},
           single_turn={"core", "learners", "data"}, analyses={"core", "learners", "data", "multi_turn", "single_turn"},
           studio={"core"})


def imports(path: Path, package: Path):
    "(module within the package as a list of names, imported names) of every import of ours in a file."
    here = path.relative_to(package).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((a.name.split(".")[1:], []) for a in node.names if a.name.split(".")[0] == package.name)
        if not isinstance(node, ast.ImportFrom): continue
        module, names = (node.module or "").split("."), [a.name for a in node.names]
        if node.level: yield [*here[:len(here) - node.level], *filter(None, module)], names
        elif module[0] == package.name: yield module[1:], names


def up(package: Path) -> list[str]:
    "Imports that go up, or sideways, between the packages."
    return [f"{path.relative_to(package)} imports {'.'.join(module)}" for folder, below in MAY.items()
            for path in sorted((package / folder).rglob("*.py")) for module, _ in imports(path, package)
            if module and module[0] in MAY and module[0] not in below | {folder}]


def private(package: Path) -> list[str]:
    "Private names that one module takes from another."
    return [f"{path.relative_to(package)} imports {name}" for path in sorted(package.rglob("*.py"))
            if path.name != "__init__.py" for _, names in imports(path, package) for name in names
            if name.startswith("_")]


def test_no_arrow_goes_up(root):
    package = root / "mtrouter_nb"
    assert {p.name for p in package.iterdir() if p.is_dir() and p.name[0] != "_"} == set(MAY)
    assert up(package) == []


def test_no_private_name_crosses_modules(root):
    assert private(root / "mtrouter_nb") == []


@pytest.mark.parametrize("line, found", [
    ("from mtrouter_nb.studio.plots import save_figure", "core/one.py imports studio.plots"),
    ("from ..data import pool", "core/one.py imports data"),
    ("import mtrouter_nb.data.pool", "core/one.py imports data.pool"),
    ("def late():\n    from ..multi_turn.replay import x", "core/one.py imports multi_turn.replay"),
    ("from .files import turn\nfrom mtrouter_nb.core import files", None)])
def test_an_arrow_up_is_seen(tmp_path, line, found):
    file = tmp_path / "mtrouter_nb" / "core" / "one.py"
    file.parent.mkdir(parents=True)
    file.write_text(line)
    assert up(tmp_path / "mtrouter_nb") == [found] * bool(found)
    file.write_text("from .files import _turn")
    assert private(tmp_path / "mtrouter_nb") == ["core/one.py imports _turn"]


def unannotated(tree: ast.Module) -> list[str]:
    "Public functions, and public methods of public classes, that lack the type of a parameter or of what they return."
    public = [n for n in tree.body if getattr(n, "name", "_")[0] != "_"]
    members = [m for n in public if isinstance(n, ast.ClassDef) for m in n.body if getattr(m, "name", "_")[0] != "_"]
    found = []
    for node in (n for n in public + members if isinstance(n, ast.FunctionDef)):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        if untyped or node.returns is None: found.append(f"{node.name}({', '.join(untyped)})")
    return found


def test_every_public_function_is_annotated(root):
    for path in (root / "mtrouter_nb").rglob("*.py"):
        if path.name != "_modidx.py":
            missing = unannotated(ast.parse(path.read_text(encoding="utf-8")))
            assert not missing, f"{path.relative_to(root)}: {missing}"
    assert unannotated(ast.parse("def f(x, y: int): pass\nclass A:\n    def g(self) -> int: pass")) == ["f(x)"]


def test_every_notebook_is_the_module_of_its_place(root):
    "nbs/<package>/NN_<module>.ipynb exports <package>.<module>."
    for notebook in sorted((root / "nbs").glob("*/*.ipynb")):
        if notebook.parent.name in MAY:
            [home] = re.findall(r"#\| default_exp (\S+)\"", notebook.read_text(encoding="utf-8"))
            assert home == f"{notebook.parent.name}.{notebook.stem[3:]}"


def test_links_between_notebooks_lead_somewhere(root):
    for notebook in (root / "nbs").rglob("*.ipynb"):
        links = re.findall(r"\]\(([^)\s:#]+\.ipynb)[)#]", notebook.read_text(encoding="utf-8"))
        missing = [link for link in links if not (notebook.parent / link).exists()]
        assert not missing, f"{notebook.relative_to(root)}: {missing}"
