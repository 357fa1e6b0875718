"""Where the Gaussians start: colored points from a sphere, a file or a mesh."""

from __future__ import annotations

from .points import ColoredPoints

__all__ = ["ColoredPoints"]
