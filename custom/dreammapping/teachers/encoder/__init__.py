"""The frozen VAE encoder, fast: forward pass and the gradient to the image, nothing else."""

from __future__ import annotations

from .network import EncoderNetwork, FrozenEncoder, Layout, Unsupported

__all__ = ["EncoderNetwork", "FrozenEncoder", "Layout", "Unsupported"]
