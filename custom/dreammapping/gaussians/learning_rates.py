"""Learning rates over the run: constants, or values interpolated between steps.

The lists are threestudio's: `[v0, v1, s1]`, `[s0, v0, v1, s1]`, and longer `[s0, v0, v1, s1, v2, s2, ...]`. Interpolation is
linear in the logarithm, as Gaussian trainers do. Steps only: a fractional step, which threestudio takes for epochs, is refused.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from ..errors import ConfigError

Schedule = Union[float, int, list]


@dataclass(frozen=True)
class LearningRates:
    """Adam's learning rates per parameter. Defaults: LucidDreamer (its arguments/__init__.py), over its 5000 steps."""

    position: Schedule = field(default_factory=lambda: [0, 5.6e-4, 5.6e-6, 5000])
    """Of means, world units. 1.6e-4 to 1.6e-6, times the scene scale 3.5."""
    feature: Schedule = field(default_factory=lambda: [0, 5e-3, 3e-3, 5000])
    """Of the constant SH coefficient."""
    feature_rest: Union[Schedule, None] = None
    """Of the other SH coefficients; none: 1/20 of `feature`'s first value, constant."""
    opacity: Schedule = 0.05
    """Of the opacity's logit."""
    scaling: Schedule = field(default_factory=lambda: [0, 5e-3, 1e-3, 5000])
    """Of the logarithm of the scales."""
    rotation: Schedule = field(default_factory=lambda: [0, 1e-3, 2e-4, 5000])
    """Of the quaternions."""

    def schedules(self, where: str = "learning rate") -> dict[str, LogLinear]:
        """The parsed schedule of each parameter, under the parameter's name (means, scales, ...).

        `where` is the config path of the block, for messages. Raises ConfigError for a malformed list.
        """
        feature = LogLinear.parse(self.feature, f"{where}.feature_lr")
        if self.feature_rest is None:
            rest = LogLinear((0,), (feature.values[0] / 20,))
        else:
            rest = LogLinear.parse(self.feature_rest, f"{where}.feature_rest_lr")
        return {
            "means": LogLinear.parse(self.position, f"{where}.position_lr"),
            "scales": LogLinear.parse(self.scaling, f"{where}.scaling_lr"),
            "quats": LogLinear.parse(self.rotation, f"{where}.rotation_lr"),
            "opacities": LogLinear.parse(self.opacity, f"{where}.opacity_lr"),
            "sh0": feature,
            "shN": rest,
        }


@dataclass(frozen=True)
class LogLinear:
    """Positive values at increasing steps, joined by straight lines in the logarithm, constant outside."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def parse(cls, value: Any, where: str) -> LogLinear:
        """From a number or a threestudio list. `where` names the config key in messages."""
        if isinstance(value, str) or not isinstance(value, Sequence):
            return cls((0,), (_number(value, where),))
        entries = list(value)
        if len(entries) == 3:
            entries = [0, *entries]
        if len(entries) < 4 or len(entries) % 2:
            raise ConfigError(
                f"{where} is {list(value)}; it must be a number, [value, value, step], or [step, value, value, step, ...]"
            )
        steps = (entries[0], *entries[3::2])
        values = (entries[1], *entries[2::2])
        parsed = cls(tuple(_step(s, where) for s in steps), tuple(_number(v, where) for v in values))
        if any(a >= b for a, b in zip(parsed.steps, parsed.steps[1:])):
            raise ConfigError(f"{where} is {list(value)}; its steps must increase")
        if len(set(parsed.values)) > 1 and min(parsed.values) <= 0:
            raise ConfigError(f"{where} is {list(value)}; values between which it interpolates must be above 0")
        return parsed

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        if step <= self.steps[0]:
            return self.values[0]
        if step >= self.steps[-1]:
            return self.values[-1]
        after = bisect_left(self.steps, step)
        start, end = self.values[after - 1], self.values[after]
        if start == end:
            return start
        share = (step - self.steps[after - 1]) / (self.steps[after] - self.steps[after - 1])
        return math.exp((1 - share) * math.log(start) + share * math.log(end))


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where} contains {value!r}, which is no number") from None
    if not math.isfinite(number) or number < 0 or isinstance(value, bool):
        raise ConfigError(f"{where} contains {value!r}; a learning rate must be finite and not negative")
    return number


def _step(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(
            f"{where} contains the step {value!r}; steps must be whole numbers (threestudio reads 1000.0 as epochs)"
        )
    return value
