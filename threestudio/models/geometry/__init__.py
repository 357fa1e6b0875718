"""Geometry base classes; concrete geometries register themselves from the module that defines them."""

from threestudio.models.geometry import base, implicit_volume, volume_grid

__all__ = ["base", "implicit_volume", "volume_grid"]
