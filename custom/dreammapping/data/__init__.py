"""Data modules threestudio can find by name."""

from __future__ import annotations

from .image_data import ImageDataModule

__all__ = ["ImageDataModule"]
