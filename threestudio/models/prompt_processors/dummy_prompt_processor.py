"""For guidance that takes no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from threestudio import register
from threestudio.models.prompt_processors.base import PromptProcessor


@register("dummy-prompt-processor")
class DummyPromptProcessor(PromptProcessor):
    """Embeddings of one zero, [1, 1, 1], for every prompt; no model is loaded and nothing is written."""

    @dataclass
    class Config(PromptProcessor.Config):
        pretrained_model_name_or_path: str = ""

    cfg: Config

    def encode_missing(self, wanted: Sequence[str]) -> None:
        """There is nothing to encode."""

    def load_from_cache(self, prompt: str) -> torch.Tensor:
        return torch.zeros(1, 1, device=self.device)
