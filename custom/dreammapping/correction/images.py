"""Latents with captions to train on: pictures from a folder, or drawn by the teacher itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..distillation import CFGConvention, PromptedTeacher
from ..errors import ConfigError
from ..teachers import Teacher

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Images(Protocol):
    """A numbered set of images. The same generator gives the same latents."""

    captions: list[str]
    """One per image; empty where there is none."""

    def latents(
        self, teacher: Teacher, indices: Sequence[int], text: Tensor, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        """Scaled latents [N,C,h,w] on `device` of the images `indices`; `text` [N,L,E], also there, are their captions."""
        ...


class Folder:
    """Pictures in a folder, sorted by name; a caption stands in a .txt file of the same name."""

    def __init__(self, folder: Path, count: int | None = None) -> None:
        files = sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)
        if not files:
            raise ConfigError(f"--images: there are no pictures ({', '.join(SUFFIXES)}) in {folder}")
        self.files = files[:count]
        self.captions = [_caption(file.with_suffix(".txt")) for file in self.files]

    def latents(
        self, teacher: Teacher, indices: Sequence[int], text: Tensor, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        pictures = torch.stack([read_picture(self.files[i], teacher.image_size) for i in indices])
        with torch.no_grad():
            return teacher.encode(pictures.to(device), generator)


@dataclass
class Samples:
    """What the teacher draws for prompts, taken in turn: DPM-Solver++ (2M) with classifier-free guidance."""

    captions: list[str]
    empty: Tensor
    """[1,L,E] embedding of the empty prompt."""
    scale: float = 7.5
    """In the usual convention: 1 is no guidance."""
    solver_steps: int = 20

    def latents(
        self, teacher: Teacher, indices: Sequence[int], text: Tensor, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        from diffusers import DPMSolverMultistepScheduler

        solver = DPMSolverMultistepScheduler(
            num_train_timesteps=teacher.schedule.steps, trained_betas=_betas(teacher.schedule.alpha_bar)
        )
        solver.set_timesteps(self.solver_steps)
        prompted = PromptedTeacher(
            teacher,
            {"cond": text, "empty": self.empty.to(device)},
            guidance_scale=self.scale,
            convention=CFGConvention.USUAL,
        )
        latents = torch.randn(len(indices), *teacher.latent_shape, generator=generator).to(device)
        for t in solver.timesteps:
            eps = prompted.guided(latents, t.expand(len(indices)).to(device)).guided
            latents = solver.step(eps, t, latents).prev_sample
        return latents


def read_prompts(file: Path, count: int) -> list[str]:
    """`count` prompts, the lines of a text file taken in turn."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"--prompts: cannot read {file}: {problem}") from problem
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ConfigError(f"--prompts: {file} holds no prompts; write one a line")
    return [prompts[i % len(prompts)] for i in range(count)]


def read_picture(file: Path, size: tuple[int, int]) -> Tensor:
    """[3,H,W] in [0,1]: transparency over white, the middle cut to the shape of `size` (H, W), then resized to it."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGBA")
    except (OSError, UnidentifiedImageError) as problem:
        raise ConfigError(f"--images: cannot read {file}: {problem}") from problem
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BICUBIC)
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(*size, 3).permute(2, 0, 1).float() / 255


def _caption(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _betas(alpha_bar: Tensor) -> list[float]:
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return (1 - alpha_bar / before).tolist()
