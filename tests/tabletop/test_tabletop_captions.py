"""Captions say what is there, in known words."""

from __future__ import annotations

import random

import pytest
import torch

import tabletop as T
from tabletop.captions import COLOR_NAMES, FAMILY_NAMES, PATTERN_ADJECTIVES, words_of

VIEW_WORDS = {"side": {"side"}, "front": {"front"}, "back": {"back", "behind"}, "overhead": {"overhead", "above", "top"}}
PATTERN_WORDS = {
    "plain": {"plain"}, "striped": {"striped", "stripy", "stripes"}, "dotted": {"dotted", "polka", "spotted", "dots"},
    "checkered": {"checkered", "chequered", "checked", "checks", "checkerboard"}, "zigzag": {"zigzag", "zigzags"},
    "wooden": {"wooden", "wood"}, "metallic": {"metallic", "metal"},
}
COLOR_WORDS = {name: {words_of(wording)[-1] if wording != "lemon yellow" else "yellow" for wording in names} for name, names in COLOR_NAMES.items()}


def test_tables_cover_the_world():
    assert set(FAMILY_NAMES) == set(T.FAMILIES) and set(COLOR_NAMES) == set(T.COLORS) and set(PATTERN_ADJECTIVES) == set(T.PATTERNS)


def test_captions_tell_the_truth_in_known_words():
    rng = random.Random(0)
    known = set(T.vocabulary())
    labels = T.sample_labels(4000, torch.Generator().manual_seed(0), split="all")
    views = torch.randint(4, (4000,), generator=torch.Generator().manual_seed(1))
    with_view = with_color = with_pattern = 0
    for i, text in enumerate(T.captions(labels, views, rng)):
        words = set(words_of(text))
        assert words <= known, text
        family = FAMILY_NAMES[T.FAMILIES[labels.family[i]]]
        assert any(name in text for name in family), text
        own = {word for name in family for word in words_of(name)}
        for index, name in enumerate(T.COLORS):
            said = bool(COLOR_WORDS[name] & (words - own))
            assert not said or index == int(labels.color[i]), text
            with_color += said
        for index, name in enumerate(T.PATTERNS):
            said = bool(PATTERN_WORDS[name] & words)
            assert not said or index == int(labels.pattern[i]), text
            with_pattern += said and index > 0
        for index, name in enumerate(T.VIEWS):
            said = bool(VIEW_WORDS[name] & words)
            assert not said or index == int(views[i]), text
            with_view += said
    coloured, patterned = int((labels.color >= 0).sum()), int((labels.pattern > 0).sum())
    assert 0.55 < with_view / 4000 < 0.65
    assert 0.83 < with_color / coloured < 0.93 and 0.93 < with_pattern / patterned < 0.98


def test_an_unclear_view_is_never_named():
    rng = random.Random(0)
    words = {word for _ in range(300) for word in words_of(T.caption(0, 0, 0, -1, rng))}
    assert not words & set().union(*VIEW_WORDS.values())


def test_threestudio_view_phrases_occur():
    rng = random.Random(0)
    for index, name in enumerate(T.VIEWS):
        texts = [T.caption(0, 0, 0, index, rng) for _ in range(200)]
        assert any(text.endswith(f", {name} view") for text in texts) and any(text.startswith(f"{name} view of a") for text in texts)


def test_articles():
    rng = random.Random(0)
    for _ in range(3000):
        words = words_of(T.caption(rng.randrange(len(T.FAMILIES)), rng.randrange(-1, 12), rng.randrange(7), rng.randrange(4), rng))
        for article, following in zip(words, words[1:]):
            if article in ("a", "an"):
                assert (article == "an") == (following[0] in "aeio" or following == "umbrella"), words


def test_plain_prompt():
    mug, cone = T.FAMILIES.index("mug"), T.FAMILIES.index("ice cream cone")
    assert T.plain_prompt(mug, T.COLORS.index("red"), T.PATTERNS.index("striped")) == "a red striped mug"
    assert T.plain_prompt(cone, -1, 0) == "an ice cream cone"
    with pytest.raises(T.WorldError, match="family is 99"):
        T.plain_prompt(99, 0, 0)


def test_vocabulary_is_sorted_lower_case_words():
    words = T.vocabulary()
    assert words == sorted(set(words)) and all(word == word.lower() and " " not in word for word in words) and "mug" in words
