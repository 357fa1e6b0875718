"""Dropping words that speak against a view (Hong et al. 2023, "Debiasing Scores and Prompts of 2D Diffusion", section
4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from threestudio.errors import ConfigError, PretrainedError

KEEP_RATIO = 0.95
"""A word goes where a view's probability with the word is below this share of the one without."""


def debias(
    prompt: str, probabilities: Callable[[str], Tensor], n_views: int, word_ids: Sequence[int] | None = None
) -> list[str]:
    """One version of the prompt per view.

    Args:
        probabilities: text -> [n_views], how probable each view is for it.
        word_ids: numbers of the words that may go; None: all.
    """
    words = prompt.split()
    candidates = list(range(len(words))) if word_ids is None else list(word_ids)
    wrong = [i for i in candidates if not 0 <= i < len(words)]
    if wrong:
        raise ConfigError(
            f"prompt_debiasing_mask_ids has {wrong}; the prompt has {len(words)} words, numbered from 0 to "
            f"{len(words) - 1}."
        )
    complete = probabilities(prompt)
    dropped: list[set[int]] = [set() for _ in range(n_views)]
    for i in candidates:
        without = probabilities(" ".join(words[:i] + words[i + 1 :]))
        for view in range(n_views):
            if complete[view] < KEEP_RATIO * without[view]:
                dropped[view].add(i)
    return [" ".join(word for i, word in enumerate(words) if i not in gone) for gone in dropped]


class MaskedViewModel:
    """A fill-mask language model, asked which view a text depicts."""

    def __init__(self, name: str, views: Sequence[str]) -> None:
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model = AutoModelForMaskedLM.from_pretrained(name, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise PretrainedError(
                f"use_prompt_debiasing needs the language model {name!r}, which could not be loaded: {error}\n"
                f"Get it with: hf download {name}, or set prompt_processor.use_prompt_debiasing=false."
            ) from error
        pieces = [self.tokenizer(view, add_special_tokens=False).input_ids for view in views]
        if any(len(piece) != 1 for piece in pieces):
            raise ConfigError(
                f"The tokenizer of {name!r} splits the words {', '.join(views)}; debiasing needs one that doesn't."
            )
        self.view_ids = [piece[0] for piece in pieces]

    @torch.no_grad()
    def probabilities(self, prompt: str) -> Tensor:
        """[n_views] float32, sums to 1."""
        mask = self.tokenizer.mask_token
        tokens = self.tokenizer(
            f"This image is depicting a {mask} view of {prompt}", return_tensors="pt", truncation=True
        )
        place = (tokens.input_ids[0] == self.tokenizer.mask_token_id).nonzero()[0, 0]
        logits = self.model(**tokens).logits[0, place, self.view_ids]
        return torch.softmax(logits.float(), dim=-1)
