"""Prompts for models in Stable Diffusion's layout: tokenizers and text encoders in subfolders."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from threestudio import register, warn
from threestudio.errors import PretrainedError
from threestudio.models.prompt_processors.base import PromptProcessor, hash_prompt
from threestudio.models.prompt_processors.text_encoders import SD, encode_prompts, load_tokenizer, pipeline_class
from threestudio.utils.files import atomic_path
from threestudio.utils.misc import get_device
from threestudio.utils.pretrained import ResolvedPretrained, fingerprint, resolve_pretrained


def cut_off(prompt: str, tokenizer: Any, length: int) -> str:
    """The end of a prompt that does not fit into `length` tokens; empty if all of it does."""
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    # The last place belongs to the end token in both the full and the truncated sequence.
    return tokenizer.decode(ids[length - 1 : -1]).strip() if len(ids) > length else ""


def unknown_words(prompt: str, vocabulary: dict[str, Any]) -> list[str]:
    """Words of the prompt that none of the vocabulary's lists has, in order of appearance."""
    known = {
        word for entries in vocabulary.values() if isinstance(entries, list) for e in entries for word in _words(e)
    }
    return [word for word in dict.fromkeys(_words(prompt)) if word not in known]


def _words(text: Any) -> list[str]:
    return re.findall(r"[^\W_]+", str(text).lower())


@register("stable-diffusion-prompt-processor")
class StableDiffusionPromptProcessor(PromptProcessor):
    """CLIP's last hidden states, padded to the tokenizer's length; for SDXL and SD3, all that their pipelines make of
    a prompt, in one tensor (see text_encoders.py)."""

    @dataclass
    class Config(PromptProcessor.Config):
        pass

    cfg: Config

    @cached_property
    def resolved(self) -> ResolvedPretrained:
        """The model the prompts are for."""
        return resolve_pretrained(self.cfg.pretrained_model_name_or_path)

    def model_fingerprint(self) -> str:
        return self._text_fingerprint

    @cached_property
    def _text_fingerprint(self) -> str:
        """Of everything embeddings depend on: the weights and the tokenizer's files."""
        path = self.resolved.path
        files = sorted(file for file in path.glob("tokenizer*/*") if file.is_file())
        if pipeline_class(self.resolved) != SD:
            files.append(path / "model_index.json")  # says what an empty prompt is
        return hash_prompt(self.resolved.fingerprint, fingerprint(path, [file for file in files if file.is_file()]))

    def check_prompts(self) -> None:
        """Warn of prompts that are too long, and of words a small model with a vocabulary.json has never seen."""
        self._check_length([self.prompt, self.negative_prompt, *self.prompts_vd])
        self._check_vocabulary([self.prompt])

    def check_texts(self, texts: Sequence[str]) -> None:
        others = [text for text in texts if text != self.prompt]  # that one was checked already
        self._check_length(others)
        self._check_vocabulary(others)

    def _check_length(self, prompts: Sequence[str]) -> None:
        tokenizer, length = load_tokenizer(self.resolved)
        cut = {prompt: end for prompt in dict.fromkeys(prompts) if (end := cut_off(prompt, tokenizer, length))}
        if cut:
            lines = "\n".join(f"  {prompt!r} loses {end!r}" for prompt, end in cut.items())
            warn(f"The text encoder takes {length} tokens; longer prompts are cut:\n{lines}")

    def _check_vocabulary(self, prompts: Sequence[str]) -> None:
        file = self.resolved.path / "vocabulary.json"
        if not file.is_file():
            return
        try:
            vocabulary = json.loads(file.read_text(encoding="utf-8"))
            unknown = unknown_words(" ".join(prompts), vocabulary)
        except (ValueError, AttributeError) as error:
            raise PretrainedError(f"{file} is damaged: {error}. It must be a JSON object of lists of words.") from error
        if unknown:
            knows = "; ".join(
                f"{kind}: {', '.join(map(str, vocabulary[kind]))}"
                for kind in ("families", "colors", "patterns")
                if vocabulary.get(kind)
            )
            warn(
                f"This model was never shown {', '.join(repr(word) for word in unknown)}, so the result may miss it. "
                f"It knows {knows or ', '.join(map(str, vocabulary.get('words', [])))}."
            )

    @staticmethod
    @torch.no_grad()
    def spawn_func(pretrained_model_name_or_path: str, prompts: list[str], cache_dir: str) -> None:
        """Encode prompts and write one float32 tensor [L, E] each."""
        resolved = resolve_pretrained(pretrained_model_name_or_path)
        for prompt, embedding in zip(prompts, encode_prompts(resolved, prompts, get_device())):
            name = f"{hash_prompt(pretrained_model_name_or_path, prompt)}.pt"
            with atomic_path(Path(cache_dir) / name) as temporary, open(temporary, "wb") as file:
                torch.save(embedding, file)
