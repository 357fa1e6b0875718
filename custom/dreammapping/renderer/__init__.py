"""Registered renderers."""

from . import gaussian_renderer
