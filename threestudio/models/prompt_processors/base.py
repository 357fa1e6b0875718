"""Prompts by view direction, their embeddings, and the cache that holds these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from threestudio import info
from threestudio.errors import ConfigError, PretrainedError
from threestudio.models.prompt_processors.output import DirectionConfig, PromptProcessorOutput, shift_azimuth_deg
from threestudio.models.prompt_processors.process import run_encoder
from threestudio.utils.base import BaseObject
from threestudio.utils.misc import barrier, get_rank

__all__ = ["DirectionConfig", "PromptProcessor", "PromptProcessorOutput", "hash_prompt", "shift_azimuth_deg"]

CACHE_FOLDER = Path(".threestudio_cache") / "text_embeddings"
LIBRARY = Path("load") / "prompt_library.json"


def hash_prompt(model: str, prompt: str) -> str:
    """Name of an embedding's file: md5 of model name and prompt."""
    return hashlib.md5(f"{model}-{prompt}".encode(), usedforsecurity=False).hexdigest()


def _texts(front: bool, suffix: str, prefix: str) -> Callable[[str], str]:
    return (lambda prompt: f"{prefix} of {prompt}") if front else (lambda prompt: f"{prompt}, {suffix}")


def make_directions(
    overhead_threshold: float, front_threshold: float, back_threshold: float, prompt_front: bool
) -> list[DirectionConfig]:
    """Side, front, back, overhead; where conditions overlap, the later direction wins. Thresholds in degrees.

    Args:
        prompt_front: "front view of P" instead of "P, front view".
    """

    def is_back(elevation: Tensor, azimuth: Tensor, distance: Tensor) -> Tensor:
        azimuth = shift_azimuth_deg(azimuth)
        return (azimuth > 180 - back_threshold) | (azimuth < -180 + back_threshold)

    conditions: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "side": lambda elevation, azimuth, distance: torch.ones_like(elevation, dtype=torch.bool),
        "front": lambda elevation, azimuth, distance: shift_azimuth_deg(azimuth).abs() < front_threshold,
        "back": is_back,
        "overhead": lambda elevation, azimuth, distance: elevation > overhead_threshold,
    }
    return [
        DirectionConfig(
            name,
            _texts(prompt_front, f"{name} view", "backside view" if name == "back" else f"{name} view"),
            lambda negative: negative,
            condition,
        )
        for name, condition in conditions.items()
    ]


class PromptProcessor(BaseObject):
    """Turns a prompt into embeddings; calling it returns a `PromptProcessorOutput`.

    Subclasses define the static method `spawn_func(pretrained_model_name_or_path, prompts, cache_dir)`, which writes
    one tensor [L, E] per prompt to `<cache_dir>/<hash_prompt(model, prompt)>.pt`.
    """

    @dataclass
    class Config(BaseObject.Config):
        prompt: str = "a hamburger"
        """Text, or "lib:word_word" for the one prompt of the library that contains all these words."""
        prompt_front: Optional[str] = None
        prompt_side: Optional[str] = None
        prompt_back: Optional[str] = None
        prompt_overhead: Optional[str] = None
        """Prompts of single views, instead of those made from `prompt`."""
        negative_prompt: str = ""
        pretrained_model_name_or_path: str = "runwayml/stable-diffusion-v1-5"
        overhead_threshold: float = 60.0
        front_threshold: float = 45.0
        back_threshold: float = 45.0
        """Degrees: overhead above this elevation; front and back within this azimuth of straight ahead and behind."""
        view_dependent_prompt_front: bool = False
        """Put the view before the prompt ("front view of P")."""
        use_cache: bool = True
        spawn: bool = True
        """Encode in a child process, which returns all of its memory."""
        use_perp_neg: bool = False
        perp_neg_f_sb: Tuple[float, float, float] = (1, 0.5, -0.606)
        perp_neg_f_fsb: Tuple[float, float, float] = (1, 0.5, +0.967)
        perp_neg_f_fs: Tuple[float, float, float] = (4, 0.5, -2.426)
        perp_neg_f_sf: Tuple[float, float, float] = (4, 0.5, -2.426)
        """a, b, c of the weights a exp(-b r) + c."""
        use_prompt_debiasing: bool = False
        """Drop words of view prompts that speak against the view, by a fill-mask language model."""
        pretrained_model_name_or_path_prompt_debiasing: str = "bert-base-uncased"
        prompt_debiasing_mask_ids: Optional[List[int]] = None
        """Numbers of the words that may be dropped; None: all."""

    cfg: Config

    def configure(self) -> None:
        cfg = self.cfg
        self.directions = make_directions(
            cfg.overhead_threshold, cfg.front_threshold, cfg.back_threshold, cfg.view_dependent_prompt_front
        )
        self.direction2idx = {direction.name: i for i, direction in enumerate(self.directions)}
        self.prompt = self.preprocess_prompt(cfg.prompt)
        self.negative_prompt = cfg.negative_prompt
        self.prompts_vd = self._view_prompts()
        self.negative_prompts_vd = [direction.negative_prompt(self.negative_prompt) for direction in self.directions]
        views = " ".join(f"[{d.name}]: {p}" for d, p in zip(self.directions, self.prompts_vd))
        info(f"Prompt: {self.prompt!r}, negative prompt: {self.negative_prompt!r}. {views}")
        self.check_prompts()
        self.prepare_text_embeddings()
        self.load_text_embeddings()

    # ---- prompts ----

    def _view_prompts(self) -> list[str]:
        cfg, names = self.cfg, [direction.name for direction in self.directions]
        manual = {name: getattr(cfg, f"prompt_{name}") for name in names}
        prompts = [self.prompt] * len(names)
        if cfg.use_prompt_debiasing:
            set_by_hand = [f"prompt_{name}" for name, prompt in manual.items() if prompt is not None]
            if set_by_hand:
                raise ConfigError(
                    "prompt_processor.use_prompt_debiasing writes the view prompts itself, but "
                    f"{', '.join(set_by_hand)} is set as well. Remove one of them."
                )
            prompts = self.get_debiased_prompt(self.prompt)
        return [
            manual[direction.name] or direction.prompt(prompt) for direction, prompt in zip(self.directions, prompts)
        ]

    def get_debiased_prompt(self, prompt: str) -> list[str]:
        """One version of the prompt per direction, without words that speak against it."""
        from threestudio.models.prompt_processors.debiasing import MaskedViewModel, debias

        model = MaskedViewModel(
            self.cfg.pretrained_model_name_or_path_prompt_debiasing, [direction.name for direction in self.directions]
        )
        return debias(prompt, model.probabilities, len(self.directions), self.cfg.prompt_debiasing_mask_ids)

    def preprocess_prompt(self, prompt: str) -> str:
        """Look up "lib:" prompts; others pass."""
        if not prompt.startswith("lib:"):
            return prompt
        return find_in_library(prompt[len("lib:") :].lower().split("_"), _read_library())

    def check_prompts(self) -> None:
        """Hook to warn about prompts the model cannot take as they are."""

    def check_texts(self, texts: Sequence[str]) -> None:
        """Hook to warn about texts that `embed` is asked for, likewise."""

    # ---- embeddings ----

    def model_fingerprint(self) -> str:
        """What tells one model from another under the same name, for the cache; empty: the name is enough."""
        return ""

    @property
    def cache_dir(self) -> Path:
        return CACHE_FOLDER / self.model_fingerprint()[:32]

    def _cache_file(self, prompt: str) -> Path:
        return self.cache_dir / f"{hash_prompt(self.cfg.pretrained_model_name_or_path, prompt)}.pt"

    @staticmethod
    def spawn_func(pretrained_model_name_or_path: str, prompts: list[str], cache_dir: str) -> None:
        """Encode prompts and write their files; see the class."""
        raise TypeError("This prompt processor does not define the static method spawn_func(), which encodes prompts.")

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [N, L, E] of any texts, on the device. The text encoder is loaded at most once."""
        self.check_texts(texts)
        self.encode_missing(texts)
        return torch.stack([self.load_from_cache(text) for text in texts])

    def prepare_text_embeddings(self) -> None:
        """Encode the prompts the output needs."""
        self.encode_missing([self.prompt, self.negative_prompt, "", *self.prompts_vd, *self.negative_prompts_vd])

    def encode_missing(self, wanted: Sequence[str]) -> None:
        """Encode, on the first process, every prompt whose file is missing or damaged."""
        if get_rank() == 0:
            missing = [
                prompt
                for prompt in dict.fromkeys(wanted)
                if not self.cfg.use_cache or _read_embedding(self._cache_file(prompt)) is None
            ]
            if missing:
                self.cache_dir.mkdir(parents=True, exist_ok=True)
                arguments = (self.cfg.pretrained_model_name_or_path, missing, str(self.cache_dir))
                run_encoder(self.spawn_func, arguments, in_child=self.cfg.spawn)
        barrier()

    def load_from_cache(self, prompt: str) -> Tensor:
        """Embedding [L, E] of a prompt, on the device."""
        embedding = _read_embedding(self._cache_file(prompt))
        if embedding is None:
            raise PretrainedError(
                f"No text embedding of {prompt!r} at {self._cache_file(prompt)} after encoding; is the "
                "disk full or the folder "
                "not writable?"
            )
        return embedding.to(self.device)

    def load_text_embeddings(self) -> None:
        """Read all embeddings the output needs."""
        self.text_embeddings = self.load_from_cache(self.prompt)[None]
        self.uncond_text_embeddings = self.load_from_cache(self.negative_prompt)[None]
        self.empty_text_embeddings = self.load_from_cache("")[None]
        self.text_embeddings_vd = torch.stack([self.load_from_cache(prompt) for prompt in self.prompts_vd])
        self.uncond_text_embeddings_vd = torch.stack([self.load_from_cache(p) for p in self.negative_prompts_vd])

    def get_prompt_utils(self) -> PromptProcessorOutput:
        return self()

    def __call__(self) -> PromptProcessorOutput:
        cfg = self.cfg
        return PromptProcessorOutput(
            text_embeddings=self.text_embeddings,
            uncond_text_embeddings=self.uncond_text_embeddings,
            text_embeddings_vd=self.text_embeddings_vd,
            uncond_text_embeddings_vd=self.uncond_text_embeddings_vd,
            directions=self.directions,
            direction2idx=self.direction2idx,
            use_perp_neg=cfg.use_perp_neg,
            perp_neg_f_sb=tuple(cfg.perp_neg_f_sb),
            perp_neg_f_fsb=tuple(cfg.perp_neg_f_fsb),
            perp_neg_f_fs=tuple(cfg.perp_neg_f_fs),
            perp_neg_f_sf=tuple(cfg.perp_neg_f_sf),
            prompt=self.prompt,
            prompts_vd=self.prompts_vd,
            empty_text_embeddings=self.empty_text_embeddings,
        )


def _read_embedding(file: Path) -> Tensor | None:
    """The tensor in a cache file; None if the file is missing or damaged."""
    if not file.is_file():
        return None
    try:
        value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch.load raises nearly anything on a damaged file; encoding again repairs it
        return None
    return value if isinstance(value, Tensor) else None


def _read_library() -> dict[str, list[str]]:
    """The prompt library in the working directory, else the one that came with the source."""
    for place in (Path.cwd(), Path(__file__).resolve().parents[3]):
        file = place / LIBRARY
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
    raise ConfigError(
        f"A 'lib:' prompt needs the file {LIBRARY} in the working directory; write the prompt itself instead."
    )


def find_in_library(keywords: list[str], library: dict[str, list[str]]) -> str:
    """The one prompt that contains all keywords, case ignored; the list "dreamfusion" is asked first, then the
    others."""
    lists = [library.get("dreamfusion", []), *(prompts for name, prompts in library.items() if name != "dreamfusion")]
    for prompts in lists:
        found = [prompt for prompt in prompts if all(word in prompt.lower() for word in keywords)]
        if len(found) == 1:
            return found[0]
        if found:
            shown = "; ".join(found[:5])
            raise ConfigError(
                f"prompt 'lib:{'_'.join(keywords)}' fits {len(found)} prompts of the library, such as: "
                f"{shown}. Add a word."
            )
    raise ConfigError(f"prompt 'lib:{'_'.join(keywords)}' fits no prompt of the library {LIBRARY}.")
