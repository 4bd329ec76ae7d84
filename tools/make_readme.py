"""README.md from nbs/index.ipynb, whose cells are run first; `--check` runs nothing and compares."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "nbs" / "index.ipynb"
NOTICE = "<!-- made from nbs/index.ipynb by tools/make_readme.py: edit there -->\n\n"


def executed():
    "The notebook with the outputs that its cells give now, and nothing else that a run leaves in it."
    notebook = nbformat.read(INDEX, as_version=4)
    about = notebook.metadata.copy()
    where = dict(metadata=dict(path=str(INDEX.parent)))
    NotebookClient(notebook, resources=where, extra_arguments=["--log-level=ERROR"]).execute()
    notebook.metadata = about
    for cell in notebook.cells:
        if cell.cell_type != "code": continue
        cell.execution_count = None
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if "execution_count" in output: output.execution_count = None
    return notebook


def readme(notebook) -> str:
    "The README's text."
    config = Config()
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_input_tags = ("remove-input",)
    config.MarkdownExporter.preprocessors = ["nbconvert.preprocessors.TagRemovePreprocessor"]
    text, _ = MarkdownExporter(config=config).from_notebook_node(notebook)
    text = text.replace("](../", "](")  # links are relative to nbs/ there and to the checkout here
    lines = [line.rstrip() for line in text.split("\n")]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return NOTICE + "\n".join(kept).strip() + "\n"


if __name__ == "__main__":
    path = ROOT / "README.md"
    if "--check" in sys.argv:
        if not path.exists() or path.read_text(encoding="utf-8") != readme(nbformat.read(INDEX, as_version=4)):
            sys.exit("README.md is not what nbs/index.ipynb makes: run python tools/make_readme.py and commit both.")
    else:
        now = executed()
        nbformat.write(now, INDEX)
        path.write_text(readme(now), encoding="utf-8")
