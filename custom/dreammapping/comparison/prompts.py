"""Prompts of the embedded world: a family, a color and a pattern in words, and back."""

from __future__ import annotations

from collections.abc import Sequence

PLAIN = "plain"
"""The pattern that prompts do not name."""


def prompt_of(family: str, color: str, pattern: str) -> str:
    """"a blue car", "an orange striped mug"."""
    words = [color, *([] if pattern == PLAIN else [pattern]), family]
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def words_of(prompt: str, families: Sequence[str], colors: Sequence[str], patterns: Sequence[str]) -> tuple[str, str, str] | None:
    """Family, color and pattern of a prompt that `prompt_of` made of these words; None for any other prompt."""
    article, _, rest = prompt.partition(" ")
    color = next((word for word in colors if rest.startswith(f"{word} ")), None)
    if article not in ("a", "an") or color is None:
        return None
    rest = rest[len(color) + 1 :]
    pattern = next((word for word in patterns if rest.startswith(f"{word} ")), PLAIN)
    family = rest.removeprefix(f"{pattern} ")
    return (family, color, pattern) if family in families and prompt == prompt_of(family, color, pattern) else None
