"""Prompts for models in Stable Diffusion's layout: a CLIP tokenizer and text encoder in subfolders."""

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
from threestudio.utils.files import atomic_path
from threestudio.utils.misc import get_device
from threestudio.utils.pretrained import ResolvedPretrained, fingerprint, load_part, resolve_pretrained


def load_tokenizer(resolved: ResolvedPretrained) -> tuple[Any, int]:
    """The tokenizer and the number of tokens L the text encoder takes."""
    from transformers import CLIPTokenizer

    tokenizer = load_part(CLIPTokenizer.from_pretrained, resolved, "tokenizer")
    config = resolved.path / "text_encoder" / "config.json"
    positions = tokenizer.model_max_length  # astronomically large if the tokenizer's files don't say
    if config.is_file():
        positions = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings", positions)
    return tokenizer, min(int(positions), int(tokenizer.model_max_length))


def load_text_encoder(resolved: ResolvedPretrained) -> Any:
    """The CLIP text model in float32; PretrainedError if some of its weights are missing."""
    from transformers import CLIPTextModel

    model, report = load_part(
        CLIPTextModel.from_pretrained, resolved, "text_encoder", use_safetensors=True, output_loading_info=True
    )
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("position_ids"))
    if missing:
        raise PretrainedError(
            f"The weights in {resolved.path / 'text_encoder'} lack {len(missing)} tensors, such as "
            f"{missing[0]}; the model "
            "would answer at random. Get the folder again."
        )
    return model.float().eval()


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
    """CLIP's last hidden states, padded to the tokenizer's length."""

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
        tokenizer_files = sorted(file for file in (path / "tokenizer").glob("*") if file.is_file())
        return hash_prompt(self.resolved.fingerprint, fingerprint(path, tokenizer_files))

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
        tokenizer, length = load_tokenizer(resolved)
        device = get_device()
        text_encoder = load_text_encoder(resolved).to(device)
        for prompt in prompts:
            # One at a time: in a batch, rounding would make an embedding depend on its neighbors.
            tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            embedding = text_encoder(tokens.input_ids.to(device))[0][0].cpu().clone()
            name = f"{hash_prompt(pretrained_model_name_or_path, prompt)}.pt"
            with atomic_path(Path(cache_dir) / name) as temporary, open(temporary, "wb") as file:
                torch.save(embedding, file)
