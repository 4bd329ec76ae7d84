"""Every router of the bench on a made-up world: no look at test labels, stored once, chosen on validation."""
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.analyses.primary import MEAN_OF_ROUTERS, mean_of_routers
from mtrouter_nb.core.store import Content, reached, result_key
from mtrouter_nb.data.outcomes import OutcomeMatrix, from_frame, prompt_order_split, split
from mtrouter_nb.single_turn import evaluation as B
from mtrouter_nb.single_turn import metrics as bm
from mtrouter_nb.single_turn.agreement_cascade import AgreementCascade, plain, play
from mtrouter_nb.single_turn.interface import (AvengersProCurve, Choices, LogisticPerModel, NearestNeighbours,
                                               Queries, embedllm, embedllm_published, routerdc)
from mtrouter_nb.single_turn.metrics import config_table, domain_table

N, M = 120, 4
MODELS = ("cheap", "gpt-4o-mini-2024-07-18", "mid", "dear")


@pytest.fixture(scope="module")
def world():
    "120 prompts in two datasets; the vector says which of two models is right, `dear` mostly is."
    rng = np.random.default_rng(0)
    topic = rng.integers(0, 2, N)
    score = (rng.random((N, M)) < np.where(topic[:, None] == 0, [.9, .2, .5, .9], [.1, .9, .5, .9])).astype(float)
    score[3, 0] = np.nan
    tasks = pd.DataFrame(dict(task_id=[f"q{i}" for i in range(N)], domain=np.where(np.arange(N) % 3, "a", "b"),
                              prompt=[f"prompt {i // 2 * 2 if i < 10 else i}" for i in range(N)], repeat=0))
    none = np.full((N, M), np.nan)
    cost = np.tile([.001, .002, .01, .1], (N, 1)) * rng.uniform(.5, 1.5, (N, 1))
    matrix = OutcomeMatrix("made up", tasks, MODELS, score, cost, none, none, none, "simulated")
    vectors = (np.eye(8)[topic] + rng.normal(0, .2, (N, 8))).astype("f4")
    answers = {MODELS[1]: np.c_[np.nan_to_num(score[:, 1]), rng.normal(size=(N, 3))].astype("f4")}
    said = pd.DataFrame({m: np.where(score[:, i] == 1, "right", f"wrong {m}") for i, m in enumerate(MODELS)})
    return matrix, Queries(vectors, tasks, answers, said)


@pytest.mark.parametrize("name", B.ROUTERS)
def test_no_choice_depends_on_test_labels(world, name):
    matrix, queries = world
    make = (lambda seed: replace(B.ROUTERS[name](seed), steps=60)) if name == "GraphRouter" else B.ROUTERS[name]
    _, _, _, test = B.rows_of(matrix, 42)
    score, cost, rng = matrix.score.copy(), matrix.cost.copy(), np.random.default_rng(1)
    score[test], cost[test] = rng.permuted(score[test], axis=1), rng.permuted(cost[test], axis=1)
    one = B.run_fit(matrix, queries, make(42), 42)
    two = B.run_fit(replace(matrix, score=score, cost=cost), queries, make(42), 42)
    assert len(one.settings) and np.array_equal(one.answerer, two.answerer), name
    assert np.array_equal(one.held_score, two.held_score, equal_nan=True)


def test_fits_are_stored_and_not_made_again(world, tmp_path, monkeypatch):
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))
    routers = {name: B.ROUTERS[name] for name in ("kNN", "Avengers")}
    first = B.bench_results(*world, routers, (42, 999), workers=1, progress=False)
    monkeypatch.setattr(B, "run_fit", None)
    again = B.bench_results(*world, routers, (42, 999), workers=1, progress=False)
    for key, fit in first.fits.items():
        for field, value in vars(fit).items():
            if field not in ("note", "published"): np.testing.assert_array_equal(value, getattr(again.fits[key], field))


def test_a_router_that_changes_is_fitted_anew(world, tmp_path, monkeypatch):
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))

    def fitted(make): return B.bench_results(*world, {"mine": make}, (42,), 1, False).fits["mine", 42]
    def narrow(seed): return NearestNeighbours(ks=(1,), seed=seed)
    def wide(seed): return NearestNeighbours(ks=(40,), seed=seed)
    one, two = fitted(narrow), fitted(wide)
    assert not np.array_equal(one.answerer, two.answerer)
    def of(ks): return lambda seed: NearestNeighbours(ks=ks, seed=seed)
    for makers in [[partial(NearestNeighbours, ks, .1) for ks in ((1,), (40,))], [of((1,)), of((40,))]]:
        three, four = map(fitted, makers)
        assert np.array_equal(three.answerer, one.answerer) and np.array_equal(four.answerer, two.answerer)


def test_two_routers_of_one_module_under_one_name_are_told_apart(world):
    makers = [embedllm, embedllm_published, routerdc, B.ROUTERS["MODEL-SAT"], B.ROUTERS["MTRouter"]]

    memo = {}

    def keys(router): return result_key(B._fit, *world, router, 42, memo=memo)
    assert len({keys(make(42)) for make in makers}) == len(makers)
    typed = {}
    exec("class Typed:\n    def __repr__(self): return 'Typed()'", typed)
    assert keys(typed["Typed"]()) == keys(typed["Typed"]())


def test_a_fit_is_known_by_its_own_router_and_not_by_the_others(world):
    content = Content()
    content.add((B._fit, *world, B.ROUTERS["RouterDC"](42), 42))
    names = {name for piece in reached(content).pieces for name in piece.binds}
    assert {"RouterDC", "stable_hash"} <= names, "the hash makes the split"
    assert not {"GraphRouter", "FrugalGPT", "AgreementCascade", "ROUTERS"} & names


def test_the_setting_is_chosen_on_validation_rows_alone(world, tmp_path, monkeypatch):
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))
    matrix, queries = world
    bench = B.bench_results(matrix, queries, {"Avengers-Pro": B.ROUTERS["Avengers-Pro"]}, (42,), 1, False)
    fit = bench.fits["Avengers-Pro", 42]
    held = np.concatenate(B.rows_of(matrix, 42)[1:3])
    assert sorted(held) == sorted(B.rows_of(matrix, 42)[0])
    names = matrix.tasks["domain"].to_numpy()[held]
    accuracy = [np.mean([np.nanmean(row[names == d]) for d in dict.fromkeys(names)]) for row in fit.held_score]
    chosen = bench.chosen(42)
    row = chosen.configs["method"].tolist().index("Avengers-Pro")
    np.testing.assert_allclose(chosen.score[row], fit.score[int(np.argmax(accuracy))])
    table = config_table(domain_table(bench.validation(42)))
    np.testing.assert_allclose(table.loc[table["method"] == "Avengers-Pro", "AvgAcc"], accuracy)


def test_a_router_without_what_it_needs_leaves_an_empty_row_with_a_note(world, tmp_path, monkeypatch):
    monkeypatch.setenv("MTROUTER_CACHE", str(tmp_path))
    matrix, queries = world
    bare = Queries(queries.embeddings, queries.tasks)
    routers = {name: B.ROUTERS[name] for name in ("FrugalGPT", "Agreement cascade", "kNN")}
    bench = B.bench_results(matrix, bare, routers, (42,), 1, False)
    assert bench.routers == ["kNN"] and set(bench.notes) == {"FrugalGPT", "Agreement cascade", *B.ABSENT}


def test_any_other_error_is_not_taken_for_a_lack_of_input(world):
    class Broken:
        def fit(self, matrix, queries): raise NotImplementedError("an operation that torch lacks")
    with pytest.raises(NotImplementedError, match="torch lacks"):
        B.run_fit(*world, Broken(), 42)


# ---------------------------------------------------------------------------- choices and simple routers

def test_every_called_model_is_paid_and_others_cost_nothing(world):
    matrix, _ = world
    rng = np.random.default_rng(0)
    answerer, paid = rng.integers(0, M, (3, N)), rng.random((3, N, M)) < .5
    cost = matrix.cost.copy()
    cost[:, 2] = np.nan
    score, dollars = Choices([0, 1, 2], answerer, paid).outcome(replace(matrix, cost=cost))
    for k in range(3):
        for i in range(N):
            spent = [cost[i, m] for m in range(M) if paid[k, i, m]]
            np.testing.assert_allclose(dollars[k, i], sum(spent) if spent else 0)
            np.testing.assert_equal(score[k, i], matrix.score[i, answerer[k, i]])


def test_neighbours_are_those_of_a_plain_loop(world):
    matrix, queries = world
    router = NearestNeighbours(ks=(7,)).fit(matrix, queries)
    unit = queries.embeddings / np.linalg.norm(queries.embeddings, axis=1, keepdims=True)
    got = router.choose(queries).ranking
    for i in range(0, N, 17):
        near = np.argsort(-(unit @ unit[i]))[:7]
        np.testing.assert_allclose(got[i], np.nanmean(matrix.score[near], 0), rtol=1e-5)


def test_a_logistic_regression_with_half_points_is_that_of_doubled_rows(world):
    matrix, queries = world
    half = replace(matrix, score=np.where(np.arange(N)[:, None] % 5 == 0, .5, np.nan_to_num(matrix.score)))
    router = LogisticPerModel(strengths=(.3,)).fit(half, queries)
    twice = np.r_[np.arange(N), np.arange(N)]
    upper = np.ceil(half.score)
    both = replace(half.take(twice), score=np.r_[np.floor(half.score), upper])
    # every row twice weighs double, so half the penalty's inverse
    other = LogisticPerModel(strengths=(.15,)).fit(both, queries.take(twice))
    np.testing.assert_allclose(router.choose(queries).ranking, other.choose(queries).ranking, atol=.02)


def test_without_any_price_there_is_one_setting(world):
    matrix, queries = world
    free = replace(matrix, cost=np.full((N, M), np.nan))
    for router in (NearestNeighbours(), LogisticPerModel(), AvengersProCurve()):
        made = router.fit(free, queries).choose(queries)
        assert made.answerer.shape == (1, N), router.name


# ---------------------------------------------------------------------------- agreement

def test_the_cascade_is_a_plain_loop_over_prompts():
    rng = np.random.default_rng(0)
    code = rng.integers(0, 3, (300, 4))
    answerer, asked = play((2, 0, 3), code, trusted=0)
    for i in range(300):
        a, b, c = code[i, [2, 0, 3]]
        want = 2 if a == b or c == a else 0 if c == b else 0
        assert answerer[i] == want and asked[i].tolist() == [True, True, a != b]


def test_models_that_say_nothing_do_not_agree(world):
    matrix, queries = world
    silent = Queries(queries.embeddings, queries.tasks, None, queries.said.assign(cheap=None, mid=None))
    made = AgreementCascade().fit(matrix, silent)
    code_of_nothing = made.choose(silent)
    assert code_of_nothing.answerer.shape == (len(made.cost_weights), N)
    empty = pd.DataFrame(dict(a=[None, "1"], b=[None, "1"], c=["2", "3"]), dtype=object)
    from mtrouter_nb.single_turn.agreement_cascade import _codes
    code = _codes(empty)
    assert code[0, 0] != code[0, 1] and code[1, 0] == code[1, 1]


@pytest.mark.parametrize("one, other", [("$1,200", "1200.0"), ("[1,  2]", "[1,2]"), ("'ab'", "ab"), ("3}", "3"),
                                        (r"\frac{1}{2}", r"\dfrac{1}{2}"), ("50%", "50")])
def test_dressing_does_not_matter(one, other): assert plain(one) == plain(other)


@pytest.mark.parametrize("one, other", [("1.5", "15"), ("'a b'", "'ab'"), ("[1, 2]", "[2, 1]"), ("x+1", "x-1")])
def test_meaning_does(one, other): assert plain(one) != plain(other)


# ---------------------------------------------------------------------------- splits

def test_equal_prompts_stay_together_and_other_datasets_move_nobody(world):
    matrix, _ = world
    train, test = split(matrix, 42)
    prompts = list(zip(matrix.tasks["domain"], matrix.tasks["prompt"]))
    assert len(set(prompts)) < N and not {prompts[i] for i in train} & {prompts[i] for i in test}
    one = matrix.select(domains=["a"])
    kept = set(one.tasks["task_id"].iloc[split(one, 42)[0]])
    assert kept == set(matrix.tasks["task_id"].iloc[train]) & set(one.tasks["task_id"])


def test_a_prompt_of_two_datasets_stands_on_one_side():
    "Of 200 prompts in two datasets of 300 each, none parts; shares and rows of their own stay, in any row order."
    shared = [f"Shared  question {i}?" for i in range(200)]
    rows = [("a", p) for p in shared] + [("b", p.upper().replace("  ", " ")) for p in shared]
    rows += [(d, f"{d} alone {i}") for d in "ab" for i in range(100)] + [("c", f"c alone {i}") for i in range(50)]
    frame = pd.DataFrame(rows, columns=["domain", "prompt"]).assign(model="m", score=1.0)
    frame["task_id"] = [f"{d}/{i}" for i, d in enumerate(frame["domain"])]
    both, other = from_frame(frame, "x"), from_frame(frame.sample(frac=1, random_state=0), "x")
    for seed in (42, 999):
        train, test = split(both, seed)
        said = both.tasks["prompt"].map(lambda p: " ".join(p.split()).casefold())
        assert not set(said.iloc[train]) & set(said.iloc[test]) and len(train) + len(test) == len(both)
        assert both.tasks["domain"].iloc[train].value_counts().to_dict() == dict(a=210, b=210, c=35)
        chosen = set(both.tasks["task_id"].iloc[train])
        assert set(other.tasks["task_id"].iloc[split(other, seed)[0]]) == chosen
        for alone in ("a", "c"):  # the first of those that share, and one that shares nothing
            one = both.select(domains=[alone])
            assert set(one.tasks["task_id"].iloc[split(one, seed)[0]]) == chosen & set(one.tasks["task_id"])


def test_the_papers_split_is_one_stream_of_random_numbers(world):
    import random
    matrix, _ = world
    train, test = prompt_order_split(matrix, 7)
    rng, want = random.Random(7), set()
    for dataset in sorted(matrix.domains):
        prompts = list(dict.fromkeys(matrix.tasks.loc[matrix.tasks["domain"] == dataset, "prompt"]))
        order = list(range(len(prompts)))
        rng.shuffle(order)
        want |= {(dataset, prompts[i]) for i in order[:int(.7 * len(prompts))]}
    got = matrix.tasks.iloc[train]
    assert set(zip(got["domain"], got["prompt"])) == want and len(train) + len(test) == N


def printed(fit, place):
    "`fit` as of a router that was published at the setting `place`."
    object.__setattr__(fit, "published", place)
    return fit


def test_the_published_setting_stands_beside_the_chosen_one(world):
    "A router that validation tells never to route says so, and shows what its published setting does."
    matrix, queries = world
    single = B.run_fit(matrix, queries, B.ROUTERS["kNN"](42), 42)
    train, one, other, test = B.rows_of(matrix, 42)
    best, held = bm.best_single(matrix.take(train)), np.r_[one, other]
    def always(model, rows): return matrix.score[rows, model], matrix.cost[rows, model]
    def fit(worse):
        tables = [t for rows in (test, held) for t in np.stack([always(m, rows) for m in (best, worse)], 1)]
        answerer = np.repeat([[best], [worse]], len(test), 1)
        return printed(B.Fit(np.array([0., 1]), answerer, *(t.astype("f4") for t in tables), np.zeros((0, 0))), 1)
    worst = int(np.nanargmin(np.nanmean(matrix.score[train], 0)))
    bench = B.Bench(matrix, queries, {("Two", 42): fit(worst), ("kNN", 42): single})
    table = B.performance(bench).query("metric == 'LeadOverBest'").set_index(["method", "point"])
    chosen, published = (table.loc[("Two", point)] for point in (B.CHOSEN_POINT, B.PUBLISHED_POINT))
    assert abs(chosen[["value", "low", "high"]]).max() < 1e-9 and chosen["as_best"] == 1
    assert published["value"] < 0 and published["as_best"] == 0 and chosen["top_share"] == published["top_share"] == 1
    assert ("kNN", B.PUBLISHED_POINT) not in table.index and table.loc[("kNN", B.CHOSEN_POINT), "top_share"] < 1
    saving = B.curves(bench).query("method == 'Two' and chosen == @bm.CHOSEN").set_index("metric")
    assert saving.loc[["Saving", "SavingLead", "SavingReached"], "value"].tolist() == pytest.approx([0, 0, 1], abs=1e-6)


def test_several_fits_of_a_seed_are_one_router(world):
    matrix, queries = world
    def fit(seed, n): return B.run_fit(matrix, queries, B.ROUTERS["kNN"](n), seed)
    alone = {("Logistic", seed): B.run_fit(matrix, queries, B.ROUTERS["Logistic"](1), seed) for seed in (42, 999)}
    made = {("kNN", seed): fit(seed, 1) for seed in (42, 999)}
    made["kNN", 999] = replace(made["kNN", 999], note="did not learn")
    more = {("kNN", seed): [fit(seed, n) for n in (2, 3)] for seed in (42, 999)}
    benches = B.Bench(matrix, queries, alone), B.Bench(matrix, queries, alone | made, more=more)
    one, many = (B.performance(bench).query("metric == 'AvgAcc'").set_index("method") for bench in benches)
    shown = ["value", "low", "high", "seeds", "as_best", "top_share"]
    pd.testing.assert_frame_equal(one.loc[["Logistic"], shown], many.loc[["Logistic"], shown])
    assert many.at["kNN", "seeds"] == 2 and benches[1].runs[2] == (42, 2)
    assert many.at["kNN", "note"] == "did not learn in 1 of 6 fits"


def test_the_mean_of_routers_leads_by_the_mean_of_their_leads(world):
    routers = {name: B.ROUTERS[name] for name in ("kNN", "Avengers", "Avengers-Pro", "MODEL-SAT")}
    bench = B.bench_results(*world, routers, (42, 999), 1, False)
    runs = [mean_of_routers(bench, *at, without=("MODEL-SAT",)) for at in bench.runs]
    leads = bm.over_seeds(runs, resamples=0).query("metric == 'LeadOverBest'").set_index("method")["value"]
    assert np.isclose(leads[MEAN_OF_ROUTERS], leads[["Avengers", "Avengers-Pro"]].mean()), "kNN is a yardstick"
