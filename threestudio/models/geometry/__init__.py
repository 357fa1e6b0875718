"""Geometry base classes; concrete geometries register themselves from the module that defines them."""

from threestudio.models.geometry import base

__all__ = ["base"]
