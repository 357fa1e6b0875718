"""Many prompts in one run: reading them, and their embeddings picture by picture."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, suggest
from ..settings import to_plain
from .capabilities import EmbedsTexts

WHERE = "system.prompts"


def read_prompts(given: Any, list_name: str | None = None) -> list[str]:
    """The prompts of a list, or of a file named by a path.

    A .json file holds a list, or several by name, of which `list_name` is taken; any other file one prompt per line,
    where empty lines and those that start with # do not count. Raises ConfigError for anything else.
    """
    given = to_plain(given)
    prompts = _from_file(Path(given), list_name) if isinstance(given, str) else given
    if not isinstance(prompts, (list, tuple)) or not prompts:
        raise ConfigError(f"{WHERE} is {given!r}; it must be a list of prompts or a file with at least one")
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigError(f"{WHERE} has {prompt!r} among its prompts; each must be a text that says what to make")
    return [prompt.strip() for prompt in prompts]


def _from_file(path: Path, list_name: str | None) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{WHERE}: cannot read {path}: {problem}") from problem
    if path.suffix.lower() != ".json":
        lines = [line.strip() for line in text.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]
    try:
        content = json.loads(text)
    except ValueError as problem:
        raise ConfigError(f"{WHERE}: {path} is not JSON: {problem}") from problem
    if not isinstance(content, dict):
        return content
    if list_name not in content:
        raise ConfigError(
            f"{path} holds several lists of prompts; name one of them as system.prompt_list: "
            f"{suggest(list_name or '', content)}"
        )
    return content[list_name]


def slug(prompt: str) -> str:
    """A file name's part: letters, digits and underscores of a prompt, 60 characters at most."""
    return re.sub(r"[^\w]+", "_", prompt).strip("_")[:60].rstrip("_") or "picture"


@dataclass(frozen=True)
class PictureTexts:
    """The embeddings of B pictures, in the form guidance takes from a prompt processor. Pictures have no views."""

    text_embeddings: Tensor
    """[B,L,E]."""
    uncond_text_embeddings: Tensor
    """[1,L,E] of the negative prompt."""
    empty_text_embeddings: Tensor | None
    """[1,L,E]; None if the prompt processor knows none."""
    image_prompts: tuple[str, ...]
    """[B], for losses that need texts made from the prompt."""
    use_perp_neg: bool = False

    def of(self, index: Sequence[int]) -> PictureTexts:
        """Those of these pictures."""
        chosen = self.text_embeddings[list(index)]
        prompts = tuple(self.image_prompts[i] for i in index)
        return PictureTexts(chosen, self.uncond_text_embeddings, self.empty_text_embeddings, prompts)

    def get_text_embeddings(
        self, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor, view_dependent_prompting: bool = False
    ) -> Tensor:
        """[2B,L,E]: the pictures' prompts, then the negative one B times."""
        return torch.cat([self.text_embeddings, self.uncond_text_embeddings.expand_as(self.text_embeddings)])


def embed(build: Callable[[str], Any], prompts: Sequence[str], particles: int) -> tuple[PictureTexts, list[str]]:
    """Embeddings of `particles` pictures for each prompt, and the prompts with "lib:" names looked up.

    `build(prompt)` makes a prompt processor.
    """
    first = build(prompts[0])
    known = first()
    prompts = [first.preprocess_prompt(prompt) for prompt in prompts]
    if isinstance(first, EmbedsTexts):
        texts = first.embed(prompts)
    else:  # threestudio's processors know one prompt each
        others = {prompt: build(prompt)().text_embeddings for prompt in dict.fromkeys(prompts) if prompt != prompts[0]}
        texts = torch.cat([others.get(prompt, known.text_embeddings) for prompt in prompts])
    empty = getattr(known, "empty_text_embeddings", None)
    of_images = tuple(prompt for prompt in prompts for _ in range(particles))
    pictures = PictureTexts(texts.repeat_interleave(particles, 0), known.uncond_text_embeddings[:1], empty, of_images)
    return pictures, prompts
