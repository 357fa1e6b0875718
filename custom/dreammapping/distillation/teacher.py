"""What the losses know of a diffusion model: it predicts noise for named embeddings."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..errors import ConfigError
from .cfg import CFGConvention, Guided, guide, perp_neg
from .noise_schedule import NoiseSchedule


@dataclass
class CallCount:
    """U-Net work so far, in images: a call on B images with K embeddings counts B K forwards."""

    forwards: int = 0
    backwards: int = 0

    def count_backward(self, output: Tensor, images: int) -> None:
        """Adds `images` to the backwards if and when a gradient arrives at `output`."""
        if output.requires_grad:
            output.register_hook(lambda _: self._add_backwards(images))

    def _add_backwards(self, images: int) -> None:
        self.backwards += images


@dataclass(frozen=True)
class Cost:
    """U-Net work of one image in one step, training included: the columns F and Bk by which losses are compared."""

    forwards: int
    backwards: int = 0


class NoisePredictor(Protocol):
    """A frozen epsilon model. Models that predict v or x_0 convert before they answer."""

    schedule: NoiseSchedule
    calls: CallCount

    def predict(
        self, noisy: Tensor, t: Tensor, embeddings: Mapping[str, Tensor], *, differentiable: bool = False
    ) -> dict[str, Tensor]:
        """eps predictions [B,C,h,w] float32 under the names of `embeddings`, all in one network call.

        noisy [B,C,h,w], t [B], each embedding [B,L,E] or [1,L,E] (a pooled vector rides along as further rows). Without
        graph unless `differentiable`, which lets gradients reach the inputs and the embeddings.
        """
        ...


class PromptedTeacher:
    """A predictor bound to this step's embeddings and guidance: what a loss asks.

    Names: `cond`, `empty`, `negative`, `cond_no_view`, those of the loss's `texts` and, with Perp-Neg, `perp_neg_0`,
    `perp_neg_1`; `anchor` says which one classifier-free guidance subtracts.
    """

    def __init__(
        self,
        teacher: NoisePredictor,
        embeddings: Mapping[str, Tensor],
        *,
        guidance_scale: float,
        convention: CFGConvention,
        anchor: str = "empty",
        perp_neg_weights: Tensor | None = None,
    ) -> None:
        self.teacher = teacher
        self.embeddings = embeddings
        self.guidance_scale = guidance_scale
        self.convention = convention
        self.anchor = anchor
        self.perp_neg_weights = perp_neg_weights
        self.schedule = teacher.schedule

    def predict(self, noisy: Tensor, t: Tensor, *names: str, differentiable: bool = False) -> dict[str, Tensor]:
        """eps [B,C,h,w] for each of `names`, all in one network call."""
        return self.teacher.predict(noisy, t, {n: self.embedding(n) for n in names}, differentiable=differentiable)

    def replace(self, name: str, embedding: Tensor) -> PromptedTeacher:
        """The same with another embedding [B or 1,L,E] under that name."""
        return self._with({**self.embeddings, name: embedding}, self.perp_neg_weights)

    def repeat(self, times: int) -> PromptedTeacher:
        """The same for `times` batches in a row."""
        weights = self.perp_neg_weights
        texts = {name: repeat_text(text, times) for name, text in self.embeddings.items()}
        return self._with(texts, None if weights is None else weights.repeat(times, 1))

    def _with(self, embeddings: Mapping[str, Tensor], weights: Tensor | None) -> PromptedTeacher:
        other = copy.copy(self)
        other.embeddings, other.perp_neg_weights = embeddings, weights
        return other

    @property
    def negatives(self) -> tuple[str, ...]:
        """Names of Perp-Neg's negatives; none without it."""
        count = 0 if self.perp_neg_weights is None else self.perp_neg_weights.shape[1]
        return tuple(f"perp_neg_{i}" for i in range(count))

    @property
    def guided_forwards(self) -> int:
        """Network evaluations per image of one `guided` call without others: 2, and with Perp-Neg 4."""
        return 2 + len(self.negatives)

    def guided(self, noisy: Tensor, t: Tensor, *others: str) -> Guided:
        """The guided prediction at (noisy, t); embeddings named in `others` ride along in the same network call."""
        negatives, weights = self.negatives, self.perp_neg_weights
        eps = self.predict(noisy, t, *dict.fromkeys(("cond", self.anchor, *negatives, *others)))
        cond, uncond, against = eps["cond"], eps[self.anchor], [eps[n] for n in negatives]
        return Guided(
            cond=cond,
            uncond=uncond,
            guided=guide(cond, uncond, self.guidance_scale, self.convention, against, weights),
            others={n: eps[n] for n in others},
            perp_neg=perp_neg(cond, uncond, against, weights),
        )

    def at_scale(self, guidance_scale: float) -> PromptedTeacher:
        """The same teacher and texts under another guidance scale, in the same convention."""
        other = copy.copy(self)
        other.guidance_scale = guidance_scale
        return other

    def rows(self, rows: Tensor) -> PromptedTeacher:
        """The same teacher for the images `rows` (indices on the embeddings' device) of the batch alone."""
        part = copy.copy(self)
        part.embeddings = {name: e if len(e) == 1 else e[rows] for name, e in self.embeddings.items()}
        if self.perp_neg_weights is not None:
            part.perp_neg_weights = self.perp_neg_weights[rows]
        return part

    def embedding(self, name: str) -> Tensor:
        if name not in self.embeddings:
            raise ConfigError(f"no text embedding called {name!r} here; there are: {', '.join(self.embeddings)}")
        return self.embeddings[name]


def repeat_text(text: Tensor, times: int) -> Tensor:
    """Embeddings [B or 1,L,E] for `times` batches in a row; a single one serves all images as it is."""
    return text if len(text) == 1 else text.repeat(times, 1, 1)
