"""Figures: fixed looks, four files, equal bytes, provenance that names no machine."""
import json
import os
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from mtrouter_nb.core.files import write_atomic
from mtrouter_nb.studio import plots

DRAW = """
import matplotlib; matplotlib.use("agg")
import matplotlib.pyplot as plt, pandas as pd, sys
from mtrouter_nb.studio import plots
plots.use_style()
data = pd.DataFrame(dict(x=[1, 2, 3], y=[.1, .35, .3], name=["GPT-5", "MTRouter", "other"], evidence="simulated"))
fig, ax = plt.subplots()
ax.scatter(data.x, data.y, c=[plots.color_of(n) for n in data.name])
ax.fill_between(data.x, data.y - .1, data.y + .1, alpha=.2, clip_on=True)
plots.direct_label(ax, data.x, data.y, data.name)
plots.save_figure(fig, "drawn", data, sys.argv[1], evidence="simulated", caption="A test.", seconds=1)
"""


@pytest.fixture
def data():
    return pd.DataFrame(dict(x=[1, 2], y=[.1, .3], evidence="logged"))


@pytest.fixture
def figure():
    plots.use_style()
    fig, ax = plt.subplots()
    ax.plot([1, 2], [1, 2])
    yield fig
    plt.close(fig)


def test_second_run_writes_the_same_bytes(root, tmp_path):
    """Two processes with other hash seeds: png, svg and csv are equal to the byte."""
    for seed in ("1", "2"):
        subprocess.run([sys.executable, "-c", DRAW, str(tmp_path / seed)], cwd=root, check=True,
                       env={**os.environ, "PYTHONHASHSEED": seed})
    for kind in ("png", "svg", "csv"):
        one, two = ((tmp_path / seed / f"drawn.{kind}").read_bytes() for seed in "12")
        assert one == two and len(one) > 20, kind


def test_files_hold_no_date_and_no_version(figure, data, tmp_path):
    plots.save_figure(figure, "f", data, tmp_path, evidence="logged", caption="c")
    assert b"Software" not in (tmp_path / "f.png").read_bytes()
    svg = (tmp_path / "f.svg").read_text()
    assert "dc:date" not in svg and not re.search(r"Matplotlib v\d", svg)


def test_csv_and_json_say_where_numbers_come_from(figure, data, tmp_path):
    (tmp_path / "log.csv").write_text("a\n1\n")
    names = plots.save_figure(figure, "mtrouter_published", data, tmp_path / "out", evidence="logged",
                              caption=" Two   points. ", params=dict(PROFILE="smoke"),
                              inputs=dict(log=tmp_path / "log.csv", pool="1a2b"), seconds=2.345)
    assert sorted(names) == [f"mtrouter_published.{k}" for k in ("csv", "json", "png", "svg")]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "mtrouter_published.csv"), data)
    about = json.loads((tmp_path / "out" / "mtrouter_published.json").read_text())
    assert about["caption"] == "Two points." and about["evidence"] == "logged"
    assert about["command"] == "make reproduce ONLY=mtrouter_published"
    assert not {"seconds", "commit", "modified"} & set(about), "what differs between two runs lies elsewhere"
    assert about["notebook"] == "nbs/paper/mtrouter/mtrouter_published.ipynb"
    assert about["parameters"] == {"PROFILE": "smoke"} and about["inputs"]["pool"] == "1a2b"
    assert len(about["inputs"]["log"]) == 64
    assert str(tmp_path) not in json.dumps(about)


def test_the_runner_names_the_notebook(figure, data, tmp_path, monkeypatch):
    monkeypatch.setenv("MTROUTER_NOTEBOOK", "nbs/paper/x/y.ipynb")
    plots.save_figure(figure, "f", data, tmp_path, evidence="logged", caption="c")
    assert json.loads((tmp_path / "f.json").read_text())["notebook"] == "nbs/paper/x/y.ipynb"


@pytest.mark.parametrize("change, evidence, message", [
    (dict(), "guess", "'guess' is none of published, logged, simulated, live"),
    (dict(evidence="rumour"), "logged", "'rumour' is none of"),
])
def test_unknown_evidence_writes_nothing(figure, data, tmp_path, change, evidence, message):
    with pytest.raises(ValueError, match=message):
        plots.save_figure(figure, "f", data.assign(**change), tmp_path, evidence=evidence, caption="c")
    assert not list(tmp_path.iterdir())


def test_caption_is_drawn_once(figure, data, tmp_path):
    for caption in ("first", "second"):
        plots.save_figure(figure, "f", data, tmp_path, evidence="logged", caption=caption)
    captions = [t.get_text() for t in figure.texts if t.get_gid() == "caption"]
    assert len(captions) == 1 and captions[0].startswith("second Evidence: logged")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "a.csv", "old")

    def full(self, content):
        raise OSError("disk full")
    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_looks_are_fixed_and_distinct():
    mint = ["gpt-4-0613", "Meta-Llama-3-70B-Instruct", "deepseek-llm-67b-chat", "Mixtral-8x7B-Instruct-v0.1",
            "CodeActAgent-Mistral-7b-v0.1", "Meta-Llama-3-8B-Instruct"]
    ours = ["MTRouter", "MTRouter-cost", "oracle", "random", "round-robin", "heuristic", "cascade", "ridge", "trees",
            "cluster"]
    paper = ["GPT-5", "DeepSeek-V3.2", "MiniMax-M2", "Kimi-K2", "Gemini-2.5-Flash-Lite", "GPT-OSS-120B", "RouterDC",
             "EmbedLLM", "AvengersPro", "Random Router", "LLM Router", "Router-R1", "OpenRouter", "MTRouter"]
    episode_level = ["RouterDC", "EmbedLLM", "Avengers-Pro"]
    for names in (mint + ours + episode_level, paper):
        assert len({plots.color_of(n) for n in names}) == len({(plots.color_of(n), plots.marker_of(n))
                                                                for n in names}) == len(names)
    for look in (plots.color_of, plots.marker_of):  # a longer known name wins over its beginning
        assert look("MTRouter-cost (λ=1)") == look("MTRouter-cost") != look("MTRouter")
        assert look("MTRouter, affordable only") == look("MTRouter")
    assert plots.color_of("Avengers-Pro") == plots.color_of("AvengersPro")
    assert plots.color_of("cascade: a → b") == plots.color_of("cascade") == plots.color_of("Cascade (per domain)")


def test_labels_keep_off_points_and_each_other(figure):
    ax = figure.axes[0]
    x, y = [1, 1.01, 1.02, 1.9], [1, 1.01, 1.02, 1.9]
    notes = plots.direct_label(ax, x, y, ["a long label", "another label", "a third one", "at the edge"])
    boxes = [n.get_window_extent() for n in notes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for px, py in ax.transData.transform([*zip(x, y)]):
        assert not any(b.contains(px, py) for b in boxes)
    assert all(ax.get_window_extent().contains(*corner) for b in boxes for corner in b.corners())
