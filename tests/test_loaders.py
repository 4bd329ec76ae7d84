"""Input from elsewhere, changed in one place: it is read right or refused by name, and nothing changes in silence."""
import json
import warnings

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.core.values import BOOLEAN, COUNT, NUMBER, BadValue
from mtrouter_nb.data.demo import load_demo
from mtrouter_nb.data.mint import read_mint_upstream
from mtrouter_nb.data.outcomes import OutcomeError, from_frame
from mtrouter_nb.data.pool import ModelPool, demo_pool, mint_pool
from mtrouter_nb.data.bfcl import read_bfcl_upstream
from mtrouter_nb.data.mcpmark import read_mcpmark_upstream
from mtrouter_nb.data.sources import TurnSource
from mtrouter_nb.data.turns import (GENERAL_RULES, MINT_RULES, RULES, ErrorRule, LogError, episode_costs,
                                    error_severity, load_turns, save_turns, turn_costs)
from mtrouter_nb.data.zeroeval import read_zeroeval_upstream
from mtrouter_nb.multi_turn.replay import MATCHED, ReplayWorld
from mtrouter_nb.multi_turn.rollout import random_trajectories

# --- one value --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, value, read", [
    (BOOLEAN, "0", False), (BOOLEAN, "false", False), (BOOLEAN, "No", False), (BOOLEAN, "1", True), (BOOLEAN, 1., True),
    (COUNT, "12", 12), (COUNT, 2., 2), (NUMBER, "1e-3", .001), (NUMBER, 3, 3.)])
def test_what_is_meant_is_read(kind, value, read):
    assert kind(value) == read and type(kind(value)) is type(read)
    assert kind.column(pd.Series([value, value], dtype=object)).tolist() == [read, read]


@pytest.mark.parametrize("kind, value", [
    *((BOOLEAN, v) for v in (2, "maybe", "", [1], -1)), *((COUNT, v) for v in (1.5, -1, True, "x", [1], np.inf)),
    *((NUMBER, v) for v in (np.inf, "inf", "nan", "false", False, [1], {}, -1))])
def test_what_is_not_is_refused_alone_and_in_a_column(kind, value):
    for read in (lambda: kind(value), lambda: kind.column(pd.Series([1, value], dtype=object))):
        with pytest.raises(BadValue) as raised: read()
        assert repr(value) in str(raised.value) or str(value) in str(raised.value)


# --- one file of turns ------------------------------------------------------------------------------------------------

ROWS = [dict(task_id="t1", model="a", turn=0, observation="Say 1", action="2", input_tokens=100, output_tokens=10,
             success=False, score=0.0, domain="d"),
        dict(task_id="t1", model="b", turn=0, observation="Say 1", action="1", input_tokens=100, output_tokens=10,
             success=True, score=1.0, domain="d"),
        dict(task_id="t2", model="a", turn=0, observation="Say 2", action="x", input_tokens=100, output_tokens=10,
             success=False, score=.5, domain="e"),
        dict(task_id="t2", model="a", turn=1, observation="no", action="2", input_tokens=200, output_tokens=20,
             success=True, score=.5, domain="e")]
PRICES = ModelPool(pd.DataFrame(dict(input_usd_per_mtok=[10., 1.], output_usd_per_mtok=[30., 1.]), index=["a", "b"]))


def write(rows, folder, kind="jsonl"):
    path = folder / f"runs.{kind}"
    if kind == "parquet": pd.DataFrame(rows).to_parquet(path)
    else: path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def changed(row, **values): return [one | (values if i == row else {}) for i, one in enumerate(ROWS)]


@pytest.mark.parametrize("spell", [lambda v: v, int, float, lambda v: str(int(v)), lambda v: str(v).lower(),
                                   lambda v: "yes" if v else "no"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("scored", [True, False])
def test_success_is_read_as_it_is_meant(tmp_path, spell, kind, scored):
    rows = [row | dict(success=spell(row["success"])) for row in ROWS]
    if not scored: rows = [{k: v for k, v in row.items() if k != "score"} for row in rows]
    log = load_turns(write(rows, tmp_path, kind), PRICES)
    assert dict(zip(log.episodes.episode_id, log.episodes.success)) == {"a|t1": False, "b|t1": True, "a|t2": True}
    assert log.episodes.score.tolist() == ([0, 1, .5] if scored else [0, 1, 1])


@pytest.mark.parametrize("row, values, sentence", [
    (1, dict(success="maybe"), "'success', row 2: 'maybe' is no true or false"),
    (1, dict(success=False), "'success', row 2: False contradicts the score of its row"),
    (0, dict(success="yes"), "'success', row 1: True contradicts the score of its row"),
    (2, dict(tokens_estimated="perhaps"), "'tokens_estimated', row 3: 'perhaps' is no true or false"),
    (1, dict(score="false"), "'score', row 2: 'false' is no number"),
    (1, dict(score=[1]), r"'score', row 2: \[1\] is no number"),
    (1, dict(score="inf"), "'score', row 2: 'inf' is no number"),
    (1, dict(score=1e400), "'score', row 2: inf is no number"),
    (1, dict(input_tokens="many"), "'input_tokens', row 2: 'many' is no whole number"),
    (1, dict(input_tokens=True), "'input_tokens', row 2: True is no whole number"),
    (1, dict(cost_usd=-.1), "'cost_usd', row 2: -0.1 is negative"),
    (1, dict(cost_usd="free"), "'cost_usd', row 2: 'free' is no number"),
    (1, dict(cached_tokens=101), "'cached_tokens', row 2: 101 is more than the row's input_tokens"),
    (1, dict(domain="f"), "'domain', row 2: 'f' is another than in an earlier row of the same task_id"),
    (1, dict(observation="Say 3"), "'prompt', row 2: 'Say 3' is another than in an earlier row of the same task_id"),
    (1, dict(task_id=1.5), "'task_id', row 2: 1.5 is no name"), (1, dict(model=""), "'model', row 2: '' is no name"),
    (1, dict(model="c"), "'model', row 2: 'c' is not in the pool"),
    (3, dict(task_id="t1", episode_id="a|t2"),
     "'task_id', row 4: 't1' is another than in an earlier row of the same epis"),
])
def test_a_row_that_is_wrong_is_named(tmp_path, row, values, sentence):
    rows = changed(row, **values)
    if "episode_id" in values: rows = [{"episode_id": f"{r['model']}|{r['task_id']}"} | r for r in rows]
    with pytest.raises(LogError, match=f"^runs.jsonl, column {sentence}.*; .*\\.$"):
        load_turns(write(rows, tmp_path), PRICES)


def test_either_of_score_and_success_is_enough(tmp_path):
    rows = changed(0, success=None)
    rows[1]["score"] = rows[2]["score"] = rows[2]["success"] = rows[3]["score"] = None
    log = load_turns(write(rows, tmp_path))
    assert log.episodes.score.tolist() == [0, 1, 1] and log.episodes.success.tolist() == [False, True, True]
    rows[3]["success"] = None
    with pytest.raises(LogError, match="'score', row 3: no row of its episode gives it"):
        load_turns(write(rows, tmp_path))


def test_a_column_with_a_slip_in_its_name_is_told(tmp_path):
    with pytest.warns(UserWarning, match="column 'costs_usd' is not read; if it is meant to be 'cost_usd'"):
        load_turns(write([row | dict(costs_usd=1, temperature=0) for row in ROWS], tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_turns(write([row | dict(temperature=0) for row in ROWS], tmp_path))


@pytest.mark.parametrize("about, sentence", [
    (dict(evidence="real"), "evidence 'real' is none of published, logged"),
    (dict(evidence=None), "evidence None is none"),
    (dict(rules="mine"), "rules 'mine' are none of general, mint"), (dict(rules=["mint"]), "are none of general")])
def test_what_a_log_says_of_itself_is_checked(tmp_path, about, sentence):
    folder = save_turns(load_demo(), tmp_path / "log")
    said = json.loads((folder / "log.json").read_text())
    (folder / "log.json").write_text(json.dumps(said | about))
    with pytest.raises(LogError, match=f"^log.json.*{sentence}"): load_turns(folder)


# --- dollars ----------------------------------------------------------------------------------------------------------

def test_a_known_bill_goes_before_tokens_times_price(tmp_path):
    "The bill of one turn of t2, and the tokens of the others."
    log = load_turns(write(changed(3, cost_usd=.25), tmp_path), PRICES)
    assert turn_costs(log, PRICES).tolist() == pytest.approx([.0013, .00011, .0013, .25])
    assert episode_costs(log, PRICES).tolist() == pytest.approx([.0013, .00011, .2513])
    source = TurnSource(name="x", title="x", load=lambda *_: log, pool=lambda _: PRICES, models=lambda: ["a", "b"])
    assert source.frames()[0].cost_usd.tolist() == pytest.approx([.0013, .00011, .2513])
    again = load_turns(save_turns(log, tmp_path / "log", "jsonl"))
    assert turn_costs(again, PRICES).tolist() == turn_costs(log, PRICES).tolist()


def test_a_bill_of_an_episode_is_split_over_its_turns(tmp_path):
    folder = save_turns(load_turns(write(ROWS, tmp_path)), tmp_path / "log", "jsonl")
    episodes = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    episodes[2]["cost_usd"] = "0.33"
    (folder / "episodes.jsonl").write_text("\n".join(map(json.dumps, episodes)) + "\n")
    log = load_turns(folder)
    assert turn_costs(log, PRICES).tolist() == pytest.approx([.0013, .00011, .11, .22])


def test_cached_tokens_cost_what_the_pool_says(tmp_path):
    log = load_turns(write(changed(3, cached_tokens=150), tmp_path))
    with pytest.raises(ValueError, match="'a' were read from a cache and the pool has no price for that"):
        turn_costs(log, PRICES)
    pool = ModelPool(PRICES.table.assign(cached_input_usd_per_mtok=[1., None]))
    assert turn_costs(log, pool)[3] == pytest.approx((50 * 10 + 150 * 1 + 20 * 30) / 1e6)
    pool.to_csv(tmp_path / "pool.csv")
    assert ModelPool.from_csv(tmp_path / "pool.csv").fingerprint() == pool.fingerprint() != PRICES.fingerprint()


def test_a_replay_pays_the_bill():
    log = load_demo()
    bill = np.linspace(.1, .2, len(log.turns))
    billed = type(log)(log.tasks, log.episodes, log.turns.assign(cost_usd=bill), log.evidence, log.source, log.rules)
    world = ReplayWorld(billed, demo_pool())
    assert world.cost.sum() == pytest.approx(bill.sum()) and world.seen_usd.sum() == pytest.approx(bill.sum())
    routed = random_trajectories(world, [0, 1, 2], MATCHED)
    assert turn_costs(routed, demo_pool()).between(.1, .2).all() and routed.rules == MINT_RULES


# --- errors -----------------------------------------------------------------------------------------------------------

FOREIGN = ["Traceback (most recent call last):\n  File\nKeyError: 'x'", "Error: no element",
 "bash: foo: command not found",
           "cat: x.txt: No such file or directory", "HTTP 404 Not Found", "Invalid command",
            "openai.RateLimitError: slow"]


def test_foreign_errors_are_known_by_default_and_mints_by_its_log(tmp_path):
    texts = pd.Series([*FOREIGN, "All is well."])
    assert (error_severity(texts) > 0).tolist() == [True] * 7 + [False]
    assert (error_severity(texts, MINT_RULES) > 0).sum() == 1
    assert load_demo().rules == MINT_RULES and load_turns(write(ROWS, tmp_path)).rules == GENERAL_RULES
    world = ReplayWorld(load_demo(), demo_pool(), rules=[ErrorRule("wrong", "Your answer is wrong", "low")])
    assert set(np.unique(world.error)) == {0, .2} and world.log.rules[0].name == "wrong"


def test_rules_that_know_nothing_are_told_of_once(recwarn):
    silent = (ErrorRule("none", "Jabberwocky", "low"),)
    ReplayWorld(load_demo(), demo_pool())
    assert not recwarn
    with pytest.warns(UserWarning, match="No error rule fires on any of the .* feedbacks of demo"):
        ReplayWorld(load_demo(), demo_pool(), rules=silent)


def test_rules_are_saved_by_their_name(tmp_path, monkeypatch):
    log = ReplayWorld(load_demo(), demo_pool(), rules=[ErrorRule("wrong", "wrong", "low")]).log
    with pytest.raises(LogError, match="no name; give them one in RULES"): save_turns(log, tmp_path / "log")
    assert not (tmp_path / "log").exists()
    monkeypatch.setitem(RULES, "mine", log.rules)
    assert load_turns(save_turns(log, tmp_path / "log")).rules == log.rules


# --- pools ------------------------------------------------------------------------------------------------------------

HEADER = "model,input_usd_per_mtok,output_usd_per_mtok,max_input_tokens,knowledge_cutoff\n"


@pytest.mark.parametrize("text, sentence", [
    (HEADER + "big,10,30,8192,2024-06-30,1\n", "line 2 has 6 cells, the header has 5"),
    (HEADER + "big,10,30,8192,2024-06-30\nsmall,1,1\n", "line 3 has 3 cells"),
    (HEADER + "big,inf,30,8192,\n", "model 'big': input_usd_per_mtok: 'inf' is no price"),
    (HEADER + "big,10,1e999,8192,\n", "model 'big': output_usd_per_mtok: '1e999' is"),
    (HEADER + "big,-1,30,8192,\n", "model 'big': input_usd_per_mtok: '-1' is negative"),
    (HEADER + "big,,30,8192,\n", "model 'big': input_usd_per_mtok is missing"),
    (HEADER + "big,NA,30,8192,\n", "model 'big': input_usd_per_mtok: 'NA' is no price"),
    (HEADER + "big,10,30,-8192,\n", "model 'big': max_input_tokens: '-8192' is negative"),
    (HEADER + "big,10,30,8k,\n", "model 'big': max_input_tokens: '8k' is no whole number"),
    (HEADER + "big,10,30,8192,June\n", "model 'big': knowledge_cutoff: 'June' is no ISO date"),
    (HEADER + ",10,30,8192,\n", "row 1: '' is no name"), (HEADER + "a,1,1,,\na,1,1,,\n", "names 'a' twice"),
    (HEADER.replace("max_input_tokens", "max_input_token") + "big,10,30,8192,\n",
     "'max_input_token'; name it 'max_input_t"),
    (HEADER.replace("knowledge_cutoff", "knowlege_cutoff") + "big,10,30,8192,\n",
     "'knowlege_cutoff'; name it 'knowledge_"),
    (HEADER.replace("output_usd_per_mtok", "output_usd") + "big,10,30,8192,\n",
     "'output_usd'; name it 'output_usd_per_mtok"),
    (HEADER.replace("max_input_tokens", "model") + "big,10,30,8192,\n",
     "line 1: a column has no name, or that of another"),
    ("", "lacks the column 'model'")])
def test_a_pool_that_is_wrong_is_named(tmp_path, text, sentence):
    (tmp_path / "pool.csv").write_text(text)
    with pytest.raises(ValueError, match=f"pool.csv.*{sentence}"): ModelPool.from_csv(tmp_path / "pool.csv")


def test_a_model_may_be_called_anything(tmp_path):
    rows = 'NA,10,30,8192,2024-06\n007,1,1,,\nnull,1,1,,\n"a,b",0,0,,\n'
    (tmp_path / "pool.csv").write_text("\ufeff" + HEADER + rows)
    pool = ModelPool.from_csv(tmp_path / "pool.csv")
    assert pool.names == ["NA", "007", "null",
     "a,b"] and pool.table.max_input_tokens.isna().tolist() == [False] + [True] * 3
    assert pool.table.knowledge_cutoff.iloc[0] == "2024-06-01" and np.isfinite(pool.features()).all()


def test_prices_that_look_per_token_are_told(tmp_path):
    (tmp_path / "pool.csv").write_text(HEADER + "big,0.00001,0.00003,,\nfree,0,0,,\n")
    with pytest.warns(UserWarning, match="if these are dollars per token, multiply by a million"):
        ModelPool.from_csv(tmp_path / "pool.csv")


def test_names_may_come_from_a_generator():
    assert mint_pool(name for name in ("gpt-4-0613", "CodeLlama-34b-hf")).names == ["gpt-4-0613", "CodeLlama-34b-hf"]


# --- outcome tables ---------------------------------------------------------------------------------------------------

TIDY = dict(model=["a", "b"], task_id=[7, 8], domain="d", score=["1", 0.], cost_usd=[.1, None], repeat=["0", 0])


@pytest.mark.parametrize("values, sentence", [
    (dict(score=["good", 1]), "model a on 7 has the score 'good'; a score is 0 to 1, or missing"),
    (dict(score=[[1], 1]), r"model a on 7 has the score \[1\]"),
    (dict(score=[1, 1.5]), "model b on 8 has the score 1.5"),
    (dict(score=[np.inf, 1]), "has the score inf"),
    (dict(cost_usd=[.1, "inf"]), "model b on 8 has the cost_usd 'inf'; leav"),
    (dict(cost_usd=[.1, -1]), "has the cost_usd -1"),
    (dict(latency_s=[False, 1]), "model a on 7 has the latency_s False"),
    (dict(repeat=["x", None]), "a row has no repeat: b on 8, d"), (dict(model=["a", None]), "a row has no model"),
    (dict(model=["a", " "]), "model, row 2: ' ' is no name"),
    (dict(task_id=[7, "7"], model="a"), "has task 7, repeat 0, twice"),
])
def test_an_outcome_that_is_wrong_is_named(values, sentence):
    with pytest.raises(OutcomeError, match=f"^mine: .*{sentence}"): from_frame(pd.DataFrame(TIDY | values), "mine")


def test_outcomes_are_read_as_they_are_meant():
    matrix = from_frame(pd.DataFrame(TIDY), "mine", tasks=pd.DataFrame(dict(task_id=[7, 8], prompt=["x", "y"])))
    assert matrix.tasks["prompt"].tolist() == ["x", "y"] and matrix.score[0, 0] == 1 and matrix.score[1, 1] == 0
    assert np.isnan(matrix.cost[1, 1]) and from_frame(pd.DataFrame(TIDY | dict(score=[True, False])),
     "m").score[0, 0] == 1
    with pytest.warns(UserWarning, match="column 'cost' is not read; if it is meant to be 'cost_usd'"):
        from_frame(pd.DataFrame(TIDY).rename(columns=dict(cost_usd="cost")), "mine")


# --- converters -------------------------------------------------------------------------------------------------------

def put(value, place, new):
    "`value` with `new` at `place`, a list of keys."
    if not place: return new
    whole = dict(value) if isinstance(value, dict) else list(value)
    whole[place[0]] = put(whole[place[0]], place[1:], new)
    return whole


MINT_RECORD = dict(task=dict(task_id=3, prompt="What?"), state=dict(
    history=[dict(role="user", content="What?"), dict(role="assistant", content="<solution> 1 </solution>")],
    success=True, terminate_reason="task_success",
    agent_action_count=dict(use_tool=0, propose_solution=1, invalid_action=0),
    token_counter=dict(prompt_tokens=9, completion_tokens=4)))
MINT_FILE = "data/outputs/m/F=None/max5_p2+tool+cd/reasoning/gsm8k/results.jsonl"
BFCL_RECORD = dict(id="simple_0", input_token_count=10, output_token_count=3, latency=.5)
RUN = dict(success=True, execution_time=2.5, token_usage=dict(input_tokens=5, output_tokens=2), turn_count=3)


def read_mint(folder, record):
    (folder / MINT_FILE).parent.mkdir(parents=True, exist_ok=True)
    (folder / MINT_FILE).write_text(json.dumps(record) + "\n")
    return read_mint_upstream(folder)


@pytest.mark.parametrize("place, value", [
    (["state", "success"], "maybe"), (["state", "success"], [1]), (["state", "token_counter", "prompt_tokens"], [9]),
    (["state", "token_counter", "prompt_tokens"], -9), (["state", "agent_action_count", "propose_solution"], "many"),
    (["state", "history", 1, "content"], ["x"]), (["task", "prompt"], {}), (["task", "task_id"], None)])
def test_a_record_of_mint_that_is_wrong_is_named(tmp_path, place, value):
    with pytest.raises(LogError, match="gsm8k/results.jsonl, record 1 is not as upstream writes it"):
        read_mint(tmp_path, put(MINT_RECORD, place, value))


@pytest.mark.parametrize("place, value", [(["state", "success"], "true"), (["state", "success"], 1),
                                          (["state", "token_counter", "prompt_tokens"], "9")])
def test_a_record_of_mint_is_read_as_it_is_meant(tmp_path, place, value):
    log = read_mint(tmp_path, put(MINT_RECORD, place, value))
    assert log.episodes[["success", "score",
     "input_tokens"]].iloc[0].tolist() == [True, 1, 9] and log.rules == MINT_RULES


def test_mint_failed_said_in_text(tmp_path):
    assert not read_mint(tmp_path, put(MINT_RECORD, ["state", "success"], "false")).episodes.success[0]


def read_bfcl(folder, **values):
    for name in (categories := ("simple", "java", "javascript", "multiple_function", "parallel_function",
                                "parallel_multiple_function", "relevance")):
        result = folder / f"2024-08-11/result/m/gorilla_openfunctions_v1_test_{name}_result.json"
        score = folder / f"2024-08-11/score/m/{name}_score.json"
        for path in (result, score): path.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(BFCL_RECORD | values | dict(id=f"{name}_0")) + "\n")
        score.write_text(json.dumps(dict(accuracy=1., correct_count=1, total_count=1)) + "\n")
    return read_bfcl_upstream(folder)["outcomes"].iloc[:len(categories)]


@pytest.mark.parametrize("values", [dict(latency="fast"), dict(latency=[1]), dict(latency=float("inf")),
                                    dict(input_token_count=[10]), dict(input_token_count="false"),
                                    dict(output_token_count=float("inf")), dict(output_token_count=True)])
def test_a_record_of_bfcl_that_is_wrong_is_named(tmp_path, values):
    with pytest.raises(OutcomeError, match="_result.json, record 1 is not as upstream writes it"):
        read_bfcl(tmp_path, **values)


def test_a_record_of_bfcl_is_read_as_it_is_meant(tmp_path):
    frame = read_bfcl(tmp_path, latency=None, input_token_count="10")
    assert frame.latency_s.isna().all() and (frame.input_tokens == 10).all() and frame.correct.all()


def read_mcpmark(folder, **values):
    path = folder / "task_results" / "task.json"
    path.parent.mkdir(exist_ok=True)
    runs = dict(m=dict(runs=[RUN | values | dict(run="run-1")]))
    path.write_text(json.dumps(dict(models=runs, service="s", task="t")))
    return read_mcpmark_upstream(folder)["runs"].iloc[0]


@pytest.mark.parametrize("values", [dict(success="maybe"), dict(success=[1]), dict(execution_time="inf"),
                                    dict(execution_time=False), dict(turn_count=1.5),
                                    dict(token_usage=dict(input_tokens=[1], output_tokens=1))])
def test_a_run_of_mcpmark_that_is_wrong_is_named(tmp_path, values):
    with pytest.raises(OutcomeError, match="task_results/task.json, record 1 is not as upstream writes it"):
        read_mcpmark(tmp_path, **values)


def test_a_run_of_mcpmark_is_read_as_it_is_meant(tmp_path):
    assert not read_mcpmark(tmp_path, success="false").success and read_mcpmark(tmp_path, success=1).success
    assert np.isnan(read_mcpmark(tmp_path, token_usage=None).input_tokens)


def test_a_record_of_zeroeval_that_is_wrong_is_named(tmp_path):
    for dataset in ("crux", "gsm", "math-l5"):
        path = tmp_path / f"result_dirs/{dataset}/m.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps([dict(chat_history=["Q"], output=[["A"]], answer="1", id="x")]))
    with pytest.raises(OutcomeError, match=r"crux/m.json, record 1 is not .*\['A'\] is no text"):
        read_zeroeval_upstream(tmp_path)
