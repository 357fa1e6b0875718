"""What guidance gets from a prompt processor: embeddings, and which of them belong to a view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from threestudio.errors import ConfigError
from threestudio.utils.ops import shifted_expotional_decay


def shift_azimuth_deg(azimuth: Tensor) -> Tensor:
    """Any angle in degrees -> [-180, 180)."""
    return (azimuth + 180) % 360 - 180


@dataclass
class DirectionConfig:
    """A direction: its name, how it changes the prompts, and for which views (elevation, azimuth, distance, [B] each)
    it holds."""

    name: str
    prompt: Callable[[str], str]
    negative_prompt: Callable[[str], str]
    condition: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class PromptProcessorOutput:
    """Embeddings, L tokens wide E.

    Attributes:
        text_embeddings: [1, L, E] of the prompt.  uncond_text_embeddings: [1, L, E] of the *negative* prompt.
        text_embeddings_vd, uncond_text_embeddings_vd: [4, L, E] of the prompts per direction.
        empty_text_embeddings: [1, L, E] of the empty string.
        perp_neg_f_*: (a, b, c) of Perp-Neg's weights; s side, f front, b back.
    """

    text_embeddings: Tensor
    uncond_text_embeddings: Tensor
    text_embeddings_vd: Tensor
    uncond_text_embeddings_vd: Tensor
    directions: list[DirectionConfig]
    direction2idx: dict[str, int]
    use_perp_neg: bool
    perp_neg_f_sb: tuple[float, float, float]
    perp_neg_f_fsb: tuple[float, float, float]
    perp_neg_f_fs: tuple[float, float, float]
    perp_neg_f_sf: tuple[float, float, float]
    prompt: str
    prompts_vd: list[str]
    empty_text_embeddings: Optional[Tensor] = None

    def direction_indices(self, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor) -> Tensor:
        """Number of each view's direction, [B] int64; the last one whose condition holds. Angles in degrees."""
        index = torch.zeros_like(elevation, dtype=torch.long)
        for direction in self.directions:
            holds = direction.condition(elevation, azimuth, camera_distances)
            index = index.masked_fill(holds, self.direction2idx[direction.name])  # by a mask as index, a GPU would wait
        return index

    def get_text_embeddings(
        self, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor, view_dependent_prompting: bool = True
    ) -> Tensor:
        """[2B, L, E]: the B views' conditional embeddings, then their negative ones. Angles [B] in degrees."""
        if view_dependent_prompting:
            index = self.direction_indices(elevation, azimuth, camera_distances).to(self.text_embeddings_vd.device)
            conditional, negative = self.text_embeddings_vd[index], self.uncond_text_embeddings_vd[index]
        else:
            count = elevation.shape[0]
            conditional = self.text_embeddings.expand(count, -1, -1)
            negative = self.uncond_text_embeddings.expand(count, -1, -1)
        return torch.cat([conditional, negative], dim=0)

    def get_text_embeddings_perp_neg(
        self, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor, view_dependent_prompting: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Embeddings and weights of Perp-Neg (Armandpour et al. 2023), which interpolates between directions.

        Returns:
            [4B, L, E]: B positive, B unconditional, then 2B negative ones, interleaved (view 0's two, view 1's two,
            ...); weights [B, 2] of the negatives, zero or less.
        """
        if not view_dependent_prompting:
            raise ConfigError(
                "Perp-Neg interpolates between view prompts: use_perp_neg needs view_dependent_prompting: true."
            )
        text = self.text_embeddings_vd
        side, front, back, overhead = (text[self.direction2idx[name]] for name in ("side", "front", "back", "overhead"))
        index = self.direction_indices(elevation, azimuth, camera_distances).to(text.device)
        negative_prompt = self.uncond_text_embeddings_vd[index]
        turn = shift_azimuth_deg(azimuth).abs().to(text) / 90  # [B], 0 front, 1 side, 2 back
        facing = (turn < 1)[:, None, None]
        r = torch.where(turn < 1, 1 - turn, 2 - turn)
        mix = r[:, None, None]
        positive = torch.where(facing, mix * front + (1 - mix) * side, mix * side + (1 - mix) * back)
        first, second = torch.where(facing, front, side), torch.where(facing, side, front)
        weights = torch.where(
            (turn < 1)[:, None],
            torch.stack([_decay(self.perp_neg_f_fs, r), _decay(self.perp_neg_f_sf, 1 - r)], dim=-1),
            torch.stack([_decay(self.perp_neg_f_sb, r), _decay(self.perp_neg_f_fsb, r)], dim=-1),
        )
        above = index == self.direction2idx["overhead"]
        positive = torch.where(above[:, None, None], overhead, positive)
        first = torch.where(above[:, None, None], negative_prompt, first)
        second = torch.where(above[:, None, None], negative_prompt, second)
        weights = torch.where(above[:, None], torch.zeros_like(weights), -weights)
        negatives = torch.stack([first, second], dim=1).flatten(0, 1)
        return torch.cat([positive, negative_prompt, negatives], dim=0), weights


def _decay(coefficients: tuple[float, float, float], r: Tensor) -> Tensor:
    return shifted_expotional_decay(*coefficients, r)
