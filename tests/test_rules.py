"Rules that hand on, and drafts, in the world of numbers: against plain loops."
from itertools import groupby

import numpy as np
import pytest
from test_tree import PRICES, RIGHTS, WORDS, Given, Speaker, drawn, world_of

from mtrouter_nb.multi_turn.local_models import Conversation
from mtrouter_nb.multi_turn.rollout import roll
from mtrouter_nb.multi_turn.routers import RandomRouter, SingleModel
from mtrouter_nb.multi_turn.rules import AtRepeat, Decide, SwitchAtRepeat, SwitchOnce
from mtrouter_nb.multi_turn.tree_world import TREE_ENDS, cached_usd, tree_log

ADD, DOUBLE, BACK, SING = range(4)


def words(world, played, row=0):
    "What was said in an episode."
    turns = played.moves[(played.moves["row"] == row) & played.moves["acted"]]
    return [WORDS[m] for m in turns["model"]]


def test_repeats_are_those_of_the_conversation():
    world = world_of()
    roll(world, Given(world, drawn(60, 5)), np.arange(60) % 5, RIGHTS)
    for state in range(len(world.tree)):
        runs = [len([*run]) for _, run in groupby(world.tree.path(state)[1:])]
        assert world.of.repeated[state] == (runs[-1] if runs else 0)


def test_whoever_repeats_is_stopped_helped_or_replaced():
    world, at = world_of(), [4]  # reach 77
    said = {router.name: words(world, roll(world, router, at, RIGHTS)) for router in (
        AtRepeat(SingleModel(ADD, "add"), -1, "stop", 3), AtRepeat(SingleModel(ADD, "add"), SING, "break"),
        SwitchAtRepeat((SING, ADD), "switch"), SwitchOnce(BACK, ADD, 4, "once"))}
    assert said["stop"] == ["add"] * 3
    assert said["break"] == (["add", "add", "sing"] * 5)
    assert said["switch"] == ["sing", "sing"] + ["add"] * 13 and said["once"] == ["back"] * 4 + ["add"] * 11


def test_a_stopped_episode_keeps_its_score():
    found = roll(world_of(), AtRepeat(SingleModel(DOUBLE, "d"), -1), np.arange(5), RIGHTS).episodes
    assert found["n_turns"].tolist() == [2, 2, 2, 2, 2] and found["reason"].tolist() == ["failed"] + ["stopped"] * 4
    assert np.allclose(found["score"], [0, *((4 / goal + 1) / 2 for goal in (8, 9, 40, 77))])


def by_hand(goal, cheap, strong, decisive):
    "Dollars of an episode in which `cheap` drafts every turn, and `strong` acts instead of a decisive draft."
    talk, usd, cached, read = Conversation("", "", "", []), 0.0, 0.0, {}
    value = 1
    for _ in range(15):
        acts = strong if cheap == decisive else cheap
        for word in dict.fromkeys([cheap, acts]):
            context, price = Speaker(word).one([], talk).context, PRICES.loc[word] / 1e6
            first = Speaker(word).one([], talk).first
            old, there = read.get(word, (0, 0))
            again = there if old == first else min(4, there)
            read[word] = first, context + (word == acts)
            fixed = price["output_usd_per_mtok"] * 2
            usd += context * price["input_usd_per_mtok"] + fixed
            cached += ((context - again) * price["input_usd_per_mtok"] + again * price["cached_input_usd_per_mtok"]
                       + fixed)
        value = {"add": value + 1, "double": 2 * value, "sing": value}[acts]
        talk.steps.append((acts, ""))
        if value >= goal: break
    return usd, cached


@pytest.mark.parametrize("cheap, decisive", [("sing", "sing"), ("sing", "add"), ("add", "add")])
def test_drafts_are_paid_for_where_another_acts(cheap, decisive):
    world = world_of()
    played = roll(world, Decide(WORDS.index(cheap), DOUBLE, word=decisive), [1, 4], RIGHTS)
    slow = [by_hand(goal, cheap, "double", decisive) for goal in (8, 77)]
    assert np.allclose(np.c_[played.episodes["cost_usd"], cached_usd(world, played)], slow)
    assert set(words(world, played)) == {"double" if cheap == decisive else cheap}
    assert played.episodes["n_turns"].sum() == played.moves["acted"].sum()
    if played.moves["acted"].all(): assert len(tree_log(played, world).turns) == len(played.moves)
    else:
        with pytest.raises(ValueError, match="drafted what a log can't hold"): tree_log(played, world)


def test_a_draft_that_is_taken_costs_nothing_more():
    world = world_of()
    plain, drafted = (roll(world, router, np.arange(5), RIGHTS) for router in (
        SingleModel(ADD, "x"), Decide(ADD, DOUBLE, "x", "never")))
    assert plain.episodes.equals(drafted.episodes) and plain.moves.equals(drafted.moves)
    assert np.array_equal(cached_usd(world, plain), cached_usd(world, drafted))


def test_a_draft_asked_for_twice_is_one():
    class Twice(Decide):
        def choose(self, view):
            view.draft(self.cheap)
            return super().choose(view)

    world = world_of()
    once, twice = (roll(world, kind(ADD, DOUBLE, word="add"), [1, 2], RIGHTS) for kind in (Decide, Twice))
    assert once.episodes.equals(twice.episodes) and once.moves.equals(twice.moves)


def test_an_episode_ends_where_a_draft_is_not_known():
    world = world_of()
    roll(world, SingleModel(DOUBLE, "double"), [1, 2], RIGHTS)
    roll(world, SingleModel(ADD, "add"), [1], RIGHTS)
    recorded = world_of(world.tree, live=False)
    found = roll(recorded, Decide(ADD, DOUBLE, word="never"), [1, 2], RIGHTS).episodes
    assert found["reason"].tolist() == ["success", TREE_ENDS] and found["score"].isna().tolist() == [False, True]
    found = roll(recorded, Decide(ADD, DOUBLE, word="add"), [1, 2], RIGHTS).episodes
    assert found["reason"].tolist() == [TREE_ENDS] * 2, "after a double nobody knows what the adder drafts"


def test_a_draft_that_nobody_knows_is_no_end_that_was_chosen():
    class Gives(Decide):
        def choose(self, view):
            super().choose(view)
            return np.full(len(view), -1)  # whatever was drafted

    world = world_of()
    roll(world, SingleModel(ADD, "add"), [1], RIGHTS)
    roll(world_of(world.tree), SingleModel(DOUBLE, "double"), [2], RIGHTS)
    found = roll(world_of(world.tree, live=False), Gives(ADD, DOUBLE), [1, 2], RIGHTS).episodes
    assert found["reason"].tolist() == ["stopped", TREE_ENDS] and found["score"].isna().tolist() == [False, True]


def test_without_drafts_every_move_acts():
    world = world_of()
    assert roll(world, RandomRouter(), np.arange(5), RIGHTS, 1).moves["acted"].all()
