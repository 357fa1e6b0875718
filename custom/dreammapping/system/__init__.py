"""Registered systems."""

from . import system
