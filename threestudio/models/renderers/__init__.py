"""Renderers."""

from threestudio.models.renderers import base, nerf_volume_renderer, patch_renderer

__all__ = ["base", "nerf_volume_renderer", "patch_renderer"]
