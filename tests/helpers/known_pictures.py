"""A teacher that knows one picture for each text, and a prompt processor for it: text to 2D with a known end.

The picture's distribution is a point, so eps(x_t) = (x_t - a x*) / sig, and the residual of SDS is a (x_0 - x*) / sig,
whatever noise was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dreammapping.distillation import CallCount, NoiseSchedule
from threestudio import register
from threestudio.models.prompt_processors.base import PromptProcessor

SHAPE = (3, 8, 8)


def embedding(text: str) -> Tensor:
    """[1, 192]: numbers between -0.8 and 0.8 that follow from the text."""
    seed = sum(position * ord(letter) for position, letter in enumerate(text, 1))
    return 1.6 * torch.rand(1, 192, generator=torch.Generator().manual_seed(seed)) - 0.8


def picture(text: str) -> Tensor:
    """[3, 8, 8] what the teacher takes the text for, as latents."""
    return embedding(text).reshape(SHAPE)


@register("test-text-numbers")
class TextNumbers(PromptProcessor):
    """Embeddings by `embedding`."""

    def encode_missing(self, wanted: Sequence[str]) -> None:
        """There is nothing to encode."""

    def load_from_cache(self, prompt: str) -> Tensor:
        return embedding(prompt)


class KnownPictures:
    """See dreammapping.teachers.protocol.Teacher. Latents are pixels from -1 to 1."""

    name, fingerprint = "known pictures", ""
    latent_shape, image_size = SHAPE, SHAPE[1:]

    def __init__(self) -> None:
        self.schedule, self.calls = NoiseSchedule.scaled_linear(), CallCount()

    @classmethod
    def load(cls, *arguments: object) -> KnownPictures:
        return cls()

    def predict(
        self, noisy: Tensor, t: Tensor, embeddings: Mapping[str, Tensor], *, differentiable: bool = False
    ) -> dict[str, Tensor]:
        a, sig = self.schedule.coefficients(t, noisy)
        self.calls.forwards += len(noisy) * len(embeddings)
        return {name: (noisy - a * text.reshape(-1, *SHAPE)) / sig for name, text in embeddings.items()}

    def embed(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([embedding(text) for text in texts])

    def encode(self, rgb: Tensor, generator: torch.Generator) -> Tensor:
        return rgb * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return ((latents.detach() + 1) / 2).clamp(0, 1)
