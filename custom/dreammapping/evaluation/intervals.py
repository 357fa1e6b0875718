"""How sure is a mean over prompts and seeds? Intervals of means, paired differences, shares and other statistics.

Results come in groups: one group per prompt, its members the runs with different seeds. Runs of one prompt resemble each other, so they are
no independent results; the prompts are. Whole prompts are therefore drawn with replacement, each with all its runs, whose spread is part of
the spread of the prompts' means. Drawing runs again within each drawn prompt would count that spread twice (Davison and Hinkley 1997,
section 3.8). If there is one prompt only, its runs are drawn, and the interval tells of that prompt alone.

Plain bootstrap intervals of few prompts are too narrow: drawn means spread less than they should, by sqrt((n - 1) / n), and have the tails of
a normal instead of a t distribution. The quantiles are taken further outside, as Hesterberg (2015, The American Statistician 69:4) advises
("expanded percentile"; with fewer than `FEW` prompts, t standard deviations to each side).
tests/dreammapping/evaluation/test_intervals.py simulates how often the truth is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy import stats

from ..errors import DreamMappingError

T = TypeVar("T")
DRAWS = 10_000
CONFIDENCE = 0.95
FEW = 10
"""With fewer prompts than this, quantiles of draws cannot lie far enough outside (of 5 prompts, 90 % instead of 95 held the truth in
simulations): the interval is then t standard deviations of the draws to each side."""


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval; `low` and `high` are NaN where a single result leaves the spread unknown."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the data speak for a difference. False where the spread is unknown."""
        return self.low > 0.0 or self.high < 0.0

    def within(self, least: float, most: float) -> Interval:
        """Without the part that no data could give: t standard deviations reach beyond 100 % where few prompts differ much."""
        return replace(self, low=max(self.low, least), high=min(self.high, most))

    def as_text(self, digits: int = 2, scale: float = 1.0) -> str:
        """`1.23 [1.10, 1.36]`, all multiplied by `scale`; the value alone where the spread is unknown."""
        value = f"{scale * self.value:.{digits}f}"
        return value if np.isnan(self.low) else f"{value} [{scale * self.low:.{digits}f}, {scale * self.high:.{digits}f}]"


def mean_interval(
    groups: Sequence[Sequence[float]], *, confidence: float = CONFIDENCE, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Mean of the groups' means, so that each prompt counts the same, with its interval.

    Args:
        groups: one non-empty list of finite values per prompt, one value per run; groups may differ in length.
        confidence: how often the interval should hold the truth, in (0, 1).  draws: of the bootstrap.  seed: of its random numbers.

    Raises `DreamMappingError` for no or empty groups, and for values that are not finite.
    """
    return statistic_interval(groups, _mean_of_means, confidence=confidence, draws=draws, seed=seed, quantiles=True)


def paired_interval(
    first: Mapping[tuple[Hashable, Hashable], float], second: Mapping[tuple[Hashable, Hashable], float], **options: float
) -> Interval | None:
    """Mean of `first` - `second` over the runs (prompt, seed) that both have; None if they share none. Options as for `mean_interval`.

    Pairs remove what both share: some prompts are harder than others, whatever the method.
    """
    groups: dict[Hashable, list[float]] = {}
    for key, value in first.items():
        if key in second:
            groups.setdefault(key[0], []).append(value - second[key])
    return mean_interval(list(groups.values()), **options) if groups else None


def share_interval(groups: Sequence[Sequence[bool]], *, confidence: float = CONFIDENCE) -> Interval:
    """Share of true values (each prompt counts the same) with an exact binomial interval, for rates that may be near 0 or 1.

    There the bootstrap fails: no failure in ten draws nothing but zeros. Clopper and Pearson's interval is taken with the effective number of
    results: that which independent results would need for the same spread (Korn and Graubard 1998). It is the number of prompts if all
    runs agree. With one prompt, whose runs then count as independent, it is the number of runs. Arguments and errors as for `mean_interval`.
    """
    values = _checked(groups)
    units = values if len(values) > 1 else [v[None] for v in values[0]]
    means = np.array([v.mean() for v in units])
    share, count = float(means.mean()), len(means)
    if count < 2:
        return Interval(share, float("nan"), float("nan"))
    size, spread = float(count), means.var(ddof=1) / count
    if spread > 0 and 0 < share < 1:
        size = min(share * (1 - share) / spread, float(sum(map(len, units))))
        size *= (stats.t.ppf(0.5 + confidence / 2, sum(map(len, units)) - 1) / stats.t.ppf(0.5 + confidence / 2, count - 1)) ** 2
    tail, successes = (1 - confidence) / 2, share * size
    low = 0.0 if share == 0 else float(stats.beta.ppf(tail, successes, size - successes + 1))
    high = 1.0 if share == 1 else float(stats.beta.ppf(1 - tail, successes + 1, size - successes))
    return Interval(share, low, high)


def statistic_interval(
    groups: Sequence[Sequence[T]],
    statistic: Callable[[list[Sequence[T]]], float],
    *,
    confidence: float = CONFIDENCE,
    draws: int = DRAWS,
    seed: int = 0,
    quantiles: bool = False,
) -> Interval:
    """Any statistic of the groups, with an interval from draws of whole groups (of the members, if there is one group).

    `statistic` gets the drawn groups, some of them several times. With `quantiles` False the interval is the value and t standard deviations of
    the drawn values to each side. That suits statistics which repeated groups shift as a whole, such as Frechet distances:
    their quantiles would not even lie around the value. It tells what other prompts and seeds of the same number would give.
    Other arguments and errors as for `mean_interval`.
    """
    values = _checked(groups)
    units = values if len(values) > 1 else [v[None] for v in values[0]]
    count, value = len(units), float(statistic(list(units)))
    if count < 2:
        return Interval(value, float("nan"), float("nan"))
    chosen = np.random.default_rng(seed).integers(count, size=(draws, count))
    if statistic is _mean_of_means:  # ten thousand calls would say the same, slowly
        drawn = np.array([unit.mean() for unit in units])[chosen].mean(1)
    else:
        drawn = np.array([statistic([units[i] for i in row]) for row in chosen])
    reach = stats.t.ppf(0.5 + confidence / 2, count - 1) * np.sqrt(count / (count - 1))
    if quantiles and count >= FEW:
        outside = stats.norm.cdf(-reach)
        low, high = np.quantile(drawn, (outside, 1 - outside))
    else:
        low, high = value - reach * drawn.std(), value + reach * drawn.std()
    return Interval(value, float(low), float(high))


def _mean_of_means(groups: Sequence[np.ndarray]) -> float:
    return float(np.mean([group.mean() for group in groups]))


def _checked(groups: Sequence[Sequence[T]]) -> list[np.ndarray]:
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    if not values or any(len(v) == 0 for v in values):
        raise DreamMappingError("an interval needs at least one prompt, and at least one result of each")
    if not all(np.isfinite(v).all() for v in values):
        raise DreamMappingError("an interval needs finite values; leave failed runs out and say how many they were")
    return values
