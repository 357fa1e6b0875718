"""Guidance classes threestudio can find by name."""

from __future__ import annotations

from .distillation_guidance import DreamMappingGuidance
from .stable_diffusion import StableDiffusionGuidance, StableDiffusionVSDGuidance

__all__ = ["DreamMappingGuidance", "StableDiffusionGuidance", "StableDiffusionVSDGuidance"]
