"""Primary contrasts: p values, Holm's rule and verdicts, each against a plain reading of it."""
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, ttest_1samp

from mtrouter_nb.analyses.primary import holm, judged, p_above, p_difference, p_saving, primary_contrasts
from mtrouter_nb.core.stats import bootstrap_intervals


def test_holm_rejects_what_the_stepwise_rule_rejects():
    "At any level, the adjusted p values below it are those of the rule as Holm wrote it."
    rng = np.random.default_rng(0)
    for _ in range(100):
        p = rng.random(5) ** 3
        for level in (0.01, 0.05, 0.3):
            rejected, left = set(), list(range(5))
            while left:
                smallest = min(left, key=lambda i: p[i])
                if p[smallest] > level / len(left):
                    break
                rejected.add(smallest)
                left.remove(smallest)
            assert rejected == set(np.flatnonzero(holm(p) <= level))


@pytest.mark.parametrize("paper", ["MTRouter", "LLMRouterBench"])
def test_at_most_eight_questions_a_paper_each_with_its_margin(paper):
    listed = primary_contrasts(paper)
    assert 0 < len(listed) <= 8 and listed["id"].is_unique and listed["margin"].eq(2).all()
    assert set(listed["kind"]) <= {"difference", "saving"}


@pytest.mark.parametrize("seed", range(5))
def test_the_p_value_of_an_interval_is_near_that_of_a_t_test(seed):
    d = np.random.default_rng(seed).normal(0.1, 1, 600)
    low, high = bootstrap_intervals(d, seed=seed)
    assert abs(p_difference(d.mean(), low, high)[0] - ttest_1samp(d, 0).pvalue) < 0.03


def test_p_above_is_one_sided_and_knows_an_interval_without_length():
    assert np.isclose(p_above(1, 0, 2, bound=-1), norm.sf(2 * norm.ppf(.975)))
    assert [p_above(v, v, v) for v in (-1.0, 0.0, 1.0)] == [1, 1, 0]


def test_a_saving_needs_both_and_fails_by_either():
    rng = np.random.default_rng(0)
    for _ in range(200):
        saved, lead = rng.normal(0, 3, 2)
        p, is_for = p_saving((saved, saved - 2, saved + 2), (lead, lead - 2, lead + 2), 2.0)
        each = [norm.sf(z * norm.ppf(.975) / 2) for z in (saved, lead + 2)]
        assert is_for == (max(each) < min(1, 2 * (1 - max(each)))) and 0 <= p <= 1
        if p < .05 and is_for: assert max(each) < .025
        if p < .05 and not is_for: assert max(each) > 1 - .0125


def test_verdicts_and_a_contrast_without_numbers():
    asked = pd.DataFrame(dict(id=list("abcd"), kind="difference", margin=2.0))
    found = dict(a=(3, 2.5, 3.5), b=(1, .5, 1.5), c=(-3, -3.5, -2.5), d=(3, -1, 7))
    assert judged(asked, found)["verdict"].tolist() == ["holds", "equal", "fails", "unclear"]
    many = pd.DataFrame(dict(id=[f"n{i}" for i in range(8)], kind="difference", margin=2.0))
    weak = {f"n{i}": (2.4, .2, 4.6) for i in range(8)}
    assert judged(asked.head(1), dict(a=(2.4, .2, 4.6)))["verdict"][0] == "holds"
    assert set(judged(many, weak)["verdict"]) == {"unclear"}, "one of eight needs more than one alone"
    unknown = judged(asked, found | dict(b=(np.nan,) * 3))
    assert unknown["verdict"].tolist() == ["holds", "not testable", "fails", "unclear"]
    with pytest.raises(ValueError, match="no numbers for d"): judged(asked, {k: found[k] for k in "abc"})
