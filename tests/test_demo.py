"""The demo log: committed bytes, known truth, MINT's rights."""
import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.core.files import data_dir
from mtrouter_nb.core.text import has_countdown, strip_countdown
from mtrouter_nb.data.demo import DEMO_SKILL, MAX_PROPOSALS, MAX_TURNS, load_demo, make_demo, true_success
from mtrouter_nb.data.pool import demo_pool
from mtrouter_nb.data.turns import END_REJECTED, END_STEPS, error_severity, proposes, save_turns


@pytest.fixture(scope="module")
def log():
    return load_demo()


def test_committed_files_are_what_the_generator_makes(tmp_path):
    save_turns(make_demo(), tmp_path / "demo", "jsonl")
    committed = sorted((data_dir() / "demo").iterdir())
    assert [p.name for p in committed] == ["episodes.jsonl", "log.json", "tasks.jsonl", "turns.jsonl"]
    for path in committed:
        assert path.read_bytes() == (tmp_path / "demo" / path.name).read_bytes(), path.name
    assert sum(path.stat().st_size for path in committed) < 1_000_000


def test_shape(log):
    assert (len(log.tasks), len(log.episodes), log.evidence, log.source) == (100, 400, "simulated", "demo")
    assert log.tasks.domain.value_counts().to_dict() == dict(arithmetic=50, household=50)
    assert sorted(demo_pool().names) == log.models
    log.validate(demo_pool())


def test_rights_are_mints(log):
    assert (MAX_TURNS, MAX_PROPOSALS) == (5, 2)
    assert log.episodes.n_turns.between(1, 5).all() and log.episodes.n_proposals.between(0, 2).all()
    counted = proposes(log.turns.action).groupby(log.turns.episode_id).sum()[log.episodes.episode_id]
    assert counted.tolist() == log.episodes.n_proposals.tolist()
    ends = log.episodes.groupby("terminate_reason")
    assert set(ends.groups) == {"task_success", "max_steps", "max_propose_steps"}
    assert (ends.get_group("max_steps").n_turns == 5).all()
    assert (ends.get_group("max_propose_steps").n_proposals == 2).all()
    assert (log.episodes.success == (log.episodes.terminate_reason == "task_success")).all()


def test_turns_look_like_mints(log):
    later = log.turns[log.turns.turn > 0]
    assert later.observation.map(has_countdown).all()
    left = later.observation.str.extract(r"You have (\d) steps left and (\d) chances").astype(int)
    used = proposes(log.turns.action).groupby(log.turns.episode_id).cumsum().groupby(log.turns.episode_id).shift(1)
    assert (left[0] == 5 - later.turn).all() and (left[1] == 2 - used[later.index]).all()
    assert not later.observation.map(strip_countdown).str.contains("steps left").any()
    assert (later.input_tokens.to_numpy() > log.turns.input_tokens.loc[later.index - 1].to_numpy()).all()
    severity = error_severity(log.turns.feedback, log.rules)
    assert {.2, .8, 1.0} <= set(severity) and severity.eq(0).any()


def test_ends_are_marked(log):
    last = log.turns.groupby("episode_id").tail(1).set_index("episode_id").feedback
    success = log.episodes.set_index("episode_id").success[last.index]
    assert last[success].isna().all() and set(last[~success]) == {END_REJECTED, END_STEPS}


def test_truth_by_hand():
    truth = true_success(["arithmetic/medium-001", "arithmetic/easy-000", "arithmetic/hard-2"], ["middle-30b"])
    odds = .6 / .4
    expected = [o / (1 + o) for o in (odds, odds * np.exp(1.2), odds * np.exp(-1.2))]
    assert truth["middle-30b"].tolist() == pytest.approx(expected)
    with pytest.raises(KeyError):
        true_success(["arithmetic/easy-000"], ["nobody"])


def outcomes(log):
    truth = true_success(log.tasks.task_id, log.models)
    seen = log.episodes.pivot(index="task_id", columns="model", values="success").astype(float)
    return truth, seen.loc[truth.index, truth.columns]


@pytest.mark.parametrize("seed", [0, 1])
def test_success_rates_meet_the_truth(seed):
    log = make_demo(seed=seed, n_tasks=600)
    truth, seen = outcomes(log)
    cell = pd.Series(truth.index.str.replace(r"-\d+$", "", regex=True), truth.index)
    spread = (truth * (1 - truth)).groupby(cell).sum() ** .5
    z = (seen - truth).groupby(cell).sum() / spread
    assert (z.abs() < 4).all(axis=None) and z.stack().std() < 1.5


def test_committed_rates_meet_the_truth(log):
    truth, seen = outcomes(log)
    domain = log.tasks.set_index("task_id").domain
    spread = (truth * (1 - truth)).groupby(domain).sum() ** .5
    assert ((seen - truth).groupby(domain).sum().abs() < 3 * spread).all(axis=None)
    rate = seen.groupby(domain).mean()["sums-8b"]
    assert rate["arithmetic"] > rate["household"] + .3


def test_no_model_is_best_everywhere_for_its_price():
    "Routing has something to win: the cheap specialist beats the middling model on sums and loses on errands."
    assert DEMO_SKILL.loc["arithmetic", "sums-8b"] > DEMO_SKILL.loc["arithmetic", "middle-30b"]
    assert DEMO_SKILL.loc["household", "sums-8b"] < DEMO_SKILL.loc["household", "middle-30b"]


def test_histories_tell_something(log):
    "An error on the way lowers the share of successes: an estimator has something to learn from history."
    severity = error_severity(log.turns.feedback, log.rules)
    erred = (severity > 0).groupby(log.turns.episode_id).any()[log.episodes.episode_id]
    success = log.episodes.success.to_numpy()
    assert success[erred].mean() < success[~erred].mean() - .2


def test_a_longer_log_holds_the_shorter():
    short, long = make_demo(n_tasks=8), make_demo(n_tasks=20)
    assert long.select(task_ids=short.tasks.task_id).fingerprint() == short.fingerprint()
    assert make_demo(seed=1, n_tasks=8).fingerprint() != short.fingerprint()


def test_answers_are_right(log):
    sums = log.tasks[log.tasks.prompt.str.startswith("Add ")]
    numbers = sums.set_index("task_id").prompt.str.extract(r"Add (\d+) and (\d+)").astype(int).sum(axis=1)
    won = log.episodes[log.episodes.success & log.episodes.task_id.isin(numbers.index)]
    final = log.turns[log.turns.episode_id.isin(won.episode_id)].groupby("episode_id").tail(1)
    said = final.action.str.extract(r"<solution> (-?\d+) </solution>")[0].astype(int)
    assert (said.to_numpy() == numbers[final.task_id].to_numpy()).all() and len(said) > 10
