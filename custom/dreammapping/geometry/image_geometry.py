"""Plain pictures as a threestudio geometry, for text to 2D: what is optimized are latents or pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import threestudio
import torch
from threestudio.models.geometry.base import BaseGeometry
from torch import Tensor, nn

from ..errors import ConfigError
from ..initialization.pictures import PictureInit, PictureKind, first_picture
from ..settings import parse_settings, to_plain
from ..teachers import Teacher

WHERE = "system.geometry"
PARAMETERIZATIONS = ("latent", "pixel")


@threestudio.register("dreammapping-image")
class ImageGeometry(BaseGeometry):
    """P particles for each of several prompts; picture number `prompt * P + particle`.

    Each picture is a parameter of its own, so that an optimizer leaves alone, moments included, those that take no part
    in a step. Sizes follow the teacher, which is known only after the geometry is built: whoever knows it calls `start`.
    """

    @dataclass
    class Config(BaseGeometry.Config):
        parameterization: str = "latent"
        """latent: the teacher's scaled latents. pixel: colors, -1 for black to 1 for white."""
        particles: int = 1
        """P, pictures per prompt."""
        size: Optional[Any] = None
        """[height, width] in pixels of the parameterization; None: the teacher's. Other sizes are resized for the
        teacher, which then sees something it was not trained on."""
        init: dict = field(default_factory=dict)
        """How pictures start: see PictureInit."""

    cfg: Config

    def configure(self) -> None:
        super().configure()
        cfg = self.cfg
        if cfg.parameterization not in PARAMETERIZATIONS:
            raise ConfigError(
                f"{WHERE}.parameterization is {cfg.parameterization!r}; it must be {' or '.join(PARAMETERIZATIONS)}"
            )
        if cfg.particles < 1:
            raise ConfigError(f"{WHERE}.particles is {cfg.particles}; it must be at least 1")
        if cfg.weights is not None:
            raise ConfigError(f"{WHERE}.weights has no place here: pictures have no size yet. Use system.weights")
        self._size = _size(cfg.size)
        self._init = parse_settings(PictureInit, cfg.init, f"{WHERE}.init")
        self.pictures = nn.ParameterList()

    def start(self, teacher: Teacher, prompts: int) -> None:
        """Make the first pictures for so many prompts, on the CPU. Raises ConfigError for a file that is no picture."""
        kind = PictureKind(self._shape(teacher), teacher if self.latent else None, torch.device(self.device))
        for number in range(prompts * self.cfg.particles):
            self.pictures.append(nn.Parameter(first_picture(self._init, kind, number)))

    @property
    def latent(self) -> bool:
        """Whether the values are latents."""
        return self.cfg.parameterization == "latent"

    def values(self, index: Sequence[int]) -> Tensor:
        """The parameters of pictures [B,C,h,w], with graph."""
        return torch.stack([self.pictures[number] for number in index])

    def prepare_for_state_dict(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Compare with a state dict that is about to be loaded, whose keys here start with `prefix`."""
        stored = {key: tuple(value.shape) for key, value in state.items() if key.startswith(f"{prefix}pictures.")}
        own = {f"{prefix}pictures.{n}": tuple(picture.shape) for n, picture in enumerate(self.pictures)}
        if stored and stored != own:
            raise ConfigError(
                f"the checkpoint has {_inventory(stored)}, this config makes {_inventory(own)}; resume with the run's "
                "own configs/parsed.yaml (and with the prompt file as it was, if there is one)"
            )

    def export(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Copies of all values on the CPU: latents or pixels [N,C,h,w]."""
        name = "latents" if self.latent else "pixels"
        return {name: self.values(range(len(self.pictures))).detach().cpu().clone()}

    def _shape(self, teacher: Teacher) -> tuple[int, int, int]:
        channels, *size = teacher.latent_shape if self.latent else (3, *teacher.image_size)
        height, width = self._size or size
        return channels, height, width


def _size(given: Any) -> tuple[int, int] | None:
    size = to_plain(given)
    if size is None:
        return None
    fits = isinstance(size, (list, tuple)) and len(size) == 2
    if not fits or not all(isinstance(side, int) and 1 <= side <= 4096 for side in size):
        raise ConfigError(
            f"{WHERE}.size is {size!r}; it must be [height, width], whole numbers from 1 to 4096, or null"
        )
    return size[0], size[1]


def _inventory(shapes: Mapping[str, tuple[int, ...]]) -> str:
    sizes = sorted({" x ".join(map(str, shape)) for shape in shapes.values()})
    return f"{len(shapes)} pictures of {' and '.join(sizes)}"
