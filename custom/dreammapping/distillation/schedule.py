"""Numbers of a loss that change during the run, in threestudio's notation; here the clock is always the step."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError

Schedule = float | list[float]
"""A number, or [start_step, start_value, end_value, end_step]: linear in between, constant outside."""


def scheduled(value: float | Sequence[float], step: float) -> float:
    """Value of a `Schedule` at optimization step `step`. Raises ConfigError for a list of another form."""
    if not isinstance(value, Sequence):
        return float(value)
    if len(value) != 4 or value[0] > value[3]:
        raise ConfigError(
            f"{list(value)} is no schedule; write a number or [start_step, start_value, end_value, end_step], "
            "the start not after the end"
        )
    start, first, last, end = value
    if step >= end:  # also where both are one step, as in a run too short for the two
        return float(last)
    return first + (last - first) * max(step - start, 0.0) / (end - start)
