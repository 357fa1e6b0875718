"""From threestudio's prompt processor to the named embeddings a loss asks for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
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
    """`by_name` maps cond, negative, cond_no_view (and empty, perp_neg_0, perp_neg_1, further texts where asked for)
    to [B or 1,L,E]."""

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


class FurtherTexts:
    """Embeddings of texts that the prompt processor does not have, by the teacher's own text encoder, each once.

    `encode` turns N texts into [N,L,E].
    """

    def __init__(self, encode: Callable[[Sequence[str]], Tensor]) -> None:
        self._encode = encode
        self._known: dict[tuple[torch.device, str], Tensor] = {}

    def embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """[N,L,E] on `device`."""
        new = [text for text in dict.fromkeys(texts) if (device, text) not in self._known]
        if new:
            for text, embedding in zip(new, self._encode(new).to(device)):
                self._known[device, text] = embedding
        return torch.stack([self._known[device, text] for text in texts])

    def of_views(
        self, templates: Mapping[str, str], prompt_utils: Any, views: Views, *, view_dependent: bool
    ) -> dict[str, Tensor]:
        """name -> [B,L,E] of each template, in which {prompt} stands for the prompt that holds for the view.

        Raises ConfigError if the prompt processor keeps its prompts to itself.
        """
        if not templates:
            return {}
        if (of_images := getattr(prompt_utils, "image_prompts", None)) is not None:  # one prompt per image, no views
            device = prompt_utils.text_embeddings.device
            return {
                name: self.embed([template.replace("{prompt}", prompt) for prompt in of_images], device)
                for name, template in templates.items()
            }
        prompts = [getattr(prompt_utils, "prompt", None), *(getattr(prompt_utils, "prompts_vd", None) or [None])]
        if None in prompts:
            raise ConfigError(
                f"the loss needs texts made from the prompt ({', '.join(templates)}), but "
                f"{type(prompt_utils).__name__} does not tell its prompts; "
                "set system.prompt_processor_type: stable-diffusion-prompt-processor"
            )
        texts = [template.replace("{prompt}", prompt) for template in templates.values() for prompt in prompts]
        embedded = self.embed(texts, prompt_utils.text_embeddings.device).unflatten(0, (len(templates), len(prompts)))
        where = (views.elevation, views.azimuth, views.camera_distances)
        by_name = {}
        for name, own in zip(templates, embedded):
            # The processor itself knows which view's prompt holds: it is asked with these texts in place of its own.
            asked = copy.copy(prompt_utils)
            asked.text_embeddings, asked.text_embeddings_vd = own[:1], own[1:]
            by_name[name] = asked.get_text_embeddings(*where, view_dependent)[: len(views.elevation)]
        return by_name
