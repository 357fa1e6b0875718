"""Renders training views coarsely, with one patch of each at full resolution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import threestudio
from threestudio import register
from threestudio.errors import ConfigError
from threestudio.models.parts import SubModules
from threestudio.models.renderers.base import Renderer


@register("patch-renderer")
class PatchRenderer(Renderer):
    """Another renderer of rays, at a fraction of its cost in training.

    In training the views are rendered at 1 / `global_downsample` of their size and enlarged, then one random patch, the
    same in all views, is rendered at full resolution and pasted in. What is not an image (samples and the like) comes
    from the coarse pass. In evaluation the other renderer renders as ever.
    """

    @dataclass
    class Config(Renderer.Config):
        patch_size: int = 128
        """Side of the patch in pixels; at most the image's is taken."""
        base_renderer_type: str = ""
        """Registered name of the other renderer, which takes rays, such as nerf-volume-renderer."""
        base_renderer: dict = field(default_factory=dict)
        global_detach: bool = False
        """Whether only the patch has gradients."""
        global_downsample: int = 4

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        # The parts and the box are the other renderer's, so that there is one of each.
        if not self.cfg.base_renderer_type:
            raise ConfigError("patch-renderer: base_renderer_type is not set. Give one, such as nerf-volume-renderer.")
        for key in ("patch_size", "global_downsample"):
            if self.cfg[key] < 1:
                raise ConfigError(f"patch-renderer: {key} is {self.cfg[key]}; it must be at least 1.")
        self.base_renderer = threestudio.find(self.cfg.base_renderer_type)(
            self.cfg.base_renderer, geometry=geometry, material=material, background=background
        )

    @property
    def sub_modules(self) -> SubModules:
        return self.base_renderer.sub_modules

    @property
    def bbox(self) -> Tensor:
        """[2, 3], the other renderer's."""
        return self.base_renderer.bbox

    def forward(
        self, rays_o: Tensor, rays_d: Tensor, light_positions: Tensor, bg_color: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Render views; arguments and results as those of the other renderer (see `NeRFVolumeRenderer.forward`)."""
        if not self.training:
            return self.base_renderer(rays_o, rays_d, light_positions, bg_color, **kwargs)
        height, width = rays_o.shape[1:3]
        coarse_size = tuple(max(1, side // self.cfg.global_downsample) for side in (height, width))
        coarse_bg = bg_color
        if bg_color is not None and bg_color.dim() == 4:
            coarse_bg = _resize(bg_color, coarse_size)
        out = self.base_renderer(
            _resize(rays_o, coarse_size), _resize(rays_d, coarse_size), light_positions, coarse_bg, **kwargs
        )
        patch = _random_patch(height, width, self.cfg.patch_size)
        patch_bg = bg_color[patch] if bg_color is not None and bg_color.dim() == 4 else bg_color
        fine = self.base_renderer(rays_o[patch], rays_d[patch], light_positions, patch_bg, **kwargs)

        image = fine["comp_rgb"].shape[:3]
        for key, value in fine.items():
            if isinstance(value, Tensor) and value.dim() == 4 and value.shape[:3] == image:
                whole = _resize(out[key], (height, width))
                whole = whole.detach() if self.cfg.global_detach else whole
                whole = whole.clone()
                whole[patch] = value
                out[key] = whole
        return out


def _resize(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """[B, h, w, C] to [B, *size, C], bilinear between pixel centers."""
    channels_first = images.permute(0, 3, 1, 2)
    return F.interpolate(channels_first, size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def _random_patch(height: int, width: int, size: int) -> tuple[slice, slice, slice]:
    """Index into [B, H, W, ...] of a square (or all, where the image is smaller) at a random place."""
    rows, columns = min(size, height), min(size, width)
    # From torch's global generator on the CPU, so that a seed gives the same patch on every device.
    top = int(torch.randint(height - rows + 1, ()))
    left = int(torch.randint(width - columns + 1, ()))
    return slice(None), slice(top, top + rows), slice(left, left + columns)
