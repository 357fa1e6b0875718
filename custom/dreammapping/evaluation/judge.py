"""An independent opinion on pictures: a CLIP that answers questions about one attribute at a time.

A judge is a CLIP folder in transformers' layout with a `questions.json` beside the weights, which lists for every attribute (family, color,
pattern, view) the competing texts. Nothing of the teacher is used, so a high score cannot come from pleasing the teacher.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DreamMappingError


@dataclass(frozen=True)
class Answers:
    """What the judge sees in N pictures: the index of its choice, per attribute."""

    choices: dict[str, Tensor]  # each [N] int64

    def share_right(self, attribute: str, truth: int) -> float:
        """Share of the pictures in which the choice is `truth`, in [0, 1]."""
        return (self.choices[attribute] == truth).float().mean().item()


class Judge:
    """CLIP scores and attribute questions.

    Parameters
    ----------
    folder: a CLIP folder in transformers' layout, with `questions.json`.
    device: where it runs.

    Raises `DreamMappingError` if the folder is not a judge.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu"):
        from transformers import CLIPModel, CLIPTokenizer

        folder = Path(folder)
        questions = folder / "questions.json"
        if not questions.is_file():
            raise DreamMappingError(f"{folder} holds no judge: {questions} is missing. The embedded one is load/embedded-judge.")
        known = json.loads(questions.read_text(encoding="utf-8"))
        self.families, self.colors = known["families"], known["colors"]
        self.patterns, self.views = known["patterns"], known["views"]
        self.questions: dict[str, list[list[str]]] = known["questions"]
        self.model = CLIPModel.from_pretrained(folder).float().eval().requires_grad_(False).to(device)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [N, D] of pictures [N, H, W, 3] in [0, 1]; any size, resized to the judge's."""
        device = self.model.logit_scale.device
        side = self.model.config.vision_config.image_size
        pixels = images.permute(0, 3, 1, 2).float().to(device)
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
        states = self.model.vision_model(pixels.clamp(0, 1) * 2 - 1).pooler_output
        return F.normalize(self.model.visual_projection(states), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors [len(texts), D]."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        states = self.model.text_model(tokens.to(self.model.logit_scale.device)).pooler_output
        return F.normalize(self.model.text_projection(states), dim=-1)

    def clip_score(self, images: Tensor, text: str) -> Tensor:
        """100 x cosine of each picture with `text`: [N] (Hessel et al. 2021 without the factor 2.5, as text-to-3D papers print it)."""
        return self.clip_score_of(self.embed_images(images), text)

    def clip_score_of(self, seen: Tensor, text: str) -> Tensor:
        """`clip_score` of pictures that `embed_images` has seen before: unit vectors [N, D]."""
        return 100.0 * seen.to(self.model.logit_scale) @ self.embed_texts([text])[0]

    def odds(self, images: Tensor, family: int) -> dict[str, Tensor]:
        """Probability of each answer, per attribute [N, answers], on pictures [N, H, W, 3] in [0, 1]; `family` (its index) is given in the
        questions on the other attributes."""
        return self.odds_of(self.embed_images(images), family)

    @torch.no_grad()
    def odds_of(self, seen: Tensor, family: int) -> dict[str, Tensor]:
        """`odds` of pictures that `embed_images` has seen before: unit vectors [N, D]."""
        seen, scale, result = seen.to(self.model.logit_scale), self.model.logit_scale.exp(), {}
        for attribute, rows in self.questions.items():
            texts = rows[family] if len(rows) > 1 else rows[0]
            result[attribute] = (scale * seen @ self.embed_texts(texts).T).softmax(dim=1)
        return result

    def ask(self, images: Tensor, family: int) -> Answers:
        """The most probable answers; arguments as for `odds`."""
        return Answers({attribute: odds.argmax(dim=1).cpu() for attribute, odds in self.odds(images, family).items()})
