"""Chair, table, bed, sofa."""

from __future__ import annotations

from ..primitives import MAIN, Kit
from .shared import BROWN, CREAM, DARK, GOLD, WHITE, WOOD


def chair(kit: Kit) -> None:
    """The sitter looks to the front; the backrest is at -x."""
    w, d, leg = kit.vary(0.26, 0.33), kit.vary(0.25, 0.31), kit.vary(0.19, 0.27)
    back = kit.vary(0.26, 0.36)
    kit.box((0, 0, 0), (d, w, 0.05), MAIN, rounding=0.02)
    for x in (-1, 1):
        for y in (-1, 1):
            kit.box((x * (d - 0.05), y * (w - 0.05), -leg), (0.045, 0.045, leg), MAIN)
    for y in (-1, 1):
        kit.box((-d + 0.05, y * (w - 0.05), back), (0.045, 0.045, back), MAIN)
    kit.box((-d + 0.05, 0, back * 1.65), (0.035, w - 0.02, back * 0.36), MAIN)
    kit.box((-d + 0.05, 0, back * 0.72), (0.03, w - 0.04, back * 0.2), MAIN)
    kit.box((0.03, 0, 0.06), (d * 0.75, w * 0.75, 0.035), CREAM, rounding=0.03)


def table(kit: Kit) -> None:
    """A drawer with a knob on the front."""
    w, d, h = kit.vary(0.40, 0.52), kit.vary(0.28, 0.36), kit.vary(0.22, 0.32)
    kit.box((0, 0, h), (d, w, 0.045), MAIN, rounding=0.015)
    kit.box((0, 0, h - 0.10), (d - 0.06, w - 0.06, 0.075), MAIN)
    for x in (-1, 1):
        for y in (-1, 1):
            kit.cylinder((x * (d - 0.08), y * (w - 0.08), -0.02), 0.038, h, MAIN, top=0.055)
    kit.box((d - 0.055, 0, h - 0.105), (0.02, w * 0.62, 0.055), CREAM)
    kit.ball((d - 0.01, 0, h - 0.105), 0.038, DARK)


def bed(kit: Kit) -> None:
    """Pillows and the tall headboard at the back, a low footboard in front."""
    w, length, head = kit.vary(0.30, 0.38), kit.vary(0.46, 0.54), kit.vary(0.24, 0.32)
    kit.box((0, 0, 0), (length, w, 0.09), WOOD)
    kit.box((0.05, 0, 0.10), (length - 0.06, w + 0.015, 0.10), MAIN, rounding=0.05)
    kit.box((-length * 0.66, 0, 0.13), (length * 0.3, w - 0.02, 0.09), WHITE, rounding=0.04)
    kit.box((-length, 0, head * 0.6), (0.04, w + 0.03, head), MAIN, rounding=0.03)
    kit.box((length, 0, 0.02), (0.035, w + 0.03, 0.16), MAIN, rounding=0.03)
    for y in (-1, 1):
        kit.ball((-length * 0.70, y * w * 0.48, 0.25), (0.11, w * 0.4, 0.055), CREAM)
        for x in (-1, 1):
            kit.cylinder((x * (length - 0.03), y * (w - 0.04), -0.13), 0.04, 0.08, BROWN)


def sofa(kit: Kit) -> None:
    """Seat to the front, back at -x, an arm on each side."""
    w, d, h = kit.vary(0.44, 0.54), kit.vary(0.22, 0.28), kit.vary(0.26, 0.34)
    kit.box((0, 0, 0), (d, w, 0.11), MAIN, rounding=0.03)
    kit.box((-d + 0.04, 0, h * 0.62), (0.09, w, h * 0.75), MAIN, rounding=0.06)
    for y in (-1, 1):
        kit.box((0, y * w, 0.09), (d, 0.085, 0.19), MAIN, rounding=0.07)
        kit.box((0.06, y * w * 0.45, 0.14), (d - 0.06, w * 0.43, 0.06), MAIN, rounding=0.045)
        kit.box((-d + 0.19, y * w * 0.55, 0.31), (0.045, 0.12, 0.12), GOLD, rot=(y * 12, -12, 0), rounding=0.04)
        for x in (-1, 1):
            kit.cylinder((x * (d - 0.05), y * (w - 0.04), -0.15), 0.035, 0.06, BROWN)
