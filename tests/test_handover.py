"What hand-overs bring, against plain loops and against chance."
import numpy as np
import pandas as pd
import pytest
from test_tree import WORDS, Given, world_of

from mtrouter_nb.analyses.handover import (FIRST, ONCE, PER_TYPE, SWITCHED, action_rows, both_means, choice_rows,
                                           cross_fitted, episode_rows, episode_table, kind_table, mean_table,
                                           paired_table, restarted, rows_of, type_table, type_weights)
from mtrouter_nb.multi_turn.collect import FIFTY, alone, at_random, switched_once
from mtrouter_nb.multi_turn.rollout import roll
from mtrouter_nb.multi_turn.routers import SingleModel
from mtrouter_nb.multi_turn.rules import AtRepeat

ADD, DOUBLE, BACK, SING = range(4)


@pytest.fixture(scope="module")
def world(): return world_of()


@pytest.fixture(scope="module")
def tasks(world): return world.tasks["task_id"].tolist()


def test_scores_fatal_endings_and_what_is_missing(world, tasks):
    rows = rows_of(world, alone(WORDS), tasks).set_index(["router", "task_id"])
    assert rows.loc[("double", "reach/9"), ["score", "clipped", "fatal", "success"]].tolist() == [0, 0, 1, 0]
    assert rows.loc[("double", "reach/8"), ["score", "clipped", "fatal", "success"]].tolist() == [1, 1, 0, 1]
    sung = rows.loc[("sing", "reach/40")]
    assert sung["score"] == (1 + 1 / 40) / 2 and np.isclose(sung["clipped"], 1 / 40) and sung["n_turns"] == 50
    lost = episode_rows(recorded := world_of(live=False), roll(recorded, SingleModel(0, "add"), [0], FIFTY))
    numbers = ["score", "clipped", "success", "fatal", "n_turns", "switches", "cost_usd", "cached_usd"]
    assert lost[numbers].isna().all(axis=None)
    table = mean_table(pd.concat([rows.reset_index(), lost.assign(seed=0, router="sing")]))
    assert table.set_index("router")["missing"].to_dict() == dict(add=0, double=0, back=0, sing=1)


def test_an_episode_reads_as_it_was_played(world, tasks):
    played = roll(world, SingleModel(ADD, "add"), np.arange(len(tasks)), FIFTY)
    for row, episode in played.episodes.iterrows():
        table = episode_table(world, played, row)
        assert len(table) == episode["n_turns"] and set(table["model"]) == {"add"} == set(table["action"])
        assert np.isclose(table["usd"].iloc[-1], episode["cost_usd"]) and table["score"].iloc[-1] == episode["score"]
        assert table["came_back"].iloc[0] == "You are at 2."


def test_differences_are_of_tasks_that_both_have(world, tasks):
    rows = rows_of(world, [*alone(WORDS[:2]), *at_random(3)], tasks)
    rows.loc[(rows["router"] == "add") & (rows["task_id"] == tasks[1]), "score"] = np.nan
    table = paired_table(rows, "double").set_index("router")
    mean = rows.groupby(["router", "task_id"])[["score", "cost_usd"]].mean()
    left = [task for task in tasks if task != tasks[1]]
    ours, theirs = mean.loc["add"].loc[left], mean.loc["double"].loc[left]
    assert table["n"].to_dict() == dict(add=len(left), double=len(tasks), Random=len(tasks))
    assert np.isclose(table.loc["add", "score_micro"], (ours["score"] - theirs["score"]).mean())
    assert np.isclose(table.loc["add", "usd"], ours["cost_usd"].sum() / theirs["cost_usd"].sum())
    assert (table["score_micro_low"] <= table["score_micro"]).all() and (table["usd"] <= table["usd_high"]).all()
    with pytest.raises(ValueError, match="played nothing"): paired_table(rows, "nobody")


def test_what_turns_earn_is_what_the_score_rises_by(world, tasks):
    played = roll(world, SingleModel(ADD, "add"), np.arange(len(tasks)), FIFTY)
    actions = action_rows(world, played)
    assert len(actions) == played.episodes["n_turns"].sum() and set(actions["model"]) == {"add"}
    raw = 2 * played.episodes.set_index("task_id")["score"] - 1
    assert np.allclose(actions.groupby("task_id")["earned"].sum()[raw.index], raw), "adding never loses"
    sung = action_rows(world, roll(world, SingleModel(SING, "sing"), np.arange(len(tasks)), FIFTY))
    both = pd.concat([actions, sung])
    both["kind"] = np.where(np.arange(len(both)) % 3 == 0, "a", "b")
    table = kind_table(both).set_index(["router", "kind"])
    for (router, kind), row in table.iterrows():
        mine = both[both["router"] == router]
        these = mine[mine["kind"] == kind]
        assert row["share"] == len(these) / len(mine) and np.isclose(row["earned"], these["earned"].sum() / len(tasks))
        assert row["understood"] == these["understood"].mean()


def test_a_restart_is_two_episodes_one_after_the_other(world, tasks):
    rows = restarted(world, SingleModel(BACK, "back"), SingleModel(ADD, "add"), tasks, "again")
    tried, added = (roll(world, router, np.arange(5), FIFTY).episodes for router in (
        AtRepeat(SingleModel(BACK, "b"), -1), SingleModel(ADD, "add")))
    assert rows["n_turns"].tolist() == [2 + min(48, goal - 1) for goal in (3, 8, 9, 40, 77)]
    assert np.allclose(rows["score"], [1, 1, 1, 1, (49 / 77 + 1) / 2]) and (rows["switches"] == 1).all()
    assert np.allclose(rows["cost_usd"][:4], (tried["cost_usd"] + added["cost_usd"])[:4])
    assert rows["cost_usd"][4] < tried["cost_usd"][4] + added["cost_usd"][4]
    assert rows["router"].unique().tolist() == ["again"]
    never = restarted(world, Given(world, [WORDS[:2] * 25] * 5), SingleModel(ADD, "add"), tasks[:3], "x")
    assert (never["n_turns"] <= 4).all(), "who never repeats is never given up"


def test_a_restart_at_random_draws_for_its_own_tasks(world, tasks):
    again = at_random(1)[0][0]
    rows = restarted(world, SingleModel(BACK, "back"), again, tasks, "again")
    each = [restarted(world, SingleModel(BACK, "back"), again, [task], "again") for task in tasks]
    pd.testing.assert_frame_equal(rows, pd.concat(each, ignore_index=True))


def test_types_are_judged_on_tasks_that_all_models_hold():
    rows = pd.DataFrame(dict(task_id=list("abcd") * 2, domain=["x"] * 4 * 2, router=["p"] * 4 + ["q"] * 4,
                             score=[1, 1, .5, .5, 1, 1, np.nan, np.nan]))
    row = type_table(rows, pd.Series(dict(x=1.0))).loc["x"]
    assert (row["p"], row["q"], row["n"], row["missing"], row["spread"], row["primary"]) == (1, 1, 2, 2, 0, False)
    none = type_table(rows.assign(score=np.nan), pd.Series(dict(x=1.0))).loc["x"]
    assert none["n"] == 0 and none["missing"] == 4 and not none["primary"]
    with pytest.raises(ValueError, match="x has no walks"): type_table(rows, pd.Series(dict(y=1.0)))
    for low, high in ((.5, .55), (.45, .5)):
        close = pd.DataFrame(dict(task_id=["a", "a"], domain="x", router=["p", "q"], score=[low, high]))
        assert not type_table(close, pd.Series(dict(x=1.0)))["primary"].any(), "not above .05"


def test_a_missing_score_is_no_best_one():
    with pytest.raises(ValueError, match="a score is missing"):
        cross_fitted(pd.DataFrame(dict(a=[.9, .9], b=[.1, np.nan])), pd.Series(["x", "x"]))


def test_of_equal_choices_the_one_that_is_cheaper_on_these_tasks_counts():
    alone = pd.DataFrame(dict(task_id=list("abcabc"), domain="x", router=["p"] * 3 + ["q"] * 3,
                              score=[.5, .5, .5, .5, .9, np.nan], cost_usd=[1, 1, 10, 2, 2, 2]))
    once = pd.DataFrame(dict(task_id=list("ab"), domain="x", router="p, then q", score=0., cost_usd=3.))
    rows = choice_rows(alone, once).set_index("task_id")
    assert rows[PER_TYPE].to_dict() == dict(a=.5, b=.5), "on a both are equal, and p costs less there and on b"
    with pytest.raises(ValueError, match="no task is held whole"): choice_rows(alone, once.assign(score=np.nan))


def test_draws_hang_on_tasks_alone(world, tasks):
    one = rows_of(world, at_random(2), tasks).set_index(["task_id", "seed"])
    other = rows_of(world, at_random(2), tasks[::-1]).set_index(["task_id", "seed"]).loc[one.index]
    pd.testing.assert_frame_equal(one, other)


def test_means_and_intervals_against_plain_ones():
    rng = np.random.default_rng(0)
    domain = pd.Series(["a"] * 30 + ["b"] * 5 + ["c"])
    value = pd.Series(rng.random(36))
    found = both_means(value, domain, "v")
    assert np.isclose(found["v_micro"], value.mean())
    assert np.isclose(found["v_macro"], value.groupby(domain).mean().mean())
    drawn = [np.mean([value[rng.choice(np.flatnonzero(domain == d), (domain == d).sum())].mean() for d in "abc"])
             for _ in range(4000)]
    assert np.allclose([found["v_macro_low"], found["v_macro_high"]], np.percentile(drawn, [2.5, 97.5]), atol=.01)
    weights = type_weights(domain.to_numpy(object))
    assert all((weights[:, domain == d].sum(1) == (domain == d).sum()).all() for d in "abc")


def test_means_do_not_hang_on_the_order_of_rows(world, tasks):
    rows = rows_of(world, alone(WORDS), tasks)
    mixed = rows.sample(frac=1, random_state=0)
    a, b = (mean_table(t).set_index("router").sort_index() for t in (rows, mixed))
    pd.testing.assert_frame_equal(a.filter(regex="^(?!.*(low|high)$)"), b.filter(regex="^(?!.*(low|high)$)"))


def plainly_fitted(scores, domain, halvings=400, seed=1):
    "The same by another way: halves drawn anew, choices by plain loops."
    rng, total = np.random.default_rng(seed), {task: [] for task in scores.index}
    for _ in range(halvings):
        sides = {0: [], 1: []}
        for name in sorted(set(domain)):
            mine = [*rng.permutation(domain.index[domain == name])]
            flip = rng.integers(2)
            for i, task in enumerate(mine): sides[(i + flip) % 2].append(task)
        for side in (0, 1):
            for task in sides[side]:
                like = [other for other in sides[1 - side] if domain[other] == domain[task]] or sides[1 - side]
                total[task].append(scores.loc[task, scores.loc[like].mean().idxmax()])
    return pd.Series({task: np.mean(values) for task, values in total.items()})


def test_cross_fitting_against_plain_loops():
    rng = np.random.default_rng(3)
    names = [f"t{i}" for i in range(17)]
    domain = pd.Series(["x"] * 8 + ["y"] * 8 + ["z"], names)
    scores = pd.DataFrame(rng.random((17, 3)), names) + (domain == "x").to_numpy()[:, None] * [0, .4, 0]
    slow, fast = plainly_fitted(scores, domain), cross_fitted(scores, domain, halvings=400)
    assert (slow - fast).abs().max() < .12 and abs(slow.mean() - fast.mean()) < .015
    mixed = scores.sample(frac=1, random_state=1)
    assert np.allclose(cross_fitted(mixed, domain)[scores.index], cross_fitted(scores, domain))


def test_hand_overs_where_they_are_worth_something_and_where_not(world):
    n = 80  # in type x a hand-over is worth .3, in y nothing is worth anything
    ids, rng = [f"t{i}" for i in range(n)], np.random.default_rng(0)
    domain = np.repeat(["x", "y"], n // 2)

    def table(names, worth):
        return pd.concat([pd.DataFrame(dict(task_id=ids, domain=domain, router=name, cost_usd=price,
                                            score=rng.random(n) * .5 + worth * (domain == "x")))
                          for price, name in enumerate(names)])

    rows = choice_rows(table("ab", 0), table(["ab5", "ba5"], .3))
    gain = (rows[ONCE] - rows[PER_TYPE]).groupby(rows["domain"]).mean()
    assert abs(gain["x"] - .3) < .06 and abs(gain["y"]) < .06
    assert (rows[SWITCHED] >= rows[FIRST]).all() and (rows[FIRST] >= rows[PER_TYPE] - 1e-12).all()


def test_what_is_not_whole_in_both_is_left_out(world, tasks):
    single, switched = rows_of(world, alone(WORDS), tasks), rows_of(world, switched_once(WORDS, (2,), None), tasks)
    single.loc[(single["task_id"] == tasks[0]) & (single["router"] == "add"), "score"] = np.nan
    assert choice_rows(single, switched)["task_id"].tolist() == sorted(tasks[1:])


def test_primary_types_by_hand():
    rows = pd.DataFrame(dict(task_id=["x/1", "x/2", "y/1", "w/1"] * 2, domain=["x", "x", "y", "w"] * 2,
                             router=["p"] * 4 + ["q"] * 4, score=[.5, .6, .2, .5, .5, .51, .9, .54]))
    table = type_table(rows, pd.Series(dict(x=.9, y=.89, w=1.)))
    assert table["primary"].to_dict() == dict(w=False, x=False, y=False)
    assert np.isclose(table.loc["x", "spread"], .045) and table.loc["x", "n"] == 2
    assert type_table(rows, pd.Series(dict(x=.9, y=.9, w=1.)))["primary"].to_dict() == dict(w=False, x=False, y=True)


