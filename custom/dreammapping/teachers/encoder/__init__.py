"""Images to latents, fast: the frozen VAE encoder with its gradient to the image, and tiny encoders in its place."""

from __future__ import annotations

from .choice import fast_encoder, recording
from .network import EncoderNetwork, FrozenEncoder, Layout, Unsupported
from .tiny import TinyEncoder, TinyEncoderOptions

__all__ = [
    "EncoderNetwork",
    "FrozenEncoder",
    "Layout",
    "TinyEncoder",
    "TinyEncoderOptions",
    "Unsupported",
    "fast_encoder",
    "recording",
]
