"""Geometries threestudio can find by name."""

from __future__ import annotations

from .gaussian_geometry import GaussianGeometry
from .image_geometry import ImageGeometry
from .implicit_volume import InitializedVolume

__all__ = ["GaussianGeometry", "ImageGeometry", "InitializedVolume"]
