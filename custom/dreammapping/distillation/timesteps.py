"""Which t a step trains on. Each schedule answers `bounds(step)`; drawing from them is common to all.

Steps are integers 0..T-1 and both bounds are inclusive. `shared` draws one t for the batch instead of one per image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..registry import Registry
from ..settings import parse_settings, to_plain

TIMESTEPS: Registry[type["Timesteps"]] = Registry("timesteps.type")


@dataclass
class Timesteps:
    """Base: draws uniformly between the bounds of the current step. Fields of a subclass are its config keys."""

    shared: bool = False

    scheduled: ClassVar[tuple[str, ...]] = ()
    """Fields that may hold a schedule; whoever owns the clock writes their evaluated numbers back before each draw."""

    def bounds(self, step: int, total: int) -> tuple[int, int]:
        """Smallest and largest t (both inclusive) at optimization step `step`, for a schedule of `total` steps."""
        raise TypeError(f"{type(self).__name__} must define bounds(step, total)")

    def draw(self, batch: int, step: int, total: int, generator: torch.Generator) -> Tensor:
        """[batch] int64 on the CPU."""
        low, high = self.bounds(step, total)
        if not 0 <= low <= high < total:
            raise ConfigError(
                f"timesteps: the bounds [{low}, {high}] at step {step} must lie within [0, {total - 1}] in this order"
            )
        count = 1 if self.shared else batch
        return torch.randint(low, high + 1, (count,), generator=generator).expand(batch)

    def earlier(self, batch: int, step: int, total: int) -> Tensor | None:
        """[batch] int64 on the CPU: the less noisy step each t is paired with, for losses that compare two steps.

        None, the default, leaves it to the loss.
        """
        return None


@TIMESTEPS.register("uniform")
@dataclass
class Uniform(Timesteps):
    """t ~ U{min_step..max_step}; by default the whole schedule, the paper's Algorithm 1."""

    min_step: int = 0
    max_step: int | None = None

    def bounds(self, step: int, total: int) -> tuple[int, int]:
        return self.min_step, total - 1 if self.max_step is None else self.max_step


@TIMESTEPS.register("percent")
@dataclass
class Percent(Timesteps):
    """t ~ U{int(T min)..int(T max)}, threestudio's rule. The fractions may be schedules like [0, 0.98, 0.5, 5000].

    `sqrt_anneal` collapses both bounds onto min + (max - min) (1 - sqrt(step / trainer_max_steps)) (HiFA).
    """

    min_step_percent: float | list[float | int] = 0.02
    max_step_percent: float | list[float | int] = 0.98
    sqrt_anneal: bool = False
    trainer_max_steps: int = 25000

    scheduled: ClassVar[tuple[str, ...]] = ("min_step_percent", "max_step_percent")

    def bounds(self, step: int, total: int) -> tuple[int, int]:
        low, high = self.min_step_percent, self.max_step_percent
        if isinstance(low, list) or isinstance(high, list):
            raise ConfigError(
                "timesteps: a step schedule must be evaluated before drawing (the guidance does it in update_step)"
            )
        if self.sqrt_anneal:
            left = 1 - min(step / self.trainer_max_steps, 1.0) ** 0.5
            low = high = low + (high - low) * left
        return int(total * low), min(int(total * high), total - 1)


@TIMESTEPS.register("luciddreamer")
@dataclass
class LucidDreamer(Timesteps):
    """LucidDreamer's: one t per batch, largest value falling linearly from 980 to 500 over 1500 steps, then constant.

    In its code an index is uniform on [20, 500 + floor(480 w)) with w = 1 - min(step / 1500, 1), and index i
    means t = i + 1.
    """

    shared: bool = True
    min_index: int = 20
    end_index: int = 500
    start_index: int = 980
    anneal_steps: int = 1500

    def bounds(self, step: int, total: int) -> tuple[int, int]:
        left = 1 - min(step / self.anneal_steps, 1.0) if self.anneal_steps > 0 else 0.0
        upper = self.end_index + int((self.start_index - self.end_index) * left)
        return self.min_index + 1, min(upper, total - 1)


@TIMESTEPS.register("anneal")
@dataclass
class Anneal(Timesteps):
    """A deterministic t falling linearly from `start` to `end` over `anneal_steps`, then constant; all images share it.

    DreamGaussian and DreamFlow style. `width` > 0 draws uniformly from [t - width, t + width] instead, cut off at the
    ends. With `hold` > 1 that many steps in a row share one t (DreamFlow's inner updates).
    """

    shared: bool = True
    start: int = 980
    end: int = 20
    anneal_steps: int = 5000
    width: int = 0
    hold: int = 1

    def __post_init__(self) -> None:
        if self.hold < 1 or self.anneal_steps < 1 or self.width < 0:
            raise ConfigError("timesteps: hold and anneal_steps must be at least 1, width at least 0")

    def bounds(self, step: int, total: int) -> tuple[int, int]:
        done = min((step - step % self.hold) / self.anneal_steps, 1.0)
        t = round(self.start + (self.end - self.start) * done)
        return max(t - self.width, 0), min(t + self.width, total - 1)


@TIMESTEPS.register("consistency")
@dataclass
class Consistency(Timesteps):
    """Consistent3D's pairs: an annealed t_2 for all images, and t = t_2 + U{min_gap..max_gap} for each.

    t_2 = start + (end - start) sqrt(step / anneal_steps), rounded down. Both stay within [min_step, max_step]; where
    max_step cuts the gaps off, those left are equally likely (the authors' code puts the cut ones on max_step).
    """

    start: int = 700
    end: int = 100
    anneal_steps: int = 3000
    min_gap: int = 100
    max_gap: int = 299
    min_step: int = 100
    max_step: int = 980

    def __post_init__(self) -> None:
        if not 0 <= self.min_gap <= self.max_gap or self.anneal_steps < 1:
            raise ConfigError("timesteps: it must be 0 <= min_gap <= max_gap, and anneal_steps at least 1")
        if not 0 <= self.min_step <= self.max_step - self.min_gap:
            raise ConfigError("timesteps: no pair fits; it must be 0 <= min_step <= max_step - min_gap")

    def bounds(self, step: int, total: int) -> tuple[int, int]:
        low, top = self._earlier(step, total), self._top(total)
        return low + self.min_gap, min(low + self.max_gap, top)

    def earlier(self, batch: int, step: int, total: int) -> Tensor | None:
        return torch.full((batch,), self._earlier(step, total))

    def _earlier(self, step: int, total: int) -> int:
        done = min(step / self.anneal_steps, 1.0) ** 0.5
        t = int(self.start + (self.end - self.start) * done)
        highest = self._top(total) - self.min_gap
        if highest < 0:
            raise ConfigError(f"timesteps: steps {self.min_gap} apart (min_gap) do not fit into a schedule of {total}")
        return min(max(t, self.min_step), highest)

    def _top(self, total: int) -> int:
        return min(self.max_step, total - 1)


def build_timesteps(config: Mapping[str, Any] | Timesteps | None, where: str = "timesteps") -> Timesteps:
    """From a block such as {type: percent, min_step_percent: 0.02}. Raises ConfigError for an unknown type or key."""
    if isinstance(config, Timesteps):
        return config
    values = dict(to_plain(config) or {})
    cls = TIMESTEPS.get(values.pop("type", "uniform"))
    return parse_settings(cls, values, where)
