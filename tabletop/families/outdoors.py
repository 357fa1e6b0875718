"""House, birdhouse, tree, cactus, mushroom."""

from __future__ import annotations

from math import cos, radians, sin

from ..primitives import CUT, EXTRA, MAIN, Kit
from .shared import BLACK, BROWN, CREAM, GLASS, GOLD, GRAY, PINK, RED, TERRACOTTA, WHITE, WOOD, face


def house(kit: Kit) -> None:
    """Door and windows on the front, a chimney towards the back."""
    d, w, h = kit.vary(0.27, 0.33), kit.vary(0.32, 0.40), kit.vary(0.27, 0.34)
    roof = kit.vary(0.12, 0.17)
    kit.box((0, 0, 0), (d, w, h), MAIN)
    kit.box((0, 0, h + roof), (d * 0.55, w * 0.60, roof), MAIN, taper=-d * 0.46 / roof)
    kit.box((0, 0, h), (d + 0.065, w + 0.065, 0.022), WHITE)
    kit.box((-d * 0.45, -w * 0.5, h + roof * 1.5), (0.055, 0.055, roof * 1.1), GRAY)
    kit.box((d, 0, -h * 0.42), (0.02, 0.085, h * 0.58), BROWN)
    kit.ball((d + 0.025, 0.05, -h * 0.42), 0.02, GOLD)
    for side in (-1, 1):
        kit.box((d, side * w * 0.62, h * 0.22), (0.015, 0.085, 0.095), WHITE)
        kit.box((d + 0.01, side * w * 0.62, h * 0.22), (0.015, 0.06, 0.07), GLASS)
    kit.box((0, w, h * 0.15), (0.08, 0.02, 0.08), GLASS)
    kit.box((0, 0, -h - 0.02), (d + 0.06, w + 0.06, 0.025), (0.35, 0.60, 0.25))


def birdhouse(kit: Kit) -> None:
    """On a pole; hole and perch on the front."""
    d, w, h = kit.vary(0.22, 0.27), kit.vary(0.23, 0.28), kit.vary(0.23, 0.29)
    kit.box((0, 0, 0), (d, w, h), MAIN)
    kit.box((0, 0, h), (d, w * 0.70, w * 0.70), MAIN, rot=(45, 0, 0))
    slope = w * 0.78
    for side in (-1, 1):
        kit.box((0, side * slope * 0.74, h + slope * 0.58), (d + 0.09, slope * 1.05, 0.028), MAIN, rot=(side * -45, 0, 0))
    kit.cylinder((d, 0, h * 0.42), 0.095, 0.015, BLACK, rot=(0, 90, 0))
    kit.rod((d, 0, -h * 0.25), (d + 0.15, 0, -h * 0.25), 0.025, WOOD)
    kit.cylinder((0, 0, -h - 0.16), 0.045, 0.18, BROWN)
    kit.cylinder((0, 0, -h - 0.34), 0.16, 0.025, BROWN)


def tree(kit: Kit) -> None:
    """Round crown; red apples and a hollow in the trunk on the front."""
    r, trunk = kit.vary(0.27, 0.33), kit.vary(0.19, 0.26)
    kit.cylinder((0, 0, -trunk), 0.105, trunk, BROWN, top=0.07)
    kit.ball((0, 0, r * 1.0), (r * 1.15, r * 1.15, r))
    for x, y, z, s in ((0.6, 0.1, 0.5, 0.7), (-0.6, 0.2, 0.55, 0.72), (0.1, 0.75, 0.6, 0.7), (0.0, -0.75, 0.65, 0.72), (0.05, 0.0, 1.75, 0.72)):
        kit.ball((x * r, y * r, z * r), r * s)
    for y, z in ((0.0, 1.25), (0.42, 0.62), (-0.4, 0.7), (-0.1, 0.3)):
        kit.ball((r * (1.13 if z < 1 else 1.02), y * r * 1.2, z * r), 0.062, RED)
    kit.ball((0.09, 0, -trunk * 1.0), (0.03, 0.045, 0.07), BLACK)


def cactus(kit: Kit) -> None:
    """In a pot, arms to both sides, a face on the front, a flower on top."""
    r, h = kit.vary(0.16, 0.20), kit.vary(0.46, 0.56)
    reach = kit.vary(0.16, 0.22)
    kit.rod((0, 0, 0), (0, 0, h), r)
    for side, low, high in ((1, 0.42, 0.30), (-1, 0.58, 0.22)):
        kit.rod((0, 0, h * low), (0, side * (r + reach), h * low), 0.088)
        kit.rod((0, side * (r + reach), h * low), (0, side * (r + reach), h * low + high), 0.088)
    kit.cylinder((0, 0, -0.10), 0.17, 0.13, TERRACOTTA, top=0.24)
    kit.cylinder((0, 0, 0.02), 0.265, 0.035, TERRACOTTA)
    kit.ball((0, 0, h + r), (0.09, 0.09, 0.05), PINK)
    kit.ball((0, 0, h + r + 0.04), 0.035, GOLD)
    face(kit, r * 0.97, h * 0.78, 0.085, 0.042)


def mushroom(kit: Kit) -> None:
    """A cap over a pale stem with a face on its front."""
    r, h = kit.vary(0.42, 0.50), kit.vary(0.30, 0.40)
    stem = kit.vary(0.15, 0.19)
    kit.ball((0, 0, 0), (r, r, h))
    kit.box((0, 0, -0.52), (0.8, 0.8, 0.5), group=CUT)
    kit.cylinder((0, 0, -0.02), r * 0.9, 0.015, CREAM, group=EXTRA)
    kit.cylinder((0, 0, -0.18), stem * 1.25, 0.20, CREAM, top=stem, rounding=0.04, group=EXTRA)
    face(kit, stem * 1.08, -0.14, 0.075, 0.042)
    for angle, tilt, size in ((30, 40, 0.075), (100, 50, 0.065), (160, 35, 0.08), (225, 52, 0.065), (290, 40, 0.075), (0, 85, 0.08)):
        a, t = radians(angle), radians(tilt)
        at = (r * cos(t) * cos(a), r * cos(t) * sin(a), h * sin(t))
        kit.ball(at, (0.025, size, size), WHITE, rot=(0, -tilt, angle), group=EXTRA)
