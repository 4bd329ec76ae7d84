"""The ledger of differences to the originals: whole, about systems and figures that exist, with the code's numbers."""
import inspect
import re

import pandas as pd
import pytest

from mtrouter_nb.core.text import Cut
from mtrouter_nb.data.turns import MINT_RULES
from mtrouter_nb.multi_turn.contenders import CONTENDERS
from mtrouter_nb.multi_turn.estimator import ClusterQ, PerModelRidge, PerModelTrees
from mtrouter_nb.multi_turn.trials import EvaluationConfig
from mtrouter_nb.single_turn.evaluation import ABSENT, PROMPT_CUT, ROUTERS
from mtrouter_nb.single_turn.interface import embedllm
from mtrouter_nb.single_turn.neural import GraphRouter, ModelSAT
from mtrouter_nb.single_turn.two_model import HybridLLM

COLUMNS = ["system", "part", "original", "ours", "expected_effect", "measured", "source"]
SAME = {"AvengersPro": "Avengers-Pro", "Random Router": "Random"}  # as MTRouter's table has them
WHOLE = {"LLMRouterBench", "MTRouter"}  # the papers


def read(path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, dtype=str)


def printed_routers(root) -> set[str]:
    "Every router that a table of either paper has."
    tables = root / "data" / "published"
    multi, single = pd.read_csv(tables / "mtrouter_table1_main_results.csv"), pd.read_csv(
        tables / "llmrouterbench_summary.csv")
    bounds = {"Max Expert", "Oracle"}
    names = set(multi.loc[multi["group"] != "single", "method"]) | set(single["method"]) - bounds
    return {SAME.get(name, name) for name in names}


def faults(ledger: pd.DataFrame, systems: set[str], known: set[str]) -> list[str]:
    "What is wrong with the ledger; `known`: figures, and tables of data/published, by name."
    if list(ledger) != COLUMNS: return [f"columns are {list(ledger)}"]
    found = [f"row {i}: {column} is empty" for column in COLUMNS if column != "measured"
             for i in ledger.index[ledger[column].str.strip() == ""]]
    found += [f"row {i}: no system {name!r}" for i, name in ledger["system"].items() if name not in systems]
    found += [f"row {i}: {at!r} stands there twice" for i, at in ledger[
        ledger.duplicated(["system", "part"])]["part"].items()]
    found += [f"row {i}: no figure {name!r}" for i, text in ledger["measured"].items()
              for name in re.findall(r"`([^`]*)`", text) if name not in known]
    return found + [f"row {i}: {text!r} names no figure" for i, text in ledger["measured"].items()
                    if text and "`" not in text]


@pytest.fixture(scope="module")
def systems(root) -> set[str]:
    return {*CONTENDERS, *ROUTERS, *ABSENT, *printed_routers(root), *WHOLE}


@pytest.fixture(scope="module")
def known(root) -> set[str]:
    return {p.stem for folder, kind in (("figures", "json"), ("data/published", "csv"))
            for p in (root / folder).glob(f"*.{kind}")} - {"MANIFEST"}


@pytest.fixture(scope="module")
def ledger(root) -> pd.DataFrame:
    return read(root / "data" / "published" / "fidelity.csv")


def test_the_ledger_is_whole(ledger, systems, known):
    assert faults(ledger, systems, known) == []


def test_every_router_of_both_papers_is_in_it(ledger, root):
    assert printed_routers(root) <= set(ledger["system"])


def test_original_and_ours_differ(ledger):
    assert (ledger["original"] != ledger["ours"]).all()


@pytest.mark.parametrize("column, value, sentence", [
    ("ours", "", "row 3: ours is empty"), ("original", " ", "row 3: original is empty"),
    ("system", "RouterDB", "row 3: no system 'RouterDB'"), ("measured", "seen", "row 3: 'seen' names no figure"),
    ("measured", "`bench_none`", "row 3: no figure 'bench_none'")])
def test_a_fault_is_named(ledger, systems, known, column, value, sentence):
    broken = ledger.copy()
    broken.loc[3, column] = value
    assert faults(broken, systems, known) == [sentence]


def test_a_row_that_stands_there_twice_is_named(ledger, systems, known):
    twice = pd.concat([ledger, ledger.iloc[[0]]], ignore_index=True)
    assert faults(twice, systems, known) == [f"row {len(ledger)}: 'encoder' stands there twice"]
    assert faults(ledger.drop(columns="source"), systems, known) == [f"columns are {COLUMNS[:-1]}"]


# --- what a row says of this package is what its code has -------------------------------------------------------------

def rate(value): return f"{value:.0e}".replace("e-0", "e-")


def default(make, name): return inspect.signature(make).parameters[name].default


def quoted() -> dict:
    "(system, part) -> what must stand in `ours`."
    embed, hybrid, sat, config = embedllm(0).router, HybridLLM(), ModelSAT(), EvaluationConfig()
    dollars = [f"${usd:g}".replace("$0.", "$.") for usd in (min(config.budgets), max(config.budgets))]
    cut = f"first {PROMPT_CUT.head} and last {PROMPT_CUT.tail} characters"
    return {
        ("EmbedLLM", "learning rate and epochs"): f"{rate(embed.learning_rate)} for up to {embed.epochs} epochs",
        ("EmbedLLM", "encoder"): cut, ("RouterDC", "encoder"): cut, ("HybridLLM", "prompt"): cut,
        ("HybridLLM", "classifier"): f"{rate(hybrid.learning_rate)} for up to {hybrid.epochs} epochs",
        ("MODEL-SAT", "training"): f"{rate(sat.learning_rate)} from scratch, up to {sat.epochs} epochs",
        ("MODEL-SAT", "description of a model"): f"{sat.categories} clusters of prompts",
        ("Cluster Q", "clusters"): f"{default(ClusterQ, 'clusters')} clusters;",
        ("Trees Q", "learner"): f"{default(PerModelTrees, 'components')} principal components",
        ("Ridge Q", "strength and cost weight"): f"strength {default(PerModelRidge, 'alpha'):g}; cost weights "
                                                 f"{min(config.cost_weights):g} to {max(config.cost_weights):g}",
        ("MTRouter", "rights of an episode"): "budgets from {} to {}".format(*dollars),
        ("MTRouter", "error rules"): f"{len(MINT_RULES)} for MINT",
        ("MTRouter", "history"): f"first and last {Cut().head} characters"}


@pytest.mark.parametrize("at", quoted(), ids=" ".join)
def test_numbers_of_this_package_are_those_of_its_code(ledger, at):
    [ours] = ledger.loc[(ledger["system"] == at[0]) & (ledger["part"] == at[1]), "ours"]
    assert quoted()[at] in ours


def test_graphrouters_masks(ledger):
    router = GraphRouter()
    if not hasattr(router, "masks"): pytest.skip("it has one mask a step")
    [ours] = ledger.loc[(ledger["system"] == "GraphRouter") & (ledger["part"] == "training"), "ours"]
    assert ours.startswith(f"up to {router.steps} steps at {rate(router.learning_rate)}, each the mean of "
                           f"{router.masks} random masks; none after {router.patience} ")
