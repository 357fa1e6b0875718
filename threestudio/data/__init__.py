"""Data modules: where cameras come from."""

from threestudio.data import uncond

__all__ = ["uncond"]
