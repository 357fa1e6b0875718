"""Renderer base classes."""

from threestudio.models.renderers import base

__all__ = ["base"]
