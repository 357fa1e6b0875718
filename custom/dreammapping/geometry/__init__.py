"""Geometries threestudio can find by name."""

from __future__ import annotations

from .gaussian_geometry import GaussianGeometry

__all__ = ["GaussianGeometry"]
