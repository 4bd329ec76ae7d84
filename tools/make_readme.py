"""README.md from nbs/index.ipynb: its text, code and outputs, without running it. `--check` only compares."""

import sys
from pathlib import Path

from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
NOTICE = "<!-- made from nbs/index.ipynb by tools/make_readme.py: edit there -->\n\n"


def readme() -> str:
    "The README's text."
    config = Config()
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_input_tags = ("remove-input",)
    config.MarkdownExporter.preprocessors = ["nbconvert.preprocessors.TagRemovePreprocessor"]
    text, _ = MarkdownExporter(config=config).from_filename(str(ROOT / "nbs" / "index.ipynb"))
    text = text.replace("](../", "](")  # links are relative to nbs/ there and to the checkout here
    lines = [line.rstrip() for line in text.split("\n")]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return NOTICE + "\n".join(kept).strip() + "\n"


if __name__ == "__main__":
    path = ROOT / "README.md"
    if "--check" in sys.argv:
        if not path.exists() or path.read_text(encoding="utf-8") != readme():
            sys.exit("README.md is not what nbs/index.ipynb makes: run python tools/make_readme.py and commit it.")
    else:
        path.write_text(readme(), encoding="utf-8")
