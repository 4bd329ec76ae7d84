"""The turn log: validation, error costs, targets, dollars, splits, files."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.core.splits import holdout, leave_one_domain_out, stratified_folds
from mtrouter_nb.core.text import has_countdown, strip_countdown
from mtrouter_nb.data.demo import load_demo
from mtrouter_nb.data.pool import ModelPool, demo_pool
from mtrouter_nb.data.mint import find_mint, load_mint
from mtrouter_nb.data.turns import (END_ERROR, END_REJECTED, END_STEPS, MINT_RULES, SCHEMA_VERSION,
                                    SCIENCEWORLD_RULES, SEVERITY, LogError, TurnLog, annealed_error_cost,
                                    error_severity, expected_steps, load_turns, match_errors, outcome_targets,
                                    proposes, save_turns, turn_costs, turn_error_costs, with_feedback)

TABLES = ("tasks", "episodes", "turns")


@pytest.fixture
def log() -> TurnLog:
    return load_demo().select(task_ids=load_demo().tasks.task_id[:6])


@pytest.fixture(scope="module")
def mint() -> TurnLog:
    if find_mint() is None:
        pytest.skip("MINT's tables are not here")
    return load_mint()


# --- validation -----------------------------------------------------------------------------------------------------

def set_cell(table, row, column, value):
    table.loc[row, column] = value


def repeat(log, table, row=2):
    old = getattr(log, table)
    setattr(log, table, pd.concat([old, old.iloc[[row]]], ignore_index=True))


def drop(log, row):
    log.turns = log.turns.drop(index=row)


BROKEN = {
    "unknown model": (lambda g: set_cell(g.turns, 3, "model", "nobody"),
                      "turns, column 'model', row 4: 'nobody' is not in the pool"),
    "unknown model of an episode": (lambda g: set_cell(g.episodes, 1, "model", "nobody"),
                                    "episodes, column 'model', row 2: 'nobody' is not in the pool"),
    "missing turn": (lambda g: drop(g, g.turns.index[g.turns.turn == 1][0]), None),
    "missing last turn": (lambda g: drop(g, g.turns.index[-1]),
                          "episodes, column 'n_turns', row 24: "),
    "negative tokens": (lambda g: set_cell(g.turns, 4, "input_tokens", -5),
                        "turns, column 'input_tokens', row 5: -5 is negative"),
    "negative tokens of an episode": (lambda g: set_cell(g.episodes, 2, "output_tokens", -1),
                                      "episodes, column 'output_tokens', row 3: -1 is negative"),
    "score out of range": (lambda g: set_cell(g.episodes, 7, "score", 1.5),
                           "episodes, column 'score', row 8: 1.5 is out of range; rescale scores to 0..1."),
    "duplicate task": (lambda g: repeat(g, "tasks"), "tasks, column 'task_id', row 7: "),
    "duplicate episode": (lambda g: repeat(g, "episodes"), "episodes, column 'episode_id', row 25: "),
    "duplicate turn": (lambda g: repeat(g, "turns"), None),
    "unknown task": (lambda g: set_cell(g.episodes, 0, "task_id", "x/1"), "episodes, column 'task_id', row 1: 'x/1'"),
    "unknown episode": (lambda g: set_cell(g.turns, 0, "episode_id", "x"), "turns, column 'episode_id', row 1: 'x'"),
    "other task": (lambda g: set_cell(g.turns, 0, "task_id", g.tasks.task_id[3]), "turns, column 'task_id', row 1: "),
    "no model and no router": (lambda g: set_cell(g.episodes, 0, "model", None), "episodes, column 'model', row 1: "),
    "model and router": (lambda g: set_cell(g.episodes, 0, "router", "r"), "episodes, column 'model', row 1: "),
    "two models in a single-model episode": (lambda g: set_cell(g.turns, 0, "model", "novice-3b"),
                                             "turns, column 'model', row 1: 'novice-3b' is not the one model"),
    "propensity above 1": (lambda g: set_cell(g.turns, 1, "propensity", 1.2),
                           "turns, column 'propensity', row 2: 1.2 is no probability"),
    "negative turn": (lambda g: set_cell(g.turns, 0, "turn", -1), "turns, column 'turn', row 1: -1 is negative"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_validation_names_what_is_wrong_and_changes_nothing(log, case):
    breaking, sentence = BROKEN[case]
    breaking(log)
    before = {kind: getattr(log, kind).copy() for kind in TABLES}
    with pytest.raises(LogError) as raised:
        log.validate(demo_pool())
    message = str(raised.value)
    assert message.startswith(sentence or tuple(TABLES)), message
    assert ", column '" in message and ", row " in message and "; " in message and message.endswith(".")
    for kind in TABLES:
        pd.testing.assert_frame_equal(getattr(log, kind), before[kind])


def test_missing_turn_names_the_turn_after_the_gap(log):
    row = log.turns.index[log.turns.turn == 2][0]
    log.turns = log.turns.drop(index=row - 1).reset_index(drop=True)
    with pytest.raises(LogError, match=f"turns, column 'turn', row {row}: 2 comes after a missing turn of its episode"):
        log.validate()


def test_a_good_log_passes_in_any_row_order(log):
    shuffled = replace(log, **{kind: getattr(log, kind).sample(frac=1, random_state=1) for kind in TABLES})
    assert shuffled.validate(demo_pool()) is shuffled and shuffled.fingerprint() == log.fingerprint()


@pytest.mark.parametrize("table, column", [("tasks", "prompt"), ("episodes", "score"), ("turns", "action"),
                                           ("turns", "input_tokens")])
def test_missing_column(log, table, column):
    tables = {kind: getattr(log, kind) for kind in TABLES}
    tables[table] = tables[table].drop(columns=column)
    with pytest.raises(LogError, match=f"{table}, column '{column}', row 1: the column is missing"):
        TurnLog(**tables)


@pytest.mark.parametrize("column, value, sentence", [
    ("score", None, "the value is missing"), ("input_tokens", 1.5, "1.5 is no whole number"),
    ("success", "maybe", "'maybe' is no true or false"), ("n_turns", "many", "'many' is no whole number"),
    ("terminate_reason", ["a"], r"\['a'\] is no text")])
def test_values_that_do_not_fit(log, column, value, sentence):
    episodes = log.episodes.astype({column: object})
    episodes.at[4, column] = value
    with pytest.raises(LogError, match=f"episodes, column '{column}', row 5: {sentence}; give "):
        TurnLog(log.tasks, episodes, log.turns)


def test_construction_copies(log):
    again = TurnLog(log.tasks, log.episodes, log.turns)
    again.episodes.loc[0, "score"] = .5
    assert log.episodes.score[0] != .5


# --- selection and fingerprint --------------------------------------------------------------------------------------

def test_select(log):
    tasks, models = log.tasks.task_id[:2].tolist(), ["sums-8b", "grand-120b"]
    part = log.select(tasks, models)
    assert part.tasks.task_id.tolist() == tasks and part.models == sorted(models) and len(part.episodes) == 4
    assert part.validate().evidence == "simulated" and len(log.episodes) == 24
    with pytest.raises(LogError, match="holds no model 'nobody'"):
        log.select(models=["nobody"])
    with pytest.raises(LogError, match="holds no task_id 'x'"):
        log.select(task_ids=["x"])


def test_select_models_keeps_routed_episodes_that_called_only_those(log):
    episodes = log.episodes.assign(router="r", model=None)
    routed = TurnLog(log.tasks, episodes, log.turns.assign(propensity=.5))
    assert routed.validate().select(models=["sums-8b"]).models == ["sums-8b"]
    assert len(routed.select(models=["sums-8b"]).episodes) == 6


def test_fingerprint_sees_content(log):
    before = log.fingerprint()
    log.turns.loc[0, "action"] += " "
    assert log.fingerprint() != before


# --- text -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, bare", [
    ("Observation:\n42\nYou have 4 steps left and 2 chances to propose solution left.\n", "42"),
    ("Observation:\n42\nYou have 1 steps left and 1 chances to propose solution left.\n"
     "You should take the last step to propose a solution.\n", "42"),
    ("Observation:\nYou have 3 steps left and 2 chances to propose solution left.\n", ""),
    ("Assistant:\n<thought> hm </thought>", "<thought> hm </thought>"),
    (" Assistant:\n<thought> hm </thought>", "<thought> hm </thought>"),
    ("Assistant:\nAssistant\uff1a\n<execute>", "<execute>"),
    ("Observation:\n  indented", "  indented"),
    ("A prompt that says You have 5 minutes left.", "A prompt that says You have 5 minutes left."),
])
def test_strip_countdown(text, bare):
    assert strip_countdown(text) == bare and not has_countdown(bare)
    assert has_countdown(text) == ("steps left" in text)


def test_no_countdown_survives_in_mint(mint):
    later = mint.turns.observation[mint.turns.turn > 0]
    assert later.map(has_countdown).all()
    stripped = later.map(strip_countdown)
    assert not stripped.str.contains("chances to propose|should take the last step").any()
    assert not stripped.str.startswith("Observation:").any()


def test_proposal_rule_is_the_logged_count(mint):
    counted = proposes(mint.turns.action).groupby(mint.turns.episode_id).sum().reindex(mint.episodes.episode_id)
    assert (counted.to_numpy() == mint.episodes.n_proposals.to_numpy()).all() and len(counted) == 3516
    assert proposes("<solution> 1 </solution>") and not proposes("<Solution>")


# --- feedback -------------------------------------------------------------------------------------------------------

def test_feedback_is_the_next_observation_or_an_end_mark(mint):
    turns = mint.turns.sort_values(["episode_id", "turn"])
    following = turns.groupby("episode_id").observation.shift(-1)
    inner = following.notna()
    assert (turns.feedback[inner] == following[inner]).all()
    last = turns[~inner].set_index("episode_id").feedback
    episodes = mint.episodes.set_index("episode_id").loc[last.index]
    assert last[episodes.success].isna().all()
    marks = last[~episodes.success].groupby(episodes.terminate_reason[~episodes.success]).agg(set).to_dict()
    assert marks == {"error": {END_ERROR}, "max_propose_steps": {END_REJECTED}, "max_steps": {END_STEPS, END_REJECTED}}


def test_feedback_follows_the_attempt_not_the_turn():
    turns = pd.DataFrame(dict(episode_id="e", task_id="t", turn=[0, 1, 2], model=["a", "b", "a"], attempt=[0, 1, 0],
                              observation=["prompt", "prompt", "said to a"], action="act", input_tokens=1,
                              output_tokens=1))
    episodes = pd.DataFrame(dict(episode_id=["e"], model=[None], router="r", success=False, terminate_reason="stopped"))
    feedback = with_feedback(turns, episodes).feedback
    assert feedback[0] == "said to a" and feedback[1:].isna().all()


def test_given_feedback_is_kept():
    turns = pd.DataFrame(dict(episode_id="e", turn=[0, 1], attempt=0, observation=["p", "o"], action="act",
                              feedback=[None, "you lost"]))
    episodes = pd.DataFrame(dict(episode_id=["e"], model="a", success=False, terminate_reason="max_steps"))
    assert with_feedback(turns, episodes).feedback.tolist() == ["o", "you lost"]


# --- errors ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, names", [
    ("Observation:\nYour answer is wrong.", ["wrong_answer"]),
    (END_REJECTED, ["wrong_last_answer"]), (END_STEPS, []), (END_ERROR, []),
    ("I don't understand your input. Use <execute>.", ["invalid_format"]),
    ("Nothing happens.\nNothing happens.", ["invalid_action"]),
    ("Traceback (most recent call last)\nLinAlgError: Singular", ["python_traceback"]),
    ("NameError      Traceback (most recent call last)\nNameError: name 'x'", ["python_NameError"]),
    ("Traceback (most recent call last)\nKeyError: 1\nTypeError: 2", ["python_TypeError", "python_KeyError"]),
    ("  Cell In[1]\nSyntaxError: invalid syntax", ["python_SyntaxError"]),
    ("your answer is wrong", []), (None, []), (float("nan"), []),
])
def test_mint_rules(text, names):
    assert [rule.name for rule in match_errors(text, MINT_RULES)] == names


def test_severities_are_the_papers():
    assert SEVERITY == dict(high=1.0, medium=.8, low=.2)
    texts = pd.Series(["AssertionError: no", "ValueError: no", "TypeError: no\nValueError: no", "fine", None])
    assert error_severity(texts).tolist() == [.2, .8, 1.0, 0, 0]
    assert error_severity(pd.Series(["No known action matches that input."]), SCIENCEWORLD_RULES).tolist() == [1.0]


@pytest.mark.parametrize("n", [3, 4, 10, 27])
@pytest.mark.parametrize("position, severity, cost", [("early", "high", .30), ("late", "high", 1.0),
    ("early", "low", .20), ("late", "low", .20), ("early", "medium", .24), ("late", "medium", .80)])
def test_annealed_error_cost_by_hand(n, position, severity, cost):
    turn = {"early": 0, "late": n - 1}[position]
    if position == "early" and 1 / n > .3:
        n, turn = 10, 2  # turn 2 of 10 is p = .3, still early
    assert annealed_error_cost(turn, SEVERITY[severity], n) == pytest.approx(cost / n)


def test_annealed_error_cost_between_and_beyond():
    assert annealed_error_cost(4, 1, 10) == pytest.approx(.65 / 10)  # p = .5: halfway between .3 and 1
    assert annealed_error_cost(99, 1, 10) == pytest.approx(.1)  # past N, as late as can be
    assert annealed_error_cost(0, 0, 10) == 0
    assert annealed_error_cost([0, 9], [1, 0], [10, 5]).tolist() == pytest.approx([.03, 0])
    with pytest.raises(ValueError, match="above 0"):
        annealed_error_cost(0, 1, 0)


def test_expected_steps_use_only_the_given_tasks(log):
    episodes = log.episodes[log.episodes.success]
    arithmetic = episodes[episodes.task_id.str.startswith("arithmetic")]
    ids = arithmetic.task_id.unique()[:2]
    steps = expected_steps(log, ids)
    mine = arithmetic[arithmetic.task_id.isin(ids)].n_turns
    assert steps == {"arithmetic": mine.median(), None: mine.median()}
    assert set(expected_steps(log)) == {"arithmetic", "household", None}
    with pytest.raises(LogError, match="No episode of these tasks succeeded"):
        expected_steps(log, [])


def test_expected_steps_of_a_routed_log(log):
    alone = expected_steps(log)
    routed = TurnLog(log.tasks, log.episodes.assign(router="r", model=None), log.turns)
    assert expected_steps(routed) == alone
    mixed = log.episodes.assign(n_turns=log.episodes.n_turns + 10, router="r", model=None)
    mixed["episode_id"] += "|r"
    log.episodes = pd.concat([log.episodes, mixed], ignore_index=True)
    assert expected_steps(log) == alone


def test_targets_are_score_less_costs_to_come(log):
    steps = expected_steps(log)
    cost, target = turn_error_costs(log, steps), outcome_targets(log, steps)
    for episode, rows in log.turns.groupby("episode_id"):
        score = log.episodes.set_index("episode_id").score[episode]
        for i in rows.index:
            to_come = cost[rows.index[rows.turn >= rows.turn[i]]].sum()
            assert target[i] == pytest.approx(score - to_come)
    assert (cost >= 0).all() and (cost > 0).any() and target.index.equals(log.turns.index)


def test_targets_do_not_depend_on_row_order(log):
    steps = expected_steps(log)
    expected = outcome_targets(log, steps)
    log.turns = log.turns.sample(frac=1, random_state=0)
    assert outcome_targets(log, steps).sort_index().tolist() == pytest.approx(expected.tolist())


def test_an_unseen_domain_falls_back_on_all(log):
    steps = expected_steps(log, log.tasks.task_id[log.tasks.domain == "arithmetic"])
    assert "household" not in steps and turn_error_costs(log, steps).notna().all()


# --- dollars --------------------------------------------------------------------------------------------------------

def test_turn_costs_add_up_to_exact_episode_costs(log):
    log.episodes["input_tokens"] += 7  # totals that the split of tokens over turns does not quite meet
    cost = turn_costs(log, demo_pool()).groupby(log.turns.episode_id).sum()
    e = log.episodes.set_index("episode_id").loc[cost.index]
    np.testing.assert_allclose(cost, demo_pool().cost_usd(e.model, e.input_tokens, e.output_tokens))


def test_turn_costs_split_evenly_where_turns_count_no_tokens(log):
    log.turns[["input_tokens", "output_tokens"]] = 0
    cost = turn_costs(log, demo_pool())
    assert cost.notna().all() and cost.groupby(log.turns.episode_id).nunique().eq(1).all()


def test_unknown_price_is_no_free_call(log):
    with pytest.raises(KeyError, match="not in the pool"):
        turn_costs(log, demo_pool().subset(["grand-120b"]))


def test_known_values_of_the_pool(mint):
    from mtrouter_nb.data.sources import pool_of
    cost = turn_costs(mint, pool_of(mint)).groupby(mint.turns.model).sum() / 586
    score = mint.episodes.groupby("model").score.mean()
    assert score["gpt-4-0613"] == pytest.approx(.6945, abs=5e-5)
    assert cost["gpt-4-0613"] == pytest.approx(.1547, abs=5e-5)
    assert score["Meta-Llama-3-70B-Instruct"] == pytest.approx(.6621, abs=5e-5)
    assert cost["Meta-Llama-3-70B-Instruct"] == pytest.approx(.0043, abs=5e-5)


# --- splits ---------------------------------------------------------------------------------------------------------

def tasks_of(**sizes) -> pd.DataFrame:
    rows = [(f"{domain}/{i}", domain) for domain, size in sizes.items() for i in range(size)]
    return pd.DataFrame(rows, columns=["task_id", "domain"])


MINT_SIZES = dict(alfworld=134, gsm8k=48, hotpotqa=43, humaneval=45, math=100, mbpp=91, mmlu=76, theoremqa=49)


def test_folds_are_stratified_and_even():
    tasks = tasks_of(**MINT_SIZES)
    folds = stratified_folds(tasks)
    by_domain = folds.groupby(tasks.domain.to_numpy()).value_counts().unstack()
    assert ((by_domain.max(axis=1) - by_domain.min(axis=1)) <= 1).all() and set(folds) == set(range(5))
    assert folds.value_counts().between(586 / 5 - 5, 586 / 5 + 5).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_adding_a_domain_moves_no_fold(seed):
    before = stratified_folds(tasks_of(alfworld=134, math=100), seed=seed)
    after = stratified_folds(tasks_of(aaa=17, **MINT_SIZES), seed=seed)
    assert after[before.index].equals(before)


def test_folds_ignore_row_order_and_obey_the_seed():
    tasks = tasks_of(a=20, b=31)
    folds = stratified_folds(tasks)
    shuffled = stratified_folds(tasks.sample(frac=1, random_state=0))
    assert shuffled[folds.index].equals(folds) and not stratified_folds(tasks, seed=1).equals(folds)


@pytest.mark.parametrize("seed", range(20))
def test_equal_prompts_share_a_fold_and_folds_stay_even(seed):
    rng = np.random.default_rng(seed)
    tasks = tasks_of(a=60, b=31)
    said = rng.integers(0, 15, len(tasks))
    lonely = rng.random(len(tasks)) < 0.5
    tasks["prompt"] = np.where(lonely, tasks["task_id"], [(" Say\n it {}", "say it {}")[i % 2].format(k)
                                                          for i, k in enumerate(said)])
    folds = stratified_folds(tasks, 4, seed)
    plain = tasks["prompt"].str.split().str.join(" ").str.casefold().to_numpy()
    for _, of in folds.groupby([tasks["domain"].to_numpy(), plain]): assert of.nunique() == 1
    sizes = folds.groupby(tasks["domain"].to_numpy()).value_counts().unstack()
    assert (sizes.max(axis=1) - sizes.min(axis=1)).max() <= 1
    mixed = tasks.sample(frac=1, random_state=seed)
    assert stratified_folds(mixed, 4, seed)[folds.index].equals(folds)


def test_no_fold_of_mint_parts_a_prompt(mint):
    folds = stratified_folds(mint.tasks)
    assert folds.groupby([mint.tasks["domain"].to_numpy(), mint.tasks["prompt"].to_numpy()]).nunique().max() == 1
    sizes = folds.groupby(mint.tasks["domain"].to_numpy()).value_counts().unstack()
    assert (sizes.max(axis=1) - sizes.min(axis=1)).max() <= 1


def test_leave_one_domain_out():
    tasks = tasks_of(b=2, a=3)
    splits = list(leave_one_domain_out(tasks))
    assert [domain for domain, *_ in splits] == ["a", "b"]
    for domain, train, test in splits:
        assert all(task.startswith(domain) for task in test) and sorted(train + test) == sorted(tasks.task_id)


def test_holdout():
    ids = tasks_of(a=40).task_id
    train, val = holdout(ids, .1)
    assert len(val) == 4 and sorted(train + val) == sorted(ids)
    assert holdout(ids[::-1], .1) == (train, val) != holdout(ids, .1, seed=1)
    assert len(holdout(ids[:3], .1)[1]) == 1


# --- files ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_round_trip(log, tmp_path, format):
    log.turns.loc[0, "propensity"] = 1 / 3
    log.turns.loc[0, "action"] = 'quotes " and \u2028 line separators, \\ and \x00 and ü'
    log.episodes["n_tool_calls"] = 3  # a column of one's own
    again = load_turns(save_turns(log, tmp_path / "log", format))
    for kind in TABLES:
        pd.testing.assert_frame_equal(getattr(again, kind), getattr(log, kind))
    assert (again.fingerprint(), again.evidence, again.source) == (log.fingerprint(), "simulated", log.source)


def test_save_replaces_whole_and_leaves_nothing_behind(log, tmp_path):
    save_turns(log, tmp_path / "log")
    save_turns(log, tmp_path / "log", "jsonl")
    assert {p.name for p in (tmp_path / "log").iterdir()} == {"log.json", *(f"{kind}.jsonl" for kind in TABLES)}
    with pytest.raises(ValueError, match="neither .parquet nor .jsonl"):
        save_turns(log, tmp_path / "log", "csv")
    assert [p.name for p in tmp_path.iterdir()] == ["log"] and load_turns(tmp_path / "log").validate()


def test_errors_in_a_folder_name_the_file(log, tmp_path):
    folder = save_turns(log, tmp_path / "log", "jsonl")
    good = (folder / "turns.jsonl").read_text(encoding="utf-8")
    (folder / "turns.jsonl").write_text(good.replace('"output_tokens": ', '"output_tokens": -', 1), encoding="utf-8")
    with pytest.raises(LogError, match="turns.jsonl, column 'output_tokens', row 1: -"):
        load_turns(folder)
    (folder / "turns.jsonl").write_text(good.replace("\n", "\n{oops\n", 1), encoding="utf-8")
    with pytest.raises(LogError, match="turns.jsonl, row 2 is not JSON"):
        load_turns(folder)
    (folder / "turns.jsonl").write_text(good, encoding="utf-8")
    with pytest.raises(LogError, match="'nobody'|is not in the pool"):
        load_turns(folder, demo_pool().subset(["sums-8b"]))
    (folder / "log.json").write_text(json.dumps(dict(schema_version=SCHEMA_VERSION + 1)))
    with pytest.raises(LogError, match="schema_version: 2 is not 1"):
        load_turns(folder)
    (folder / "turns.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="neither turns.parquet nor turns.jsonl"):
        load_turns(folder)


@pytest.mark.parametrize("name, content, sentence", [
    ("runs.csv", "a,b", "neither .parquet nor .jsonl"), ("runs.parquet", "no", "is no Parquet file"),
    ("runs.jsonl", "[1]\n", "row 1 is no JSON object"),
    ("runs.jsonl", '{"task_id": 1}\n', "column 'model', row 1: the column is missing")])
def test_unreadable_files(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(LogError, match=sentence):
        load_turns(tmp_path / name)


def test_no_such_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_turns(tmp_path / "none")


def one_file(log) -> pd.DataFrame:
    "The single-file form of a single-model log."
    last = log.turns.turn == log.turns.groupby("episode_id").turn.transform("max")
    facts = log.episodes.set_index("episode_id")[["score", "terminate_reason"]]
    rows = log.turns.drop(columns=["episode_id", "feedback", "attempt", "propensity"])
    rows = rows.merge(log.tasks, on="task_id").assign(
        score=log.turns.episode_id.map(facts.score).where(last),
        terminate_reason=log.turns.episode_id.map(facts.terminate_reason))
    return rows


def write(rows, path):
    rows.to_parquet(path) if path.suffix == ".parquet" else rows.to_json(path, orient="records", lines=True)
    return path


@pytest.mark.parametrize("name", ["runs.jsonl", "runs.parquet"])
def test_one_file_is_the_same_log(log, tmp_path, name):
    again = load_turns(write(one_file(log), tmp_path / name), demo_pool())
    order = dict(tasks="task_id", episodes="episode_id", turns=["episode_id", "turn"])
    for kind, key in order.items():
        ours, theirs = (getattr(x, kind).sort_values(key, ignore_index=True) for x in (again, log))
        pd.testing.assert_frame_equal(ours[theirs.columns], theirs)


def test_one_file_with_the_least_columns(tmp_path):
    rows = pd.DataFrame(dict(task_id=[7, 7], model="m", turn=[0, 1], observation=["Say 1", "no"], action=["2", "1"],
                             input_tokens=[5, 9], output_tokens=1, success=[None, True]))
    log = load_turns(write(rows, tmp_path / "runs.jsonl"))
    assert log.tasks.iloc[0].to_dict() == dict(task_id="7", domain="all", category="all", prompt="Say 1")
    episode = log.episodes.iloc[0]
    assert (episode.episode_id, episode.success, episode.score, episode.input_tokens) == ("m|7", True, 1, 14)
    assert log.turns.feedback.tolist()[0] == "no" and log.turns.feedback.isna().tolist() == [False, True]


def test_one_file_of_a_random_router(tmp_path):
    rows = pd.DataFrame(dict(task_id="t", episode_id="e", router="random", model=["a", "b"], turn=[0, 1],
                             observation=["p", "o"], action="x", input_tokens=1, output_tokens=1, score=.5,
                             propensity=.5))
    log = load_turns(write(rows, tmp_path / "runs.parquet"))
    assert log.episodes.router.tolist() == ["random"] and log.episodes.model.isna().all()
    assert not log.episodes.success[0] and log.turns.propensity.tolist() == [.5, .5]


@pytest.mark.parametrize("change, sentence", [
    (dict(score=None), "'score', row 1: no row of its episode gives it"),
    (dict(score=1.5), "'score', row 1: 1.5 is out of range"),
    (dict(model=["a", "b"], episode_id="e"), "'router', row 1: several models share this episode"),
    (dict(turn=[0, 2]), "'turn', row 2: 2 comes after a missing turn"),
    (dict(turn=[0, 0]), "'turn', row 2: 0 repeats the key"),
    (dict(input_tokens=[1, -1]), "'input_tokens', row 2: -1 is negative"),
    (dict(action=["x", None]), "'action', row 2: the value is missing"),
    (dict(observation=[[1], "o"]), r"'observation', row 1: \[1\] is no text"),
    (dict(score=[None, "good"]), "'score', row 2: 'good' is no number"),
])
def test_errors_in_one_file(tmp_path, change, sentence):
    rows = pd.DataFrame({**dict(task_id="t", model="a", turn=[0, 1], observation=["p", "o"], action="x",
                                input_tokens=1, output_tokens=1, score=1.0), **change})
    with pytest.raises(LogError, match=f"runs.jsonl, column {sentence}"):
        load_turns(write(rows, tmp_path / "runs.jsonl"))


def test_one_file_without_any_score(tmp_path):
    rows = pd.DataFrame(dict(task_id=["t"], model="a", turn=0, observation="p", action="x", input_tokens=1,
                             output_tokens=1))
    with pytest.raises(LogError, match="runs.jsonl, column 'score', row 1: the column is missing"):
        load_turns(write(rows, tmp_path / "runs.jsonl"))


def test_a_pool_of_ones_own_prices_a_log_of_ones_own(tmp_path):
    rows = pd.DataFrame(dict(task_id=["t"], model="mine", turn=0, observation="p", action="x", input_tokens=10**6,
                             output_tokens=0, score=1))
    pool = ModelPool(pd.DataFrame(dict(input_usd_per_mtok=[2.], output_usd_per_mtok=[2.]), index=["mine"]))
    assert turn_costs(load_turns(write(rows, tmp_path / "runs.jsonl"), pool), pool).tolist() == [2.]
