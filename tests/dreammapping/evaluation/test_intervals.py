"""Intervals, against scipy and against the truth of simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dreammapping.errors import DreamMappingError
from dreammapping.evaluation.intervals import Interval, mean_interval, paired_interval, share_interval, statistic_interval
from scipy import stats

TRUTH = 0.7


def experiment(rng, prompts: int, seeds: int, between: float, within: float, skewed: bool = False) -> np.ndarray:
    """[prompts, seeds] results; each prompt has a level of its own around `TRUTH`."""
    level = rng.exponential(size=(prompts, 1)) - 1 if skewed else rng.normal(size=(prompts, 1))
    return TRUTH + between * level + within * rng.normal(size=(prompts, seeds))


def coverage(make, interval, truth: float = TRUTH, repeats: int = 600) -> float:
    """How often the interval of an experiment holds the truth."""
    rng = np.random.default_rng(7)
    found = [interval(make(rng)) for _ in range(repeats)]
    return float(np.mean([i.low <= truth <= i.high for i in found]))


def quick(groups) -> Interval:
    return mean_interval(groups, draws=1000)


@pytest.mark.parametrize(
    ("prompts", "seeds", "between", "within"),
    [(10, 3, 1.0, 1.0), (10, 3, 0.0, 1.0), (10, 1, 1.0, 0.3), (5, 4, 1.0, 0.5), (3, 2, 1.0, 0.5), (25, 2, 2.0, 1.0), (1, 8, 0.0, 1.0)],
)
def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says(prompts, seeds, between, within):
    share = coverage(lambda rng: experiment(rng, prompts, seeds, between, within), quick)
    assert 0.92 <= share <= 0.98  # 600 repeats: a standard error of 0.009


def test_other_confidences_are_kept_too():
    def interval(groups):
        return mean_interval(groups, draws=1000, confidence=0.8)

    assert 0.75 <= coverage(lambda rng: experiment(rng, 10, 3, 1.0, 1.0), interval) <= 0.85


def test_skewed_results_cost_little():
    assert coverage(lambda rng: experiment(rng, 12, 3, 1.0, 0.2, skewed=True), quick) > 0.88


def test_taking_runs_for_independent_would_not_hold_the_truth():
    """The simulation can tell a wrong interval from a right one."""
    share = coverage(lambda rng: experiment(rng, 10, 3, 1.0, 0.3).reshape(1, -1), quick)
    assert share < 0.85


def test_the_interval_of_a_paired_difference_holds_the_truth_and_is_shorter_than_unpaired_ones():
    widths = []

    def make(rng):
        level = 3 * rng.normal(size=(10, 1))
        return level + rng.normal(size=(10, 2)) * 0.5 + TRUTH, level + rng.normal(size=(10, 2)) * 0.5

    def interval(both):
        first, second = ({(p, s): v for (p, s), v in np.ndenumerate(values)} for values in both)
        found = paired_interval(first, second, draws=1000)
        widths.append((found.high - found.low) / (quick(both[0]).high - quick(both[0]).low))
        return found

    assert 0.92 <= coverage(make, interval, repeats=400) <= 0.98
    assert np.median(widths) < 0.5


@pytest.mark.parametrize("rate", [0.03, 0.3, 0.9])
def test_the_interval_of_a_share_holds_the_truth(rate):
    def make(rng):  # beta-binomial: prompts differ in how often they fail
        own = rng.beta(2 * rate, 2 * (1 - rate), size=(12, 1))
        return rng.random((12, 3)) < own

    assert coverage(make, share_interval, rate) >= 0.93


def test_shares_of_single_runs_have_scipys_exact_interval():
    for successes in (0, 10):
        known = stats.binomtest(successes, 10).proportion_ci(0.95)
        found = share_interval([[i < successes] for i in range(10)])
        assert (found.low, found.high) == pytest.approx((known.low, known.high))
    for successes in (5, 20, 30):  # the spread with n - 1 counts 39 independent results
        known = stats.binomtest(successes, 40).proportion_ci(0.95)
        found = share_interval([[i < successes] for i in range(40)])
        assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.005)


def test_runs_that_agree_within_prompts_count_once():
    once, thrice = ([[i < 3] * n for i in range(10)] for n in (1, 3))
    assert share_interval(thrice).low == pytest.approx(share_interval(once).low, abs=0.03)
    assert share_interval([[False] * 3] * 10).high == share_interval([[False]] * 10).high > 0.3


def test_the_mean_is_of_prompts_and_the_interval_is_hesterbergs():
    groups = [[1.0, 2.0, 3.0], [10.0], [4.0, 4.0]]
    assert mean_interval(groups).value == pytest.approx((2 + 10 + 4) / 3)
    values = np.random.default_rng(0).normal(size=40)
    found = mean_interval([[v] for v in values], draws=40_000)
    outside = stats.norm.cdf(-stats.t.ppf(0.975, 39) * math.sqrt(40 / 39))
    known = stats.bootstrap((values,), np.mean, n_resamples=40_000, confidence_level=1 - 2 * outside, method="percentile", rng=1)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval), abs=0.01)


def test_another_statistic_gets_whole_groups_and_an_interval_around_its_value():
    values = np.random.default_rng(1).normal(size=(30, 2, 4))  # 30 prompts, 2 runs, 4 numbers each
    found = statistic_interval(values, lambda groups: float(np.concatenate(groups).mean()), draws=2000)
    assert found.value == pytest.approx(values.mean())
    half = stats.t.ppf(0.975, 29) * values.mean((1, 2)).std(ddof=1) / math.sqrt(30)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.01)
    seen = []
    statistic_interval(values, lambda groups: seen.append({g.shape for g in groups}) or 0.0, draws=5)
    assert seen == [{(2, 4)}] * 6


def test_only_pairs_count():
    first = {("mug", 0): 3.0, ("mug", 1): 5.0, ("chair", 0): 9.0}
    assert paired_interval(first, {("mug", 0): 1.0, ("mug", 1): 1.0, ("duck", 0): 4.0}).value == 3.0
    assert paired_interval(first, {("duck", 0): 4.0}) is None
    both = paired_interval(first, {key: 1.0 for key in first})
    assert both == mean_interval([[2.0, 4.0], [8.0]])  # a prompt's runs together


def test_a_single_result_has_no_interval_and_the_same_seed_gives_the_same():
    for alone in (mean_interval([[2.0]]), share_interval([[True]])):
        assert math.isnan(alone.low) and math.isnan(alone.high) and not alone.excludes_zero
    assert mean_interval([[2.0]]).as_text() == "2.00"
    groups = [[v] for v in np.random.default_rng(2).normal(size=12)]
    assert mean_interval(groups, seed=1) == mean_interval(groups, seed=1) != mean_interval(groups, seed=2)


def test_intervals_in_words():
    assert Interval(0.5, 0.25, 0.75).as_text(1, 100) == "50.0 [25.0, 75.0]"
    assert Interval(0.9, 0.5, 1.3).within(0, 1) == Interval(0.9, 0.5, 1)
    assert Interval(0.1, -0.2, 0.4).within(0, math.inf) == Interval(0.1, 0, 0.4)
    assert math.isnan(Interval(0.5, math.nan, math.nan).within(0, 1).low)
    assert Interval(1, 0.1, 2).excludes_zero and Interval(-1, -2, -0.1).excludes_zero and not Interval(0.1, -1, 1).excludes_zero


@pytest.mark.parametrize("groups", [[], [[1.0], []], [[1.0], [math.nan]]])
def test_what_has_no_mean_is_refused(groups):
    for interval in (mean_interval, share_interval):
        with pytest.raises(DreamMappingError, match="an interval needs"):
            interval(groups)
