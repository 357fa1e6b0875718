"""`init` of text to 2D: how pictures start, as a config block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError
from ..random_streams import stream_generator
from ..registry import Registry
from ..teachers import Teacher

WHERE = "system.geometry.init"


@dataclass(frozen=True)
class PictureInit:
    """What the values, latents or pixels in [-1, 1], are at step 0. Each picture has random numbers of its own."""

    type: str = "normal"
    """A registered start: normal N(0, std^2), uniform U(-1, 1), zeros, image (a file)."""
    std: float = 1.0
    """Of `normal`."""
    path: Optional[str] = None
    """The file of `image`, in any format Pillow reads: cut to the aspect ratio about its center and resized; white
    shows through where it is transparent."""
    noise: float = 0.0
    """`image` only: standard deviation of what is added, to make particles differ."""

    def __post_init__(self) -> None:
        if self.type not in PICTURES:
            PICTURES.get(self.type)  # raises with the known names
        if self.std < 0 or self.noise < 0:
            raise ConfigError(f"{WHERE}: std and noise must not be negative")
        if self.type == "image" and not self.path:
            raise ConfigError(f"{WHERE}.type is image; give the file as {WHERE}.path")


@dataclass(frozen=True)
class PictureKind:
    """What the values stand for."""

    shape: tuple[int, int, int]
    """(C, h, w)."""
    teacher: Teacher | None
    """Whose scaled latents they are; None: pixels."""
    device: torch.device
    """Where to encode."""


PICTURES: Registry[Callable[[PictureInit, PictureKind, torch.Generator], Tensor]] = Registry(f"{WHERE}.type")
"""type -> function(settings, kind, generator) -> values [C,h,w] float32 on the CPU."""


def first_picture(settings: PictureInit, kind: PictureKind, number: int) -> Tensor:
    """Values [C,h,w] of picture `number` at the start."""
    return PICTURES.get(settings.type)(settings, kind, stream_generator("pictures", number))


@PICTURES.register("normal")
def _normal(settings: PictureInit, kind: PictureKind, generator: torch.Generator) -> Tensor:
    return settings.std * torch.randn(kind.shape, generator=generator)


@PICTURES.register("uniform")
def _uniform(settings: PictureInit, kind: PictureKind, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(kind.shape, generator=generator) - 1


@PICTURES.register("zeros")
def _zeros(settings: PictureInit, kind: PictureKind, generator: torch.Generator) -> Tensor:
    return torch.zeros(kind.shape)


@PICTURES.register("image")
def _image(settings: PictureInit, kind: PictureKind, generator: torch.Generator) -> Tensor:
    size, teacher = kind.shape[1:], kind.teacher
    if teacher is None:
        values = 2 * read_picture(settings.path, size) - 1
    else:
        rgb = read_picture(settings.path, teacher.image_size)[None].to(kind.device)
        with torch.no_grad():
            latents = F.interpolate(teacher.encode(rgb, generator), size, mode="bilinear", align_corners=False)
        values = latents[0].float().cpu()
    return values + settings.noise * torch.randn(kind.shape, generator=generator)


def read_picture(path: str, size: tuple[int, int]) -> Tensor:
    """A picture file as [3,H,W] in [0,1] of this size (H, W). Raises ConfigError if it cannot be read as one."""
    try:
        with Image.open(Path(path)) as file:
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    except FileNotFoundError:
        raise ConfigError(f"{WHERE}.path: there is no file {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise ConfigError(f"{WHERE}.path: {path} cannot be read as a picture: {problem}") from problem
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    fitted = ImageOps.fit(picture, size[::-1], method=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255
