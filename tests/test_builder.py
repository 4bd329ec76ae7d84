"""The README as its readers use it: its links, and its builder example run on a user's own files."""

import re

import pytest

from mtrouter_nb import MATCHED, SingleModel, demo_pool, load_demo, roll
from mtrouter_nb.pool import ModelPool


@pytest.fixture
def readme(root) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    "The demo log as a user would bring it: one JSONL row per model call, and a CSV of models."
    log = load_demo()
    task = log.tasks.set_index("task_id")
    rows = log.turns[["task_id", "model", "turn", "observation", "action", "input_tokens", "output_tokens"]].copy()
    rows["domain"], rows["prompt"] = rows["task_id"].map(task["domain"]), rows["task_id"].map(task["prompt"])
    rows["success"] = log.turns["episode_id"].map(log.episodes.set_index("episode_id")["success"])
    rows.to_json(tmp_path / "my_turns.jsonl", orient="records", lines=True)
    demo_pool().to_csv(tmp_path / "my_models.csv")
    monkeypatch.chdir(tmp_path)


def test_builder_example_fits_evaluates_and_routes(readme, own_files, capsys):
    [code] = re.findall(r"```python\n(.*?)```", readme, re.S)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    chosen = capsys.readouterr().out.strip().split("\n")[-1]
    pool, world, episodes = names["pool"], names["world"], names["result"].episodes
    assert isinstance(pool, ModelPool) and chosen in pool.names
    assert set(episodes["task_id"]) == set(names["test"]) and not set(names["test"]) & set(names["train"])
    rows = world.task_index[names["test"]]
    alone = [roll(world, SingleModel(m, n), rows, MATCHED).episodes["score"].mean() for m, n in enumerate(pool.names)]
    assert episodes["score"].mean() > min(alone), "a fitted router must beat the weakest model"
    assert len([line for line in code.split("\n") if line.strip()]) <= 18, "about fifteen lines"


def test_links_of_the_readme_lead_somewhere(readme, root):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in link]
    assert links and not [link for link in links if not (root / link).exists()]
