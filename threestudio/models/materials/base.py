"""Base class of materials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from threestudio.utils.base import BaseModule


class BaseMaterial(BaseModule):
    """Colors of surface or volume points.

    Renderers call `material(viewdirs=..., positions=..., light_positions=..., **geometry_output, **kwargs)`, so
    `forward` must accept keyword arguments it does not use.
    """

    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config
    requires_normal: bool = False
    """Whether the renderer has to ask the geometry for normals."""
    requires_tangent: bool = False
    """Whether the renderer has to supply tangents."""

    def configure(self) -> None:
        pass

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Colors [..., C]; see the class."""
        raise TypeError(f"{type(self).__name__} does not define forward(), which every material must.")

    def export(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Textures by name (albedo, metallic, roughness, bump), each [..., C]. Nothing by default."""
        return {}
