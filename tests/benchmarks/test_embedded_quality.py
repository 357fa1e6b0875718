"""The prompts of the quality benchmark are what it says they are."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from tabletop.world import COLORS, FAMILIES, PATTERNS, is_heldout

ROOT = Path(__file__).resolve().parents[2]


def load_benchmark():
    spec = importlib.util.spec_from_file_location("embedded_quality", ROOT / "benchmarks" / "embedded_quality.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_last_three_prompts_are_unseen_combinations():
    indices = [(FAMILIES.index(f), COLORS.index(c), PATTERNS.index(p)) for f, c, p in load_benchmark().PROMPTS]
    held = [bool(is_heldout(*(torch.tensor(i) for i in row))) for row in indices]
    assert held == [False] * 7 + [True] * 3


def test_prompts_read_as_a_user_would_write_them():
    prompt_of = load_benchmark().prompt_of
    assert prompt_of("mug", "red", "striped") == "a red striped mug"
    assert prompt_of("duck", "orange", "plain") == "an orange duck"
