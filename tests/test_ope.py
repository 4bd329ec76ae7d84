"Off-policy evaluation against enumerated truths, plain loops, and routers that really played."
import itertools
from dataclasses import replace

import numpy as np
import pytest
from test_tree import world_of

from mtrouter_nb.multi_turn import ope
from mtrouter_nb.multi_turn.replay import Rights
from mtrouter_nb.multi_turn.rollout import roll
from mtrouter_nb.multi_turn.routers import RandomRouter, SingleModel
from mtrouter_nb.multi_turn.scienceworld import normalised


def episodes(n, rng, models=3, longest=6, target=None):
    "Random episodes of a chain: reward hangs on the state, the model and the turn; `state` is the number of rises."
    rows = []
    for episode in range(n):
        state = 0
        for turn in range(rng.integers(1, longest + 1)):
            choice = rng.integers(models)
            reward = float(rng.random() < .1 + .2 * (choice == state % models))
            rows.append((episode, choice, state, turn, reward))
            state += int(reward)
    episode, choice, state, turn, reward = map(np.array, zip(*rows))
    p = np.full((len(rows), models), 1 / models) if target is None else target(state, turn)
    return state, ope.Decisions(episode, choice, np.full(len(rows), 1 / models), p, reward.astype(float),
                                np.arange(n) // 2, np.full(n, .5))


def greedy(state, turn, soft=.4):
    "Mostly the model whose number the state has."
    return (1 - soft) * np.eye(3)[state % 3] + soft / 3


@pytest.fixture(params=range(3))
def chain(request): return episodes(60, np.random.default_rng(request.param), target=greedy)


def test_weights_by_a_plain_loop(chain):
    _, d = chain
    total, value, mass = 0.0, np.zeros(6), np.zeros(6)
    for episode in range(60):
        weight, last = 1.0, 0
        for row in np.flatnonzero(d.episode == episode):
            weight *= d.target[row, d.choice[row]] / d.logged[row]
            total += weight * d.reward[row]
            value[last] += weight * d.reward[row]
            mass[last] += weight
            last += 1
        mass[last:] += weight
    assert np.isclose(ope.per_decision(d).value, .5 + total / 60)
    assert np.isclose(ope.self_normalised(d).value, .5 + (value / mass).sum())


def test_effective_size_and_largest_weight(chain):
    _, d = chain
    last = np.ones(60)
    np.multiply.at(last, d.episode, d.target[np.arange(len(d.choice)), d.choice] / d.logged)
    found = ope.per_decision(d)
    assert np.isclose(found.effective, last.sum()**2 / (last**2).sum())
    assert np.isclose(found.largest, last.max() / last.sum())
    assert found.matched == 1


def test_the_logging_policy_is_worth_what_was_logged():
    _, d = episodes(40, np.random.default_rng(5))
    mean = .5 + d.reward.sum() / 40
    for estimate in (ope.per_decision(d), ope.self_normalised(d)):
        assert np.isclose(estimate.value, mean) and estimate.effective == 40



def pays(state, choice): return float(choice == (state + 1) % 3)


def whole(policy, turns=3):
    "Every way of `turns` choices of three models, once each, as a uniform log has it; and what `policy` is worth."
    rows, worth = [], 0.0
    for number, way in enumerate(itertools.product(range(3), repeat=turns)):
        chance, earned, state = 1.0, 0.0, 0
        for turn, choice in enumerate(way):
            chance *= policy(np.array([state]), turn)[0, choice]
            rows.append((number, choice, state, turn, pays(state, choice)))
            earned, state = earned + pays(state, choice), choice
        worth += chance * earned
    episode, choice, state, turn, reward = map(np.array, zip(*rows))
    target = np.concatenate([policy(state[[i]], turn[i]) for i in range(len(rows))])
    n = 3**turns
    d = ope.Decisions(episode, choice, np.full(len(rows), 1 / 3), target, reward, np.arange(n), np.zeros(n))
    return d, np.eye(9)[3 * turn + state], worth


@pytest.mark.parametrize("soft", [0.0, .2, .7])
def test_of_every_way_once_all_estimates_are_the_truth(soft):
    d, x, truth = whole(lambda state, turn: greedy(state, turn, soft))
    assert np.isclose(ope.per_decision(d).value, truth) and np.isclose(ope.self_normalised(d).value, truth)
    assert np.isclose(ope.doubly_robust(d, x @ np.random.default_rng(0).normal(size=(9, 3))).value, truth)
    values = ope.fitted_q(d, x, folds=3, strength=1e-6)
    assert np.isclose(ope.direct(d, values).value, truth, atol=1e-4), "each state is told: its value is exact"


def test_a_chance_of_agreement_is_one_in_n_to_the_k():
    d, *_ = whole(lambda state, turn: np.eye(3)[(state + 1) % 3])
    found = ope.per_decision(d)
    assert found.matched == 3.0**-3 and found.effective == 1 and found.largest == 1 and np.isclose(found.value, 3)


def test_values_of_a_task_are_learned_from_other_tasks(chain):
    state, d = chain
    x, changed = np.eye(8)[np.minimum(state, 7)], d.reward.copy()
    mine = d.task[d.episode] == 3
    changed[mine] += 10
    other = ope.Decisions(d.episode, d.choice, d.logged, d.target, changed, d.task, d.begun)
    assert np.array_equal(ope.fitted_q(d, x)[mine], ope.fitted_q(other, x)[mine])


def test_a_permuted_pool_and_permuted_episodes_change_nothing(chain):
    state, d = chain
    x, order = np.eye(8)[np.minimum(state, 7)], np.array([2, 0, 1])
    target = d.target[:, order.argsort()]
    renamed = ope.Decisions(d.episode, order[d.choice], d.logged, target, d.reward, d.task, d.begun)
    back = np.concatenate([np.flatnonzero(d.episode == e) for e in reversed(range(60))])
    turned = ope.Decisions(59 - d.episode[back], d.choice[back], d.logged[back], d.target[back], d.reward[back],
                           d.task[::-1], d.begun[::-1])
    first, second, third = (ope.estimates(each, x[rows], 50).set_index("estimator")["value"]
                            for each, rows in ((d, slice(None)), (renamed, slice(None)), (turned, back)))
    assert np.allclose(first, second) and np.allclose(first, third)


def test_intervals_are_those_of_drawn_tasks(chain):
    _, d = chain
    found, rng, values = ope.self_normalised(d, 4000), np.random.default_rng(9), []
    rows_of = {task: np.flatnonzero(d.task[d.episode] == task) for task in np.unique(d.task)}
    kept, reward, by_task = d.weight, d.by_turn(d.reward), {task: np.flatnonzero(d.task == task) for task in rows_of}
    for _ in range(2000):
        at = np.concatenate([by_task[task] for task in rng.choice([*by_task], len(by_task))])
        values.append(d.begun[at].mean() + ((kept[at] * reward[at]).sum(0) / kept[at].sum(0)).sum())
    assert np.allclose([found.low, found.high], np.percentile(values, [2.5, 97.5]), atol=.06)


@pytest.mark.parametrize("change, sentence", [
    (dict(logged=0.0), "logged probability"), (dict(logged=np.nan), "logged probability"),
    (dict(target=.9), "add up to 1"), (dict(reward=np.nan), "reward is missing"), (dict(episode=-1), "episode")])
def test_what_does_not_fit_is_one_sentence(chain, change, sentence):
    _, d = chain
    held = {name: getattr(d, name).copy() for name in ope.Decisions.__dataclass_fields__}
    (name, value), = change.items()
    held[name][3] = value
    with pytest.raises(ValueError, match=sentence): ope.Decisions(**held)


class Next:
    "The model after the one that acted last."
    name = "Next"

    def start(self, n, seed): pass
    def choose(self, view): return (view.current + 1) % 4


def test_a_router_is_asked_at_the_logged_decisions():
    world = world_of()
    rights = Rights("few", 6, 1_000)
    played = roll(world, RandomRouter(), np.arange(len(world.tasks)), rights, 3)
    assert np.array_equal(ope.would_choose(world, RandomRouter(), played, rights, 3), played.moves["model"])
    assert (ope.would_choose(world, SingleModel(1, "one"), played, rights) == 1).all()
    moves = played.moves
    before = moves.groupby("row")["model"].shift(fill_value=-1)
    assert np.array_equal(ope.would_choose(world, Next(), played, rights), (before + 1) % 4)
    begun = replace(played, moves=moves[moves["turn"] < 2])
    assert np.array_equal(ope.would_choose(world, Next(), begun, rights), ((before + 1) % 4)[moves["turn"] < 2])
    with pytest.raises(ValueError, match="come out otherwise"):
        ope.would_choose(world, Next(), played, replace(rights, turns=3))


def test_rollouts_become_decisions_that_add_up():
    world = world_of()
    rights = Rights("few", 6, 1_000)
    played = roll(world, RandomRouter(), np.repeat(np.arange(len(world.tasks)), 5), rights, 3)
    child = world.of.child[played.moves["state"], played.moves["model"]]
    score, begun = normalised(world.of.score[child]), np.full(len(played.episodes), .5)
    m = len(world.pool)
    d = ope.decisions_of(played, np.full((len(played.moves), m), 1 / m), score, begun)
    known = played.episodes[played.episodes["score"].notna() & (played.episodes["n_turns"] > 0)]
    assert len(d.task) == len(known) and np.isclose(ope.per_decision(d).value, known["score"].mean())
    assert np.isclose(ope.self_normalised(d).value, known["score"].mean())


def test_a_soft_router_keeps_the_rest_for_all():
    p = ope.softened(np.array([0, 2]), 3, .3)
    assert np.allclose(p, [[.8, .1, .1], [.1, .1, .8]])
    with pytest.raises(ValueError, match="stops"): ope.softened(np.array([0, -1]), 3, .3)


def test_of_one_turn_the_weights_are_those_of_vw_estimators():
    rng, n = np.random.default_rng(12), 200
    logged, target, reward = rng.uniform(.1, .9, n), rng.uniform(0, 1, n), rng.uniform(-1, 1, n)
    each, p = np.arange(n), np.c_[target, 1 - target]
    d = ope.Decisions(each, np.zeros(n, int), logged, p, reward, each, np.zeros(n))
    # vw-estimators 0.2.2, bandits.ips and bandits.snips, fed with these rows one by one
    assert np.isclose(ope.per_decision(d).value, -0.025719168519455358, rtol=1e-12)
    assert np.isclose(ope.self_normalised(d).value, -0.01740297364368072, rtol=1e-12)
