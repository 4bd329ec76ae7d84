"""The README, the index and the tour as their readers use them: links, names, tables, and the builder example run."""

import ast
import re
import subprocess
from importlib import import_module

import nbformat
import numpy as np
import pytest

from mtrouter_nb import MATCHED, ModelPool, SingleModel, demo_pool, load_demo, roll
from mtrouter_nb.data.mint import mint_manifest
from mtrouter_nb.data.sources import SOURCES
from mtrouter_nb.multi_turn.estimator import rights_features


@pytest.fixture(scope="module")
def readme(root) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def cells(root, name, kind):
    return [c for c in nbformat.read(root / "nbs" / f"{name}.ipynb", as_version=4).cells if c.cell_type == kind]


def blocks(text, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def write_own(folder, log):
    """`log` in `folder` as a user would bring it: a JSONL row per model call, and a CSV of models."""
    task = log.tasks.set_index("task_id")
    rows = log.turns[["task_id", "model", "turn", "observation", "action", "input_tokens", "output_tokens"]].copy()
    rows["domain"], rows["prompt"] = rows["task_id"].map(task["domain"]), rows["task_id"].map(task["prompt"])
    rows["success"] = log.turns["episode_id"].map(log.episodes.set_index("episode_id")["success"])
    rows.to_json(folder / "my_turns.jsonl", orient="records", lines=True)
    demo_pool().to_csv(folder / "my_models.csv")


@pytest.fixture(scope="module")
def built(readme, tmp_path_factory):
    """What the builder example leaves behind and prints, run in a folder with the demo log as a user's own."""
    folder = tmp_path_factory.mktemp("own")
    write_own(folder, load_demo())
    code = blocks(readme)[0]
    names, said = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names["print"] = lambda *values: said.append(values)
        exec(compile(code, "README.md", "exec"), names)
    return names | {"said": said}


def test_builder_example_is_short_and_imports_from_the_package_itself(readme):
    code = blocks(readme)[0]
    assert len([line for line in code.split("\n") if line.strip()]) <= 18, "about fifteen lines"
    assert {node.module for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)} == {"mtrouter_nb"}
    assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import)]


def test_builder_example_reads_the_log_as_it_is(built):
    log, demo = built["log"].episodes, load_demo().episodes
    keys, values = ["model", "task_id"], ["success", "n_turns"]
    same = log[keys + values].merge(demo[keys + values], on=keys, suffixes=("", "_demo"))
    assert len(same) == len(log) == len(demo) == 400
    assert (same["success"] == same["success_demo"]).all() and (same["n_turns"] == same["n_turns_demo"]).all()
    assert isinstance(built["pool"], ModelPool) and built["pool"].names == demo_pool().names


def test_builder_example_scores_only_held_out_tasks(built):
    train, test = set(built["train"]), set(built["test"])
    assert set(built["result"].episodes["task_id"]) == test and not train & test
    assert train | test == set(built["log"].tasks["task_id"])


def test_builder_evaluation_is_what_playing_by_hand_gives(built):
    world, estimator = built["world"], built["estimator"]
    play = world.play(world.task_index[list(built["test"])], MATCHED)
    while len(play.running):
        view = play.view()
        score = np.where(view.available, estimator.predict(view.x)[0], -np.inf)
        play.step(score.argmax(1))
    episodes = built["result"].episodes
    np.testing.assert_array_equal(episodes["score"], play.score)
    np.testing.assert_allclose(episodes["cost_usd"], play.spent)
    assert (episodes["n_turns"] <= MATCHED.turns).all() and (episodes["cost_usd"] > 0).all()


def test_builder_router_beats_a_model_drawn_at_random(built):
    world = built["world"]
    rows = world.task_index[list(built["test"])]
    alone = [roll(world, SingleModel(m, n), rows, MATCHED).episodes["score"].mean()
             for m, n in enumerate(built["pool"].names)]
    assert built["result"].episodes["score"].mean() > np.mean(alone)


def test_builder_route_is_the_best_scored_model_of_the_pool(built):
    [chosen] = built["said"][-1]
    x = np.hstack([built["run"].vector[None], rights_features([4], [2], [np.inf])])
    assert chosen == built["pool"].names[built["estimator"].predict(x)[0][0].argmax()]


def test_single_turn_example_runs_on_a_table_as_a_user_brings_it(readme, tmp_path, monkeypatch):
    from mtrouter_nb.data.sources import load_outcomes
    from mtrouter_nb.data.outcomes import to_frame
    monkeypatch.chdir(tmp_path)
    to_frame(load_outcomes("demo")).drop(columns="repeat").to_csv("my_outcomes.csv", index=False)
    said, names = [], {}
    names["print"] = said.append
    code = blocks(readme)[1]
    exec(compile(code, "README.md", "exec"), names)
    [table] = said
    assert {"kNN", "Oracle", "Random"} <= set(table["method"]) and table["value"].notna().all()
    best = table[table["method"] == "Best Single"]
    assert best["value"].eq(0).all() and len([line for line in code.split("\n") if line.strip()]) <= 12


def test_examples_of_the_readme_need_public_names_alone(readme):
    """Each is imported from the root, and none reaches into what begins with an underscore."""
    import mtrouter_nb
    for tree in map(ast.parse, blocks(readme)):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mtrouter_nb"):
                assert node.module == "mtrouter_nb" and {a.name for a in node.names} <= set(mtrouter_nb.__all__)
            name = getattr(node, "attr", None) or getattr(node, "id", None) or ""
            assert not name.startswith("_"), name


def test_readme_prints_what_the_example_computes(built):
    means = built["said"][0][0]
    assert list(means.index) == ["score", "cost_usd", "switches"]
    assert means["score"] == built["result"].episodes["score"].mean()


@pytest.mark.parametrize("name", ["tour", "index"])
def test_notebooks_use_names_that_exist(root, name):
    code = [c.source for c in cells(root, name, "code")]
    code += blocks("\n".join(c.source for c in cells(root, name, "markdown")))
    used = [(node.module, alias.name) for source in code for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "mtrouter_nb" for alias in node.names]
    assert used and not [pair for pair in used if not hasattr(import_module(pair[0]), pair[1])]


def test_names_in_the_prose_exist(root):
    "Names of the package in backticks, such as `Cascade`, and its notebooks."
    import mtrouter_nb
    prose = "\n".join(c.source for name in ("tour", "index") for c in cells(root, name, "markdown"))
    prose = re.sub(r"```.*?```", "", prose, flags=re.S)
    quoted = set(re.findall(r"`([A-Z][a-z]+[A-Za-z]*(?:\.\w+)?|[a-z]+_[a-z_]+)`", prose))
    figures = {p.stem for p in (root / "nbs" / "paper").rglob("*.ipynb")}
    columns = {"task_id", "output_tokens", "input_tokens", "latency_s", "cost_usd", "mtrouter_nb",
               "cached_tokens"}
    others = {"Makefile"}
    for name in quoted - figures - columns - others:
        value = mtrouter_nb
        for part in name.split("."):
            value = getattr(value, part, None) or import_module(f"mtrouter_nb.{part}")


@pytest.mark.parametrize("name", ["README", "tour", "index"])
def test_links_lead_somewhere(root, readme, name):
    text = readme if name == "README" else "\n".join(c.source for c in cells(root, name, "markdown"))
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    base = root if name == "README" else root / "nbs"
    assert links and not [link for link in links if not (base / link).exists()]


def test_readme_tables_are_those_of_the_committed_figures(root, readme):
    command = ["git", "status", "--porcelain", "--", "figures"]
    changed = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if changed.returncode or changed.stdout:
        pytest.skip("figures/ differs from the commit, for which the README was written")
    names: dict = {}
    for cell in cells(root, "index", "code"):
        tree = ast.parse(cell.source)
        exec(compile(ast.Module(tree.body[:-1], []), "index.ipynb", "exec"), names)
        table = eval(compile(ast.Expression(tree.body[-1].value), "index.ipynb", "eval"), names).data
        assert table in readme, "run python tools/make_readme.py"


def test_readme_states_the_download(readme):
    files = mint_manifest()
    assert f"({files['bytes'].sum() / 1e6:.0f} MB: {files['model'].nunique()} models)" in readme
    outcomes = sum(SOURCES[name].manifest()["bytes"].sum() for name in ("zeroeval", "bfcl", "mcpmark"))
    assert f"three benchmarks' outcomes ({outcomes / 1e6:.0f} MB)" in " ".join(readme.split())
