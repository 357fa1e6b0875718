"""What renderers and exporters share: they look at a geometry, a material and a background without owning them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class SubModules:
    """The three parts. A plain dataclass, so that their parameters don't appear twice in a state dict."""

    geometry: Any
    material: Any
    background: Any


class HasParts:
    """Read access to the three parts and setters to exchange them."""

    sub_modules: SubModules

    @property
    def geometry(self) -> Any:
        return self.sub_modules.geometry

    @property
    def material(self) -> Any:
        return self.sub_modules.material

    @property
    def background(self) -> Any:
        return self.sub_modules.background

    def set_geometry(self, geometry: Any) -> None:
        self.sub_modules.geometry = geometry

    def set_material(self, material: Any) -> None:
        self.sub_modules.material = material

    def set_background(self, background: Any) -> None:
        self.sub_modules.background = background
