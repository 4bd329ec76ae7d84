"The committed tree: walked without models, and acted again where they are installed."
import pytest

from mtrouter_nb.analyses.handover import rows_of, type_table
from mtrouter_nb.multi_turn.collect import (COLLECTIONS, FIFTY, POOLS, PRIMARY, agent_of, gold_share, members,
                                            shard_folder, tree_world)
from mtrouter_nb.multi_turn.local_models import lacking
from mtrouter_nb.multi_turn.rollout import roll
from mtrouter_nb.multi_turn.routers import SingleModel
from mtrouter_nb.multi_turn.scienceworld import VERSION, ScienceWorld
from mtrouter_nb.multi_turn.tree import conversation, load_tree, shards
from mtrouter_nb.multi_turn.tree_world import TREE_ENDS

pytestmark = pytest.mark.skipif(not shards(shard_folder()), reason="no tree is committed")
SURE = 1e-3  # a lead, in logits, that no machine and no batch turns round


@pytest.fixture(scope="module")
def tree(): return load_tree(shard_folder(), VERSION)


def test_fifty_episodes_are_walked_without_models(tree):
    world = tree_world(POOLS["leader"], tree)
    begun = [i for i, task in enumerate(world.tasks["task_id"]) if tree.find(-1, task) >= 0]
    whole = 0
    for m, name in enumerate(POOLS["leader"]):
        episodes = roll(world, SingleModel(m, name), begun[:50], FIFTY).episodes
        played = episodes[episodes["reason"] != TREE_ENDS]
        assert played["score"].between(0, 1).all() and (played["cost_usd"] > 0).all()
        whole += len(played)
    assert whole >= 50


def test_primary_types_are_those_of_all_validation_runs(tree):
    plan = COLLECTIONS["leader-validation-alone"]
    rows = rows_of(tree_world(plan.models, tree), plan.routers, [task for batch in plan.batches() for task in batch])
    assert rows["score"].notna().all()
    table = type_table(rows, gold_share())
    assert {*table.index[table["primary"]]} == {*PRIMARY}


def walk(tree, task, digest):
    "The states of the episode in which the agent of `digest` acts alone, up to where it ends."
    state, said = tree.find(-1, task), tree.said.get(digest, {})
    while state in said and not tree.outcome(state).done:
        yield state, said[state]
        state = said[state].child


@pytest.mark.skipif(bool(lacking()), reason=lacking())
@pytest.mark.parametrize("name", ["sw-4-all", "sw-8-all"])
def test_a_committed_episode_is_acted_and_answered_again(tree, name, record_property):
    agent, digest = agent_of(name), members([name])[0].digest
    tasks = [tree.states["action"][s] for s in range(len(tree)) if tree.depth[s] == 0]
    task = max(tasks, key=lambda task: len({said.action for _, said in walk(tree, task, digest)}))
    steps, kept, unsure = [*walk(tree, task, digest)], agent.start(), []
    with ScienceWorld() as simulator:
        assert simulator.start(0, task) == conversation(tree, steps[0][0])
        for state, said in steps:
            action = agent.act([kept], [conversation(tree, state)])[0]
            if action.text != said.action: unsure.append((state, said.margin))
            assert (action.context, action.first, action.head) == (said.context, said.first, said.head)
            assert simulator.step(0, said.action) == tree.outcome(said.child), "the recorded action stands"
    record_property("otherwise", unsure)
    assert all(margin < SURE for _, margin in unsure) and len(steps) > 3
