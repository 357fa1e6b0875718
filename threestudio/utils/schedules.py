"""Numbers that change during training: `C` and `C_max`.

A schedule is a number (constant) or a list of knots:

- `[v0, v1, s1]`: from v0 at step 0 to v1 at s1
- `[s0, v0, v1, s1]`: v0 until s0, then to v1 at s1, then constant
- `[s0, v0, v1, s1, v2, s2, ...]`: further (value, step) pairs

The type of a segment's end decides its clock: an int counts optimizer steps, a float counts epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from omegaconf import ListConfig

from threestudio.errors import ConfigError, suggest

INTERPOLATIONS = ("linear", "exp")


def C(value: Any, epoch: int, global_step: int, interpolation: str = "linear") -> float:
    """Value of a schedule at this epoch and step.

    `interpolation` is "linear" or "exp" (linear in the logarithm; all values must be positive).

    Raises:
        TypeError: neither a number nor a list.
        ConfigError: a list that is no schedule.
    """
    if is_number(value):
        return value
    steps, values = knots(value)
    # With several segments the optimizer step picks the one in force, as in threestudio.
    segment = 0
    for i in range(1, len(steps) - 1):
        if global_step >= steps[i]:
            segment = i
    start, end = steps[segment], steps[segment + 1]
    now = global_step if isinstance(end, int) else epoch
    share = float(now >= end) if end <= start else min(max((now - start) / (end - start), 0.0), 1.0)
    return _between(values[segment], values[segment + 1], share, interpolation)


def C_max(value: Any) -> float:
    """The largest value a schedule takes."""
    return value if is_number(value) else max(knots(value)[1])


def is_number(value: Any) -> bool:
    """True for ints and floats (NumPy's too), not for booleans."""
    return isinstance(value, Real) and not isinstance(value, bool)


def knots(value: Any) -> tuple[list[Any], list[Any]]:
    """Steps and values of a schedule list, equally many of each.

    Raises:
        TypeError: not a list.
        ConfigError: wrong length, or an entry that is not a number.
    """
    if not isinstance(value, (ListConfig, Sequence)) or isinstance(value, str):
        raise TypeError(f"A scalar or a schedule (a list) is expected, not {type(value).__name__} {value!r}.")
    entries = list(value)
    problem = schedule_problem(entries)
    if problem:
        raise ConfigError(f"{entries} is no schedule: {problem}")
    if len(entries) == 3:
        entries = [0, *entries]
    start, first, *rest = entries
    return [start, *rest[1::2]], [first, *rest[0::2]]


def schedule_problem(entries: list[Any]) -> str | None:
    """What keeps a list from being a schedule; None when nothing does."""
    if not all(is_number(entry) for entry in entries):
        return "its entries must be numbers."
    if len(entries) != 3 and (len(entries) < 4 or len(entries) % 2):
        return (
            f"it has {len(entries)} entries; write [v0, v1, end] or [start, v0, v1, end], "
            "followed by further pairs of value and step."
        )
    return None


def _between(first: float, last: float, share: float, interpolation: str) -> float:
    if interpolation == "linear":
        return first + (last - first) * share
    if interpolation != "exp":
        raise ConfigError(f"'{interpolation}' is no interpolation. {suggest(interpolation, INTERPOLATIONS)}")
    if first <= 0 or last <= 0:
        raise ConfigError(f"Exponential interpolation needs positive values, not {first} and {last}.")
    return math.exp((1.0 - share) * math.log(first) + share * math.log(last))
