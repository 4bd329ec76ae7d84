"""One file adds a data set, an encoder and a router of each kind, and each stands in a table beside the others."""
import importlib
import sys

import pandas as pd
import pytest

from mtrouter_nb.core import encoders
from mtrouter_nb.core.registry import Registry, UnknownName
from mtrouter_nb.data import sources
from mtrouter_nb.data.demo import load_demo
from mtrouter_nb.data.outcomes import OutcomeError, to_frame
from mtrouter_nb.multi_turn import contenders
from mtrouter_nb.multi_turn.evaluation import run_all
from mtrouter_nb.multi_turn.history import HistoryEncoder
from mtrouter_nb.multi_turn.metrics import method_table
from mtrouter_nb.multi_turn.replay import ReplayWorld
from mtrouter_nb.multi_turn.trials import EvaluationConfig
from mtrouter_nb.single_turn import evaluation

OURS = '''
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtrouter_nb.core.encoders import ENCODERS, EncoderEntry
from mtrouter_nb.data.sources import SOURCES
from mtrouter_nb.data.upstream import OutcomeSource, read_table
from mtrouter_nb.multi_turn.contenders import CONTENDERS, Learned
from mtrouter_nb.single_turn.evaluation import ROUTERS, RouterEntry
from mtrouter_nb.single_turn.interface import Choices


def convert(root):
    frame = pd.read_csv(root / "mine.csv")
    return dict(tasks=frame[["task_id", "prompt"]].drop_duplicates(), outcomes=frame)


class Letters:
    fingerprint = "letters"

    def encode(self, texts):
        return np.array([[text.count(chr(97 + i)) for i in range(26)] for text in texts], "f4")


@dataclass
class Cheapest:
    name: str = "Cheapest"

    def fit(self, matrix, queries):
        self.model = int(np.nansum(matrix.cost, 0).argmin())
        return self

    def choose(self, queries): return Choices([np.nan], np.full((1, len(queries)), self.model))


class MeanQ:
    def fit(self, data):
        self.means = [np.bincount(data.action, y) / np.bincount(data.action) for y in (data.score, data.cost)]
        return self

    def predict(self, x): return tuple(np.tile(mean, (len(x), 1)) for mean in self.means)


def make_mean(pool, config): return [MeanQ()]


def some(config): return (0.0, 5.0)


SOURCES.add(OutcomeSource(name="mine", title="My outcomes", urls={}, convert=convert, tables=("tasks", "outcomes"),
                          outcomes=lambda folder: read_table(folder / "outcomes.parquet")))
ENCODERS.add(EncoderEntry("letters", Letters))
ROUTERS.add(RouterEntry("Cheapest", lambda seed: Cheapest()))
CONTENDERS.add(Learned("Mean Q", make_mean, some))
'''


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """A module of one's own in a temporary folder, with its data; registries are as before afterwards."""
    home = tmp_path / "data" / "mine"
    home.mkdir(parents=True)
    frame = to_frame(sources.load_outcomes("demo")).drop(columns="repeat")
    frame[["task_id", "prompt"]].drop_duplicates().to_parquet(home / "tasks.parquet")
    frame.to_parquet(home / "outcomes.parquet")
    monkeypatch.setenv("MTROUTER_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "ours.py").write_text(OURS)
    monkeypatch.syspath_prepend(tmp_path)
    registries = sources.SOURCES, encoders.ENCODERS, evaluation.ROUTERS, contenders.CONTENDERS
    before = [dict(registry) for registry in registries]
    yield importlib.import_module("ours")
    del sys.modules["ours"]
    for registry, entries in zip(registries, before):
        registry.clear()
        registry.update(entries)


def test_a_source_an_encoder_and_a_router_of_ones_own_stand_in_the_table(ours):
    matrix = sources.load_outcomes("mine")
    assert len(matrix.models) == 4 and matrix.name == "mine"
    queries = evaluation.encoded(matrix, encoders.ENCODERS["letters"].make())
    assert queries.embeddings.shape == (len(matrix), 26)
    two = {name: evaluation.routers_for("full")[name] for name in ("kNN", "Cheapest")}
    bench = evaluation.bench_results(matrix, queries, two, (42,), workers=1, progress=False)
    table = evaluation.performance(bench).query("metric == 'AvgAcc'").set_index("method")["value"]
    cheap = matrix.models[pd.DataFrame(matrix.cost).sum().idxmin()]
    assert {"kNN", "Cheapest", "Oracle"} <= set(table.index) and table["Cheapest"] == table[cheap]


def test_a_multi_turn_router_of_ones_own_stands_in_the_table(ours):
    log = load_demo()
    few = log.select(task_ids=log.tasks["task_id"][::8])
    world = ReplayWorld(few, sources.pool_of(few), HistoryEncoder(encoders.ENCODERS["letters"].make()))
    config = EvaluationConfig(folds=2, runs=1, fits=1, random_seeds=1, cost_weights=(0.0, 5.0), budgets=(0.01,),
                              clusters=2)
    mine = {"Mean Q": contenders.CONTENDERS["Mean Q"]}
    found = run_all(world, config, mine, workers=1, progress=False)
    rows = method_table(found.rollouts.query("split == 'test'"), ["rights", "method", "parameter"])
    ours, theirs = (rows[(rows["rights"] == "matched") & (rows["method"] == name)] for name in ("Mean Q", "grand-120b"))
    assert len(ours) == 2 and len(theirs) == 1 and found.fits["estimator"].eq("Mean Q").all()
    assert set(found.moves["method"]) > {"Mean Q", "Random"}


def test_what_is_not_there_is_named():
    for registry in (sources.SOURCES, encoders.ENCODERS, evaluation.ROUTERS, contenders.CONTENDERS):
        said = f"There is no {registry.kind} 'none'; there are '{next(iter(registry))}'"
        with pytest.raises(UnknownName, match=said): registry["none"]
        with pytest.raises(ValueError, match="already; give yours another name"):
            registry.add(next(iter(registry.values())))
    with pytest.raises(OutcomeError, match="'none' is not one of"): sources.load_outcomes("none")
    assert isinstance(sources.SOURCES, Registry)
