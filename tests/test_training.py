"What is taught, at its edges; the rest stands in the notebook."
import numpy as np
import pytest

from mtrouter_nb.multi_turn import training
from mtrouter_nb.multi_turn.local_models import Coder, Conversation
from mtrouter_nb.multi_turn.training import Recipe, Walk, batches, lesson, taught_by


def test_an_unknown_family_is_one_sentence():
    with pytest.raises(ValueError, match="'matters' is none of life, matter, force"):
        taught_by(Recipe(1, 1, "matters", 1), [])


def test_no_lessons_are_no_batches():
    assert [*batches([], 100, np.random.default_rng(0))] == []


def test_an_action_that_is_cut_is_not_taught(monkeypatch):
    coder = Coder([chr(c) for c in range(33, 127)] + ["\u0120", "\u010a"], [], range(96))
    talk = Conversation("melt ice", "a room", "nothing", [("oven", "what?"), ("use stove", "warm")])
    whole, taught = lesson(Walk("melt/0", talk, [True, True]), coder)
    last = np.flatnonzero(taught)[-1]  # the end of the second action's line
    for cut, actions in ((last + 1, "oven\nuse stove\n"), (last, "oven\n"), (last - 3, "oven\n")):
        monkeypatch.setattr(training, "MOST_READ", int(cut))
        tokens, mine = lesson(Walk("melt/0", talk, [True, True]), coder)
        assert len(tokens) == cut and coder.decode(tokens[mine].tolist()) == actions
