"""Takes pictures out of an image geometry: nothing to project, no camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import threestudio
from threestudio.models.renderers.base import Renderer

from ..errors import ConfigError
from .clamp import StayInRange


@threestudio.register("dreammapping-image-renderer")
class ImageRenderer(Renderer):
    """Hands out `dreammapping-image` pictures in the form the guidance takes."""

    @dataclass
    class Config(Renderer.Config):
        pass

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry=geometry, material=material, background=background)
        if not hasattr(geometry, "pictures"):
            raise ConfigError(
                f"dreammapping-image-renderer shows pictures; the geometry is {type(geometry).__name__}. "
                "Choose system.geometry_type=dreammapping-image, or the renderer that fits the geometry."
            )

    def forward(self, index: Sequence[int], **kwargs: Any) -> dict[str, Any]:
        """The pictures of these numbers, B of them; a number may appear several times.

        Returns:
            latents [B,h,w,C], the teacher's scaled ones, or comp_rgb [B,H,W,3] in [0,1], by the geometry's
            parameterization; both with graph.
        """
        values = self.geometry.values(index).permute(0, 2, 3, 1)
        if self.geometry.latent:
            return {"latents": values}
        return {"comp_rgb": StayInRange.apply((values + 1) / 2)}
