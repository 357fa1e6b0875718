"""A loss says which residual it wants; everything else is common (see distiller.py).

To add one: docs/add-a-loss.md. The tests pick it up by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import Registry
from ..settings import parse_settings, to_plain
from .auxiliary import AuxiliaryUpdate
from .draw import NoisyDraw
from .teacher import Cost, NoisePredictor, PromptedTeacher

LOSSES: Registry[type["ScoreLoss"]] = Registry("loss.type")
register_loss = LOSSES.register


@dataclass(frozen=True)
class LossContext:
    """What a loss may need to build itself."""

    teacher: NoisePredictor
    latent_shape: tuple[int, int, int]
    """(C, h, w)."""
    generator: torch.Generator
    """CPU generator of all random numbers; its state is saved with the run."""


@dataclass(frozen=True)
class ScoreResult:
    """What a loss returns for one draw."""

    residual: Tensor
    """[B,C,h,w] R without graph; the latents' gradient is grad_scale omega(t) R."""
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalar losses, with graph, of the loss's own parameters."""
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars to log, without graph."""


Update = Callable[[NoisyDraw, Any], "tuple[ScoreResult, Mapping[str, Tensor]]"]
"""A draw and a loss's answers -> its result, and the auxiliary losses before any update: `Distiller.update`, or what takes
its place."""


@dataclass
class NoSettings:
    """A loss without options."""


class ScoreLoss(nn.Module):
    """Base of all losses. Trainable parts are submodules; their optimizer is described by `update`.

    Two phases, so that the trainable part can be updated between them without asking the teacher again:
    `ask` does the network calls, `forward` turns the answers into a residual (and auxiliary losses).
    """

    Settings: type = NoSettings
    embeddings: tuple[str, ...] = ()
    """Names of the embeddings `ask` uses beyond the prompt's and the anchor's."""
    texts: Mapping[str, str] = MappingProxyType({})
    """Further texts whose embeddings `ask` uses: name -> text, in which {prompt} stands for the prompt and its view."""
    update: AuxiliaryUpdate | None = None
    """How the loss's own parameters are trained; None if it has none."""
    small_operations: bool = False
    """True if `forward` and its backward are many small operations, which several CPU threads only slow down. Several
    processes then do all of them for the whole batch (joint_update.py): `ask` answers with a Guided, and `forward` draws no
    random numbers and does without the context."""

    def __init__(self, settings: Any, context: LossContext) -> None:
        super().__init__()
        self.settings = settings
        # Behind a tuple: a teacher that is a module must not become a part of the loss's state.
        self._context = (context,)

    def decisions(self, draw: NoisyDraw) -> Hashable | None:
        """All that `forward` makes depend on more than the tensors of the draw and the answers, if its work can be
        recorded and replayed (replay.py): the same decisions, the same kernels. None, the default: it cannot."""
        return None

    @property
    def context(self) -> LossContext:
        return self._context[0]

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        """What one image at time t costs in optimization step `step`, if a guided call costs `guided` forwards.

        Tests compare it with what the teacher counts. Default: one guided call.
        """
        return Cost(guided)

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> Any:
        """All teacher calls of this loss for this draw. Default: one guided call at the noised latents."""
        return teacher.guided(draw.noisy, draw.t)

    def forward(self, draw: NoisyDraw, answers: Any) -> ScoreResult:
        """The residual (and auxiliary losses) from the answers; may be called again after an update."""
        with torch.no_grad():
            return ScoreResult(self.residual(draw, answers))

    def residual(self, draw: NoisyDraw, answers: Any) -> Tensor:
        """R [B,C,h,w]. Losses without trainable parts override only this."""
        raise TypeError(f"{type(self).__name__} must define residual or forward")


def build_loss(config: Mapping[str, Any], context: LossContext, where: str = "loss") -> ScoreLoss:
    """From a block such as {type: vdm, dca_cutoff: 300}. Raises ConfigError for an unknown type or key."""
    values = dict(to_plain(config) or {})
    cls = LOSSES.get(values.pop("type", "vdm"))
    return cls(parse_settings(cls.Settings, values, where), context)
