"""Exporters threestudio can find by name."""

from __future__ import annotations

from .splat_exporter import SplatExporter

__all__ = ["SplatExporter"]
