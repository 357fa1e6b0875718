"""Captions: many wordings of (family, colour, pattern, view), and the list of all words they use."""

from __future__ import annotations

import random
import re
from typing import Sequence

from torch import Tensor

from .cameras import VIEWS
from .families import FAMILIES
from .materials import COLORS, PATTERNS
from .world import NATURAL, Labels, WorldError

UNCLEAR = -1  # view label of a picture that shows no view clearly

# The first name of each list is the canonical one, used by plain_prompt and most often in captions.
FAMILY_NAMES: dict[str, tuple[str, ...]] = {
    "mug": ("mug", "cup", "coffee mug"), "teapot": ("teapot", "tea pot"), "lamp": ("lamp", "table lamp", "desk lamp"),
    "clock": ("clock", "alarm clock"), "umbrella": ("umbrella", "parasol"), "guitar": ("guitar", "acoustic guitar"),
    "candle": ("candle", "candle on a saucer"), "bottle": ("bottle", "glass bottle", "wine bottle"),
    "gift box": ("gift box", "present", "gift", "wrapped present"), "chair": ("chair", "dining chair"),
    "table": ("table", "desk"), "bed": ("bed",), "sofa": ("sofa", "couch"), "donut": ("donut", "doughnut"),
    "hamburger": ("hamburger", "burger", "cheeseburger"), "ice cream cone": ("ice cream cone", "ice cream", "ice cream in a cone"),
    "cake": ("cake", "birthday cake"), "strawberry": ("strawberry",), "pumpkin": ("pumpkin", "jack-o-lantern", "halloween pumpkin"),
    "house": ("house", "cottage", "small house"), "birdhouse": ("birdhouse", "bird house"), "tree": ("tree", "apple tree"),
    "cactus": ("cactus", "cactus in a pot", "potted cactus"), "mushroom": ("mushroom", "toadstool"), "snowman": ("snowman",),
    "duck": ("duck", "rubber duck", "toy duck"), "fish": ("fish", "goldfish"), "teddy bear": ("teddy bear", "teddy", "toy bear"),
    "robot": ("robot", "toy robot"), "car": ("car", "toy car", "automobile"), "boat": ("boat", "sailboat", "sailing boat"),
    "airplane": ("airplane", "plane", "aeroplane", "propeller plane"), "rocket": ("rocket", "rocket ship", "spaceship"),
}
COLOR_NAMES: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"), "orange": ("orange",), "yellow": ("yellow", "lemon yellow"), "green": ("green", "emerald"),
    "turquoise": ("turquoise", "cyan", "teal"), "blue": ("blue", "royal blue"), "purple": ("purple", "violet"), "pink": ("pink", "rose pink"),
    "brown": ("brown", "chocolate brown"), "black": ("black",), "white": ("white",), "gray": ("gray", "grey"),
}
PATTERN_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "plain": ("", "", "", "plain"), "striped": ("striped", "stripy"), "checkered": ("checkered", "chequered", "checked"),
    "dotted": ("dotted", "polka dot", "spotted"), "zigzag": ("zigzag", "zigzag patterned"), "wooden": ("wooden", "wood"),
    "metallic": ("metallic", "metal", "shiny metal"),
}
# Said after the noun; {} is the colour with a space, or nothing.
PATTERN_PHRASES: dict[str, tuple[str, ...]] = {
    "plain": (), "striped": ("with {}stripes",), "checkered": ("with {}checks", "with a {}checkerboard pattern"),
    "dotted": ("with {}dots", "with {}polka dots"), "zigzag": ("with a {}zigzag pattern", "with {}zigzags"),
    "wooden": ("made of {}wood", "carved from {}wood"), "metallic": ("made of {}metal", "made of shiny {}metal"),
}
OPENINGS: tuple[str, ...] = (
    "{}", "{}", "{}", "a photo of {}", "photo of {}", "a DSLR photo of {}", "a 3d render of {}", "a rendering of {}", "a picture of {}",
    "an image of {}", "a 3d model of {}", "a close-up of {}", "a high quality photo of {}",
)
VIEW_ENDINGS: dict[str, tuple[str, ...]] = {
    "side": (", side view",), "front": (", front view",), "back": (", back view",), "overhead": (", overhead view",),
}
VIEW_OPENINGS: dict[str, tuple[str, ...]] = {
    "side": ("side view of {}", "{} seen from the side"), "front": ("front view of {}", "{} seen from the front"),
    "back": ("back view of {}", "{} seen from behind"), "overhead": ("overhead view of {}", "{} seen from above", "top view of {}"),
}
_NO_COLOR, _NO_PATTERN, _WITH_VIEW, _CANONICAL = 0.12, 0.04, 0.6, 0.6


def _name(names: Sequence[str], rng: random.Random) -> str:
    """The canonical name in 60 % of the cases, else any of the list."""
    return names[0] if rng.random() < _CANONICAL else rng.choice(names)


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeio" or phrase.startswith("umbrella") else "a ") + phrase


def _phrase(phrase: str, color: str) -> str:
    """A pattern phrase with the colour (may be empty) filled in and the article in front of it put right."""
    return re.sub(r"\ba (?=[aeio])", "an ", phrase.format(color + " " if color else ""))


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


def _subject(noun: str, color: str, pattern: str, rng: random.Random) -> str:
    """The object with its colour and pattern, in one of several word orders. color may be empty."""
    phrases = PATTERN_PHRASES[pattern]
    draw = rng.random()
    if phrases and draw < 0.25:
        phrase = rng.choice(phrases)
        if pattern in ("wooden", "metallic") and rng.random() < 0.5:  # "made of red wood"
            return _join(_article(noun), _phrase(phrase, color))
        if pattern not in ("wooden", "metallic") and color not in ("", "white") and rng.random() < 0.5:  # "with red stripes"
            return _join(_article(noun), _phrase(phrase, color))
        return _join(_article(_join(color, noun)), _phrase(phrase, ""))
    adjective = _name(PATTERN_ADJECTIVES[pattern], rng)
    if draw < 0.35 and (color or adjective):
        return f"{_article(noun)}, {' and '.join(word for word in (color, adjective) if word)}"
    if draw < 0.45 and pattern in ("wooden", "metallic"):
        return _article(_join(adjective, color, noun))
    return _article(_join(color, adjective, noun))


def _check(family: int, color: int, pattern: int, view: int = 0) -> None:
    for what, value, names, low in (("family", family, FAMILIES, 0), ("color", color, COLORS, NATURAL), ("pattern", pattern, PATTERNS, 0),
                                    ("view", view, VIEWS, UNCLEAR)):
        if not low <= value < len(names):
            raise WorldError(f"{what} is {value}; it must be an index from {low} to {len(names) - 1}")


def caption(family: int, color: int, pattern: int, view: int, rng: random.Random) -> str:
    """One random wording. Indices into FAMILIES, COLORS (-1: never names a colour), PATTERNS and VIEWS (-1: never names a view).

    What it says is always true of the image; colour, pattern and view may go unmentioned (12 %, 4 %, 40 %). Patterns seldom do, because
    "a red mug" should mean a plain one.
    """
    _check(family, color, pattern, view)
    noun = _name(FAMILY_NAMES[FAMILIES[family]], rng)
    hue = "" if color == NATURAL or rng.random() < _NO_COLOR else _name(COLOR_NAMES[COLORS[color]], rng)
    shown = "plain" if rng.random() < _NO_PATTERN else PATTERNS[pattern]
    # An unmentioned pattern must not turn into the claim "plain".
    subject = _subject(noun, hue, shown, rng) if shown == PATTERNS[pattern] else _article(_join(hue, noun))
    if view == UNCLEAR or rng.random() >= _WITH_VIEW:
        return rng.choice(OPENINGS).format(subject)
    name = VIEWS[view]
    if rng.random() < 0.7:
        return rng.choice(OPENINGS).format(subject) + rng.choice(VIEW_ENDINGS[name])
    return rng.choice(VIEW_OPENINGS[name]).format(subject)


def captions(labels: Labels, views: Tensor, rng: random.Random) -> list[str]:
    """One caption per label. views: [B] indices into VIEWS, -1 where no view is to be named."""
    rows = zip(labels.family.tolist(), labels.color.tolist(), labels.pattern.tolist(), views.tolist())
    return [caption(*row, rng) for row in rows]


def plain_prompt(family: int, color: int, pattern: int) -> str:
    """The canonical prompt, such as "a red striped mug"."""
    _check(family, color, pattern)
    hue = "" if color == NATURAL else COLORS[color]
    shown = PATTERN_ADJECTIVES[PATTERNS[pattern]][0]
    return _article(_join(hue, shown, FAMILY_NAMES[FAMILIES[family]][0]))


def words_of(text: str) -> list[str]:
    """Lower-case words; hyphens stay inside a word, punctuation is dropped."""
    return re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", text.lower())


def vocabulary() -> list[str]:
    """Every word that can occur in a caption, sorted, lower case."""
    texts: list[str] = ["a", "an", "and", *OPENINGS]
    for table in (FAMILY_NAMES, COLOR_NAMES, PATTERN_ADJECTIVES, PATTERN_PHRASES, VIEW_ENDINGS, VIEW_OPENINGS):
        for wordings in table.values():
            texts.extend(wordings)
    return sorted({word for text in texts for word in words_of(text)})
