"""Paths that several tests need."""
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def demo_world():
    "The demo log as a world that routers can read."
    from mtrouter_nb.data.demo import load_demo
    from mtrouter_nb.core.encoders import TextEncoder
    from mtrouter_nb.multi_turn.history import HistoryEncoder
    from mtrouter_nb.data.pool import demo_pool
    from mtrouter_nb.multi_turn.replay import ReplayWorld
    return ReplayWorld(load_demo(), demo_pool(), HistoryEncoder(TextEncoder(progress=False)))
