"""Registered systems."""

from . import image_system, system
