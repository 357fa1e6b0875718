"""Registered renderers."""

from . import gaussian_renderer, image_renderer
