"""A procedural, captioned world of everyday objects, from which the embedded text-to-image teacher is trained.

    labels = sample_labels(64, generator)
    scenes = sample_scenes(labels, generator, device=device)
    images = render(scenes, size=128, compile=True)        # uint8 [64, 3, 128, 128]
    texts = captions(labels, scenes.view, random.Random(0))
"""

from __future__ import annotations

from .cameras import VIEWS, view_labels
from .captions import caption, captions, plain_prompt, vocabulary
from .families import FAMILIES
from .materials import COLOR_RGB, COLORS, PATTERNS
from .render import render, render_float
from .world import Labels, Scenes, WorldError, all_labels, is_heldout, sample_labels, sample_scenes

__all__ = [
    "COLORS", "COLOR_RGB", "FAMILIES", "PATTERNS", "VIEWS", "Labels", "Scenes", "WorldError", "all_labels", "caption", "captions",
    "is_heldout", "plain_prompt", "render", "render_float", "sample_labels", "sample_scenes", "view_labels", "vocabulary",
]
