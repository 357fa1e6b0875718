"""Guidance classes threestudio can find by name."""

from __future__ import annotations

from .distillation_guidance import DreamMappingGuidance

__all__ = ["DreamMappingGuidance"]
