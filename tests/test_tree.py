"A tree of conversations against plain loops, with a toy environment whose truth is known."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.data.pool import ModelPool
from mtrouter_nb.data.turns import SCIENCEWORLD_RULES, TurnLog, turn_costs
from mtrouter_nb.multi_turn import tree as trees
from mtrouter_nb.multi_turn.estimator import training_set
from mtrouter_nb.multi_turn.history import HistoryEncoder
from mtrouter_nb.multi_turn.local_models import Action, Conversation, WorldError
from mtrouter_nb.multi_turn.replay import Rights
from mtrouter_nb.multi_turn.rollout import roll
from mtrouter_nb.multi_turn.routers import RandomRouter, SingleModel
from mtrouter_nb.multi_turn.scienceworld import Outcome
from mtrouter_nb.multi_turn.tree import (Said, Tree, conversation, load_tree, opening, take_journal,
                                         write_shard)
from mtrouter_nb.multi_turn.tree_world import (TREE_ENDS, Live, Member, TreeWorld, cached_tokens, cached_usd,
                                               tree_log)

WINDOW = 6  # turns that an agent sees; of more, it sees the last three


class Numbers:
    "From 1 to a number, by `add`, `double` and `back`; whoever passes it has failed."
    version = "numbers 1"

    def __init__(self): self.at, self.calls = {}, 0

    def start(self, place, task_id):
        self.at[place] = [1, int(task_id.split("/")[1])]
        return Conversation(f"Reach {self.at[place][1]}.", "You are at 1.", "Nothing.")

    def step(self, place, action):
        value, goal = self.at[place]
        self.calls += 1
        if action not in ("add", "double", "back"):
            return Outcome("No known action matches that input.", value / goal, False)
        value = {"add": value + 1, "double": 2 * value, "back": max(1, value - 1)}[action]
        self.at[place][0] = value
        if value > goal: return Outcome("Too far.", -1.0, True)
        return Outcome(f"You are at {value}.", value / goal, value == goal)


class Speaker:
    "Says one word, another after its own last word where that did nothing; `mind`: of whom it shares the reading."

    def __init__(self, word, mind=None):
        self.name = self.digest = self.word = word
        self.mind = mind or word

    def start(self): return []

    def act(self, kept, talks): return [self.one(reading, talk) for reading, talk in zip(kept, talks)]

    def one(self, reading, talk):
        n = len(talk.steps)
        first = 0 if n <= WINDOW else 3 * ((n - WINDOW - 1) // 3 + 1)
        shown = [talk.task, *(word for step in talk.steps[first:] for word in step)]
        same = 0
        while same < min(len(shown), len(reading)) and shown[same] == reading[same]: same += 1
        reading[:] = [*shown, self.word]
        return Action(self.word, 4 + 3 * (n - first), len(shown) - same, 2, 0.5, -1.0, first, 4)


WORDS = ["add", "double", "back", "sing"]
TASKS = pd.DataFrame(dict(task_id=[f"reach/{n}" for n in (3, 8, 9, 40, 77)], domain=["low"] * 3 + ["high"] * 2))
PRICES = pd.DataFrame(dict(input_usd_per_mtok=[1., 2., 3., 5.], output_usd_per_mtok=[2., 2., 3., 7.],
                           cached_input_usd_per_mtok=[.1, .2, .3, .5]), WORDS)
RIGHTS = Rights("fifteen", 15, 1_000)


def world_of(tree=None, words=WORDS, live=True, journals=None, tasks=TASKS, history=None, minds=None, places=2):
    tree, agents = Tree(Numbers.version) if tree is None else tree, [Speaker(w, (minds or {}).get(w)) for w in words]
    members = [Member(a.name, a.digest, a.mind) for a in agents]
    alive = Live(tree, agents, Numbers(), places, journals) if live else None
    return TreeWorld(tree, tasks, ModelPool(PRICES.loc[list(words)]), members, alive, history=history)


class Given:
    "Models by name, a list per episode."
    name = "given"

    def __init__(self, world, names): self.plan = [[world.pool.index(n) for n in row] for row in names]
    def start(self, n, seed): pass
    def choose(self, view): return np.array([self.plan[row][view.step] for row in view.row])


def drawn(n, seed, turns=15):
    rng = np.random.default_rng(seed)
    return [[WORDS[i] for i in rng.choice(4, turns, p=[.4, .3, .2, .1])] for _ in range(n)]


def plain_loop(task, words, minds=None):
    "Score, reason, turns, dollars and cached dollars of one episode, played by hand."
    env, minds = Numbers(), minds or {}
    talk = env.start(0, task)
    readings, usd, cached = {}, 0.0, 0.0
    price = PRICES / 1e6
    for word in words:
        agent = Speaker(word, minds.get(word))
        action = agent.act([[]], [talk])[0]
        p = price.loc[word]
        usd += p["input_usd_per_mtok"] * action.context + p["output_usd_per_mtok"] * 2
        first, read = readings.get(agent.mind, (0, 0))
        again = read if first == action.first else min(4, read)
        cached += (p["input_usd_per_mtok"] * (action.context - again) + p["cached_input_usd_per_mtok"] * again
                   + p["output_usd_per_mtok"] * 2)
        readings[agent.mind] = action.first, action.context + 1
        outcome = env.step(0, word)
        talk.steps.append((word, outcome.observation))
        if outcome.done: break
    reason = {True: "success", False: "failed"}[outcome.score > 0] if outcome.done else "turns"
    return (outcome.score + 1) / 2, reason, len(talk.steps), usd, cached


# ---------------------------------------------------------------------------- episodes

@pytest.mark.parametrize("minds", [None, dict(add="one", double="one")])
def test_episodes_are_those_of_a_plain_loop(minds):
    world, rng = world_of(minds=minds), np.random.default_rng(0)
    at, plans = rng.integers(0, 5, 120), drawn(120, 1)
    played = roll(world, Given(world, plans), at, RIGHTS)
    slow = [plain_loop(TASKS["task_id"][t], plan, minds) for t, plan in zip(at, plans)]
    found = played.episodes[["score", "reason", "n_turns", "cost_usd"]].assign(cached=cached_usd(world, played))
    for row, expected in zip(found.itertuples(index=False), slow):
        assert row[1:3] == expected[1:3] and row[0] == pytest.approx(expected[0])
        assert row[3:] == pytest.approx(expected[3:])
    assert len({reason for _, reason, *_ in slow}) == 3 and found["n_turns"].max() > WINDOW + 3


def test_what_was_played_is_looked_up_and_nobody_is_asked():
    world, plans = world_of(), drawn(60, 2)
    at = np.arange(60) % 5
    first = roll(world, Given(world, plans), at, RIGHTS)
    asked, calls = world.live.asked, world.live.environment.calls
    second = roll(world, Given(world, plans), at, RIGHTS)
    assert (world.live.asked, world.live.environment.calls) == (asked, calls) and asked < len(first.moves)
    recorded = world_of(world.tree, live=False)
    for other in (second, roll(recorded, Given(recorded, plans), at, RIGHTS)):
        pd.testing.assert_frame_equal(first.episodes, other.episodes)
        pd.testing.assert_frame_equal(first.moves, other.moves)


def test_one_place_of_the_simulator_is_enough():
    plans, at = drawn(30, 3), np.arange(30) % 5
    few, many = world_of(places=1), world_of(places=16)
    a, b = (roll(w, Given(w, plans), at, RIGHTS).episodes for w in (few, many))
    pd.testing.assert_frame_equal(a, b)
    assert few.tree.states == many.tree.states and few.live.environment.calls > many.live.environment.calls


def test_the_order_of_the_pool_changes_nothing():
    plans, at = drawn(40, 4), np.arange(40) % 5
    a, b = world_of(), world_of(words=WORDS[::-1])
    found = [roll(w, Given(w, plans), at, RIGHTS) for w in (a, b)]
    pd.testing.assert_frame_equal(found[0].episodes, found[1].episodes)
    assert np.allclose(cached_usd(a, found[0]), cached_usd(b, found[1]))


def test_where_the_tree_ends_a_score_is_missing():
    world = world_of()
    roll(world, SingleModel(0, "add"), np.arange(3), RIGHTS)
    recorded = world_of(world.tree, live=False)
    found = roll(recorded, Given(recorded, [["add", "double"]] * 5), np.arange(5), Rights("two", 2, 1_000)).episodes
    assert found["reason"].tolist() == [TREE_ENDS] * 5 and found["score"].isna().all()
    assert found["n_turns"].tolist() == [1, 1, 1, 0, 0], "the last two tasks were never begun"
    assert found["cost_usd"].isna().all() and not found["over_budget"].any()


def test_an_empty_tree_knows_nothing():
    played = roll(empty := world_of(live=False), SingleModel(0, "add"), [0, 1], RIGHTS)
    assert played.episodes[["score", "cost_usd"]].isna().all(axis=None)
    assert set(played.episodes["reason"]) == {TREE_ENDS}
    assert np.isnan(cached_usd(empty, played)).all()


def test_rights_of_none_play_nothing():
    for rights in (replace(RIGHTS, turns=0), replace(RIGHTS, usd=0.0)):
        found = roll(world_of(), SingleModel(0, "add"), [0], rights).episodes
        assert found["n_turns"].item() == 0 and found["cost_usd"].item() == 0
    for rights in (replace(RIGHTS, affordable_only=True), replace(RIGHTS, proposals_each=1)):
        with pytest.raises(ValueError, match="rights may limit turns and dollars"): world_of().play([0], rights)


def test_another_agent_is_not_taken_for_one_that_spoke():
    world = world_of()
    roll(world, SingleModel(0, "add"), [0], RIGHTS)
    members = [replace(m, digest="other weights") if m.name == "add" else m for m in world.members]
    other = TreeWorld(world.tree, TASKS, world.pool, members)
    assert roll(other, SingleModel(0, "add"), [0], RIGHTS).episodes["reason"].item() == TREE_ENDS
    with pytest.raises(WorldError, match="not those whose words the tree holds"):
        TreeWorld(world.tree, TASKS, world.pool, members, world.live)


def test_errors_and_budgets_are_seen():
    world = world_of()
    play = world.play([3, 3], replace(RIGHTS, usd=np.array([np.inf, 3e-5])))
    play.step(np.array([3, 0]))
    view = play.view()
    assert view.error[0] > 0 and view.error[1] == 0 and view.usd_left[1] == pytest.approx(3e-5 - (4 + 2 * 2) * 1e-6)
    assert view.turns_left.tolist() == [14, 14] and view.current.tolist() == [3, 0] and view.available.all()
    while len(play.running): play.step(np.zeros(len(play.running), int))
    assert play.reason.tolist() == ["turns", "budget"] and play.spent[1] >= 3e-5


def test_propensities_are_kept():
    world = world_of()
    assert (roll(world, RandomRouter(), [0, 1], RIGHTS, 3).moves["propensity"] == .25).all()


def test_a_rollout_becomes_a_log_that_is_paid_and_learned_from_as_played(demo_world):
    world = world_of(history=HistoryEncoder(demo_world.encoder.encoder))
    roll(world, SingleModel(0, "add"), np.arange(5), RIGHTS)
    recorded = world_of(world.tree, live=False, history=world.encoder)
    part = roll(recorded, Given(recorded, [["add"] * 15, ["double"] * 15]), [0, 1], RIGHTS)
    assert tree_log(part, recorded, evidence="simulated").episodes["task_id"].tolist() == ["reach/3"]
    played = roll(world, RandomRouter(), np.arange(20) % 5, RIGHTS, 4)
    log = tree_log(played, world, "a|", "simulated")
    assert len(log.episodes) == 20 and len(log.turns) == len(played.moves)
    paid = turn_costs(log, world.pool).groupby(log.turns["episode_id"]).sum().reindex(log.episodes["episode_id"])
    assert np.allclose(paid, played.episodes["cost_usd"])
    assert np.allclose(log.episodes["score"], played.episodes["score"]) and (log.turns["propensity"] == .25).all()
    for _, turns in log.turns.groupby("episode_id"):
        assert turns["observation"].tolist()[1:] == turns["feedback"].tolist()[:-1]
    rows = training_set(log, world.pool, world.encoder, {None: 1.0}, 15, 1_000)
    states = played.moves["state"].to_numpy()
    assert np.allclose(rows.x[:, :-3], world.histories(states), atol=1e-5)
    assert np.array_equal(rows.action, played.moves["model"])


def test_histories_are_those_of_a_turn_log(demo_world):
    encoder, plan = HistoryEncoder(demo_world.encoder.encoder), ["add", "sing", "double", "back", "double"]
    world = world_of(history=encoder)
    played = roll(world, Given(world, [plan]), [3], Rights("five", 5, 1_000))
    last, states = played.moves["state"].iloc[-1], played.moves["state"].to_numpy()
    talk = conversation(world.tree, world.of.child[last, WORDS.index("double")])
    tasks = pd.DataFrame(dict(task_id=["t"], domain="d", prompt=[talk.task]))
    turns = pd.DataFrame(dict(episode_id="e", task_id="t", turn=range(5), attempt=0, model=plan, observation="",
                              action=[a for a, _ in talk.steps], feedback=[o for _, o in talk.steps], input_tokens=1,
                              output_tokens=1))
    episodes = pd.DataFrame(dict(episode_id=["e"], task_id="t", domain="d", model=None, router="r", success=False,
                                 score=0.0, n_turns=5, n_proposals=0, terminate_reason="turns", input_tokens=5,
                                 output_tokens=5, tokens_estimated=False))
    log = TurnLog(tasks, episodes, turns, "simulated", "by hand", SCIENCEWORLD_RULES)
    expected = np.vstack([encoder.start([talk.task]), encoder.after(log)[:-1]])
    assert np.allclose(world.histories(states), expected, atol=1e-6)
    with pytest.raises(ValueError, match="no history encoder"): world_of().histories(states)


# ---------------------------------------------------------------------------- files

def some_tree(seed=0):
    world = world_of()
    roll(world, Given(world, drawn(40, seed)), np.arange(40) % 5, RIGHTS)
    return world.tree


def test_shards_hold_the_tree_and_are_never_written_again(tmp_path):
    tree, written = some_tree(), {}
    for seed in (1, 2, 3):
        write_shard(tree, tmp_path)
        now = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        assert written.items() <= now.items() and len(now) == len(written) + 2
        written = now
        world = world_of(tree)
        roll(world, Given(world, drawn(40, seed)), np.arange(40) % 5, RIGHTS)
    found = load_tree(tmp_path, Numbers.version)
    assert found.states == {c: v[:len(found)] for c, v in tree.states.items()} and len(found) < len(tree)
    write_shard(tree, tmp_path)
    found = load_tree(tmp_path, Numbers.version)
    assert (found.states, found.said, found.depth) == (tree.states, tree.said, tree.depth)
    assert write_shard(tree, tmp_path) is None


@pytest.mark.parametrize("harm, sentence", [
    (lambda file: file.write_bytes(file.read_bytes()[:50]), "is damaged"),
    (lambda file: file.write_bytes(b""), "is damaged"), (lambda file: file.unlink(), "no whole shard 0000")])
@pytest.mark.parametrize("half", ["states", "said"])
def test_a_harmed_shard_is_one_sentence(tmp_path, harm, sentence, half):
    tree = some_tree()
    write_shard(tree, tmp_path)
    roll(world := world_of(tree), Given(world, drawn(40, 9)), np.arange(40) % 5, RIGHTS)
    write_shard(tree, tmp_path)
    harm(tmp_path / f"0000.{half}.pq")
    with pytest.raises(WorldError, match=sentence): load_tree(tmp_path, Numbers.version)


def test_a_tree_of_another_simulator_is_one_sentence(tmp_path):
    tree = some_tree()
    write_shard(tree, tmp_path)
    with pytest.raises(WorldError, match="is of numbers 1, and the world is numbers 2"):
        load_tree(tmp_path, "numbers 2")
    with pytest.raises(WorldError, match="the tree is of numbers 2, and here is numbers 1"):
        Live(Tree("numbers 2"), [], Numbers())


def test_an_environment_that_does_not_repeat_itself_is_one_sentence():
    world = world_of()
    roll(world, SingleModel(0, "add"), [0], RIGHTS)
    state = world.tree.find(world.tree.find(-1, "reach/3"), "add")
    with pytest.raises(WorldError, match="not the answer recorded"):
        world.tree.add(world.tree.states["parent"][state], "add", Outcome("You are at 7.", .5, False))


def merged(folder):
    tree = Tree(Numbers.version)
    for file in sorted(Path(folder).glob("*.jsonl")): take_journal(tree, file)
    return tree


def as_paths(tree):
    "The content of a tree, whatever the order in which it came."
    paths = [tuple(tree.path(state)) for state in range(len(tree))]
    said = {(agent, paths[state]): (replace(s, child=-1), paths[s.child]) for agent, by in tree.said.items()
            for state, s in by.items()}
    return {path: tree.outcome(state) for state, path in enumerate(paths)}, said


def test_journals_of_several_processes_are_one_tree(tmp_path):
    whole = Tree(Numbers.version)
    for seed in (1, 2, 3):
        tree = merged(tmp_path)
        world = world_of(tree if seed < 3 else None, journals=tmp_path)  # the third began before the others wrote
        for w in (world, world_of(whole)): roll(w, Given(w, drawn(30, seed)), np.arange(30) % 5, RIGHTS)
    assert len(list(tmp_path.iterdir())) == 3 and as_paths(merged(tmp_path)) == as_paths(whole)


@pytest.mark.parametrize("cut", [1, 7, 30, 200])
def test_a_torn_journal_loses_its_last_line_alone(tmp_path, cut):
    tree = Tree(Numbers.version)
    world = world_of(tree, journals=tmp_path)
    roll(world, Given(world, drawn(30, 1)), np.arange(30) % 5, RIGHTS)
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-cut])
    states, said = as_paths(merged(tmp_path))
    all_states, all_said = as_paths(tree)
    assert states.items() <= all_states.items() and said.items() <= all_said.items()
    assert len(all_said) - len(said) <= 1 + cut // 20
    again = merged(tmp_path)
    world = world_of(again, journals=tmp_path)
    roll(world, Given(world, drawn(30, 1)), np.arange(30) % 5, RIGHTS)
    assert as_paths(again) == as_paths(merged(tmp_path)) == (all_states, all_said)


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    tree = Tree(Numbers.version)
    world = world_of(tree, journals=tmp_path)
    journal = world.live.journal
    roll(world, SingleModel(0, "add"), [0], RIGHTS)

    class Full:
        def write(self, text): raise OSError(28, "No space left on device")

    held, journal._file = journal._file, Full()
    with pytest.raises(WorldError, match="takes nothing more .No space left on device.; make room"):
        roll(world, SingleModel(1, "double"), [1], RIGHTS)
    held.close()
    assert len(merged(tmp_path)) == 3
    roll(world, SingleModel(1, "double"), [0, 1], RIGHTS)  # there is room again
    assert as_paths(merged(tmp_path)) == as_paths(world.tree)


def test_an_environment_that_fails_once_leaves_no_wrong_state():
    world, fails = world_of(places=1), [3, 7, 11]

    class Failing(Numbers):
        def step(self, place, action):
            outcome = super().step(place, action)
            if self.calls in fails: raise ConnectionError("gone")
            return outcome

    world.live.environment = Failing()
    for _ in range(4):
        try: roll(world, Given(world, drawn(20, 8)), np.arange(20) % 5, RIGHTS)
        except ConnectionError: pass
    whole = world_of()
    roll(whole, Given(whole, drawn(20, 8)), np.arange(20) % 5, RIGHTS)
    assert world.live.environment.calls > 11 and as_paths(world.tree) == as_paths(whole.tree)


@pytest.mark.parametrize("harm", [
    lambda lines: [*lines[:5], lines[4], *lines[5:]], lambda lines: [*lines[:5], "", *lines[5:]],
    lambda lines: [*lines[:5], "\0\0", *lines[5:]], lambda lines: [*lines[:2], *lines[3:]],
    lambda lines: [*lines[:5], "[9999, 1, 2, 3, 4]", *lines[5:]], lambda lines: [*lines[:5], "{}", *lines[5:]]])
def test_a_harmed_journal_is_one_sentence(tmp_path, harm):
    world = world_of(journals=tmp_path)
    roll(world, Given(world, drawn(30, 1)), np.arange(30) % 5, RIGHTS)
    file = next(tmp_path.iterdir())
    states = [line for line in file.read_text().splitlines() if line.count(",") != 8]
    file.write_text("\n".join(harm(states)) + "\n")
    with pytest.raises(WorldError, match=r"journal-.*jsonl is damaged .*delete it"): merged(tmp_path)


def test_shards_out_of_order_are_one_sentence(tmp_path):
    tree = some_tree()
    for seed in (1, 2):
        write_shard(tree, tmp_path)
        roll(world := world_of(tree), Given(world, drawn(40, seed)), np.arange(40) % 5, RIGHTS)
    write_shard(tree, tmp_path)
    for half in ("states", "said"):
        one, two = (tmp_path / f"000{i}.{half}.pq" for i in (1, 2))
        kept = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(kept)
    with pytest.raises(WorldError, match="0001.* does not belong to the files beside it"):
        load_tree(tmp_path, Numbers.version)


def test_words_beside_other_states_are_one_sentence(tmp_path):
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        write_shard(some_tree(seed), tmp_path / str(seed))
    (tmp_path / "1" / "0000.said.pq").write_bytes((tmp_path / "2" / "0000.said.pq").read_bytes())
    with pytest.raises(WorldError, match="0000.states.* does not belong to the files beside it"):
        load_tree(tmp_path / "1", Numbers.version)


def test_words_lead_where_they_say():
    tree = some_tree()
    digest, (state, said) = next((digest, item) for digest, held in tree.said.items() for item in held.items())
    for wrong in (replace(said, child=0), replace(said, child=len(tree)), replace(said, action="jump")):
        with pytest.raises(WorldError, match="doesn't lead from state"): tree.say(state, digest, wrong)
    with pytest.raises(WorldError, match="doesn't lead from state -1"): tree.say(-1, digest, said)


@pytest.mark.parametrize("field, value", [
    (0, -2), (0, True), (0, "0"), (1, None), (2, 7), (3, "0.5"), (3, 7), (3, float("nan")), (4, "False"), (4, 0)])
def test_a_journals_state_of_another_kind_is_one_sentence(tmp_path, field, value):
    harmed_line(tmp_path, 5, field, value)


@pytest.mark.parametrize("field, value", [
    (0, -1), (1, 5), (2, "jump"), (3, "12"), (3, None), (5, -1), (7, "much"), (8, 0), (8, -1), (8, 10**6)])
def test_a_journals_words_of_another_kind_are_one_sentence(tmp_path, field, value):
    harmed_line(tmp_path, 9, field, value)


def harmed_line(home, width, field, value):
    "Change a field of the last line of so many, and read the journal."
    world = world_of(journals=home)
    roll(world, Given(world, drawn(30, 1)), np.arange(30) % 5, RIGHTS)
    file = next(home.iterdir())
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    row = [row for row in rows if len(row) == width][-1]
    row[field] = value
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(WorldError, match=r"journal-.*jsonl is damaged .*delete it"): merged(home)


def test_a_journal_without_a_whole_line_is_of_no_version(tmp_path):
    for text in ("", '["toy'):
        (tmp_path / "journal-1-a.jsonl").write_text(text)
        assert not take_journal(Tree(Numbers.version), tmp_path / "journal-1-a.jsonl")


def test_two_drafts_of_one_mind_read_one_after_the_other():
    class Both(SingleModel):
        def choose(self, view):
            for model in (0, 1): view.draft(model)
            return super().choose(view)

    minds = {"add": "one", "double": "one"}
    world = world_of(minds=minds)
    played = roll(world, Both(3, "sing"), [4], RIGHTS)
    first = played.moves[played.moves["turn"] == 0]
    assert first["model"].tolist() == [0, 1, 3] and first["acted"].tolist() == [False, False, True]
    assert cached_tokens(world, played)[first.index].tolist() == [0, 3, 0], "all but the last token"


def test_a_tree_that_does_not_begin_as_the_shards_is_not_written(tmp_path):
    write_shard(some_tree(1), tmp_path)
    with pytest.raises(WorldError, match="does not begin with the shards"): write_shard(some_tree(2), tmp_path)


def test_a_flipped_bit_is_seen(tmp_path):
    tree = some_tree()
    write_shard(tree, tmp_path)
    rng, silent = np.random.default_rng(0), 0
    for half in ("states", "said"):
        file = tmp_path / f"0000.{half}.pq"
        whole = file.read_bytes()
        for at in rng.integers(0, len(whole), 60):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1:])
            try: found = load_tree(tmp_path, Numbers.version)
            except WorldError: continue
            silent += (found.states, found.said) != (tree.states, tree.said)
        file.write_bytes(whole)
    assert not silent


def test_encoders_of_other_parts_are_refused(demo_world):
    class Other(HistoryEncoder):
        parts = ("whole",)
    with pytest.raises(ValueError, match="Other has other parts"):
        world_of(history=Other(demo_world.encoder.encoder)).play([0], RIGHTS).view().history()


def test_a_beginning_reports_no_error():
    tasks = TASKS.assign(task_id=[t.replace("reach", "No known action matches that input") for t in TASKS["task_id"]])

    class Quoting(Numbers):
        def start(self, place, task_id):
            return replace(super().start(place, task_id), task="No known action matches that input.")

    world = world_of(tasks=tasks)
    world.live.environment = Quoting()
    assert (world.play([0, 1], RIGHTS).view().error == 0).all()


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import test_tree as t
tree = t.merged({folder!r})
class Slow(t.Numbers):
    def step(self, place, action):
        time.sleep(.005)
        return super().step(place, action)
world = t.world_of(tree, journals={folder!r})
world.live.environment = Slow()
t.roll(world, t.Given(world, t.drawn(60, 5)), t.np.arange(60) % 5, t.RIGHTS)
print("whole")
"""


def test_after_kill_9_the_next_run_goes_on(tmp_path):
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path))
    child = subprocess.Popen([sys.executable, "-c", code], env=env)
    before = time.monotonic()
    while not any(file.stat().st_size > 2_000 for file in tmp_path.glob("*.jsonl")) and child.poll() is None:
        assert time.monotonic() - before < 120
        time.sleep(.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    held = len(merged(tmp_path))
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.split() == ["whole"], out.stderr
    whole = world_of()
    roll(whole, Given(whole, drawn(60, 5)), np.arange(60) % 5, RIGHTS)
    assert 0 < held < len(whole.tree) and as_paths(merged(tmp_path)) == as_paths(whole.tree)


def test_a_journal_of_another_version_is_left_alone(tmp_path):
    (tmp_path / "journal-x.jsonl").write_text(json.dumps(["numbers 0"]) + '\n[-1, "reach/3", "x", 0.0, false]\n')
    assert len(merged(tmp_path)) == 0


def test_ways_that_lead_to_one_text_are_two_states():
    tree = Tree("v")
    root = tree.add(-1, "t", opening(Conversation("a", "b", "c")))
    same = Outcome("Nothing happens.", 0.0, False)
    one, two = tree.add(root, "x", same), tree.add(root, "y", same)
    tree.say(one, "m", Said("z", 1, 0, 1, 1, 1.0, tree.add(one, "z", same)))
    assert one != two and tree.find(two, "z") == -1 and trees.conversation(tree, one).steps == [("x", same.observation)]
