"""From threestudio's prompt processor to the named embeddings a loss asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ConfigError

NEGATIVES_PER_IMAGE = 2  # Perp-Neg's layout in threestudio


@dataclass(frozen=True)
class Views:
    """Where each of B images is seen from: degrees, degrees, world units; [B] each."""

    elevation: Tensor
    azimuth: Tensor
    camera_distances: Tensor


@dataclass(frozen=True)
class NamedEmbeddings:
    """`by_name` maps cond, negative, cond_no_view (and empty, perp_neg_0, perp_neg_1 where asked for) to
    [B or 1,L,E]."""

    by_name: dict[str, Tensor]
    perp_neg_weights: Tensor | None
    """[B,2] if Perp-Neg is on."""

    def first(self, n: int) -> NamedEmbeddings:
        """Those of the first n images."""
        weights = self.perp_neg_weights
        return NamedEmbeddings({k: e[:n] for k, e in self.by_name.items()}, None if weights is None else weights[:n])


def named_embeddings(
    prompt_utils: Any, views: Views, *, view_dependent: bool, empty: Callable[[], Tensor] | None
) -> NamedEmbeddings:
    """Take apart what threestudio's prompt processor returns.

    Its plain layout is [B conditional; B negative] (the opposite of diffusers' order); its Perp-Neg layout is
    [B conditional; B negative; 2B further negatives, two per image in a row]. Its "uncond" is the NEGATIVE prompt.
    `empty` gives the empty prompt's embedding [1,L,E] if the processor has none; None if nobody asks for it.
    """
    where = (views.elevation, views.azimuth, views.camera_distances)
    batch = len(views.elevation)
    by_name: dict[str, Tensor] = {}
    weights = None
    if prompt_utils.use_perp_neg:
        if not view_dependent:
            raise ConfigError(
                "Perp-Neg needs views: set system.guidance.view_dependent_prompting: true "
                "or system.prompt_processor.use_perp_neg: false"
            )
        stacked, weights = prompt_utils.get_text_embeddings_perp_neg(*where, view_dependent)
        for i in range(NEGATIVES_PER_IMAGE):
            by_name[f"perp_neg_{i}"] = stacked[2 * batch + i :: NEGATIVES_PER_IMAGE]
    else:
        stacked = prompt_utils.get_text_embeddings(*where, view_dependent)
    by_name["cond"], by_name["negative"] = stacked[:batch], stacked[batch : 2 * batch]
    by_name["cond_no_view"] = prompt_utils.text_embeddings
    if empty is not None:
        own = getattr(prompt_utils, "empty_text_embeddings", None)
        by_name["empty"] = empty() if own is None else own
    return NamedEmbeddings(by_name, weights)
