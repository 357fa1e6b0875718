"""What parts may offer beyond the least they must. The system asks; it never tests for a class.

A radiance field offers none of the first three and is trained through `system.optimizer`; Gaussians offer all three.
The last is a prompt processor's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer


@runtime_checkable
class OwnLearningRates(Protocol):
    """Brings its own optimizer groups and their schedules."""

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Adam parameter groups at step 0."""

    def update_learning_rates(self, optimizer: Optimizer, step: int) -> None:
        """Sets the groups' learning rates for `step`."""


@runtime_checkable
class Densifies(Protocol):
    """Changes its number of primitives while training, guided by what the rasterizer reports."""

    def before_backward(self, step: int, info: Mapping[str, Any]) -> None: ...

    def after_optimizer_step(self, step: int, info: Mapping[str, Any], optimizer: Optimizer) -> None: ...


@runtime_checkable
class Resizes(Protocol):
    """Has to know a state's sizes before it can load it, or to refuse it."""

    def prepare_for_state_dict(self, state: Mapping[str, Any], prefix: str) -> None: ...


@runtime_checkable
class EmbedsTexts(Protocol):
    """Embeds many texts with one loading of the text encoder."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """[N,L,E]."""
