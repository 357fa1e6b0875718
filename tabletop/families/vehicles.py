"""Car, boat, airplane, rocket. All of them drive to the front (+x); the rocket stands upright."""

from __future__ import annotations

from math import cos, radians, sin

from ..primitives import CUT, EXTRA, MAIN, Kit
from .shared import BLACK, DARK, GLASS, GRAY, ORANGE, RED, WHITE, WOOD, YELLOW


def car(kit: Kit) -> None:
    """Yellow headlights and a grille in front, red lights behind."""
    length, w, h = kit.vary(0.50, 0.58), kit.vary(0.24, 0.28), kit.vary(0.105, 0.135)
    cabin, back = kit.vary(0.11, 0.15), kit.vary(-0.12, -0.02)
    wheel = kit.vary(0.115, 0.14)
    kit.box((0, 0, 0), (length, w, h), MAIN, rounding=0.06)
    kit.box((back, 0, h + cabin * 0.9), (length * 0.42, w * 0.78, cabin), MAIN, rounding=0.03, taper=-0.35)
    kit.box((back, 0, h + cabin * 0.85), (length * 0.445, w * 0.62, cabin * 0.62), GLASS, taper=-0.35)
    kit.box((back, 0, h + cabin * 0.85), (length * 0.32, w * 0.815, cabin * 0.62), GLASS, taper=-0.35)
    for side in (-1, 1):
        for x in (-0.60, 0.60):
            kit.cylinder((x * length, side * w, -h * 0.9), wheel, 0.055, BLACK, rot=(90, 0, 0), rounding=0.025)
            kit.cylinder((x * length, side * (w + 0.045), -h * 0.9), wheel * 0.5, 0.02, GRAY, rot=(90, 0, 0))
        kit.ball((length * 0.98, side * w * 0.66, h * 0.22), (0.04, 0.062, 0.055), YELLOW)
        kit.box((-length, side * w * 0.68, h * 0.25), (0.02, 0.055, 0.04), RED)
    kit.box((length, 0, -h * 0.1), (0.015, w * 0.34, h * 0.32), DARK)
    kit.box((length * 0.96, 0, -h * 0.72), (0.05, w * 0.9, 0.03), GRAY, rounding=0.02)


def boat(kit: Kit) -> None:
    """A sailing boat: pointed bow and a badge in front, rudder and a red flag behind."""
    length, w = kit.vary(0.46, 0.52), kit.vary(0.19, 0.23)
    mast = kit.vary(0.70, 0.82)
    kit.ball((0, 0, 0), (length, w, 0.24))
    kit.ball((length * 0.45, 0, 0), (length * 0.75, w * 0.72, 0.20))
    kit.box((0, 0, 0.30), (1, 1, 0.28), group=CUT)
    kit.box((-length * 0.05, 0, 0.0), (length * 0.62, w * 0.62, 0.03), WOOD, group=EXTRA)
    kit.rod((0, 0, 0), (0, 0, mast), 0.024, WOOD, group=EXTRA)
    kit.box((-0.20, 0, mast * 0.53), (0.10, 0.018, mast * 0.40), MAIN, rot=(0, 0, 14), taper=-0.26, group=EXTRA)
    kit.box((0.16, 0, mast * 0.42), (0.075, 0.018, mast * 0.28), MAIN, rot=(0, 0, -18), taper=-0.26, group=EXTRA)
    kit.box((-length * 0.55, 0, 0.07), (0.10, w * 0.55, 0.08), MAIN, rounding=0.02, group=EXTRA)
    kit.box((0, 0, mast + 0.02), (0.012, 0.012, 0.05), WOOD, group=EXTRA)
    kit.box((-0.08, 0, mast + 0.03), (0.08, 0.012, 0.04), RED, group=EXTRA)
    kit.box((-length * 0.97, 0, -0.06), (0.05, 0.03, 0.14), DARK, group=EXTRA)
    kit.ball((length * 1.02, 0, -0.04), (0.09, 0.06, 0.06), YELLOW, group=EXTRA)
    for side in (-1, 1):
        kit.ball((length * 0.62, side * w * 0.72, -0.07), (0.05, 0.03, 0.05), WHITE, group=EXTRA)


def airplane(kit: Kit) -> None:
    """Propeller and cockpit in front, fins behind."""
    length, r = kit.vary(0.44, 0.52), kit.vary(0.115, 0.145)
    span = kit.vary(0.48, 0.58)
    kit.ball((0, 0, 0), (length, r, r))
    kit.ball((length * 0.28, 0, 0), (length * 0.62, r * 1.08, r * 1.08))
    kit.box((length * 0.15, 0, -0.03), (0.13, span, 0.024), MAIN, rounding=0.02)
    kit.box((-length * 0.84, 0, 0.03), (0.075, span * 0.42, 0.02), MAIN, rounding=0.015)
    kit.box((-length * 0.88, 0, 0.14), (0.075, 0.022, 0.13), MAIN, rounding=0.015, rot=(0, -14, 0))
    kit.ball((length * 0.38, 0, r * 0.80), (0.13, r * 0.62, r * 0.62), GLASS)
    kit.ball((length * 0.92, 0, 0), (0.075, 0.065, 0.065), RED)
    for angle in (0, 90):
        kit.box((length * 0.93, 0, 0), (0.012, 0.02, 0.22), DARK, rot=(angle + 30, 0, 0))
    for side in (-1, 1):
        kit.cylinder((length * 0.25, side * span * 0.55, -0.065), 0.05, 0.11, GRAY, rot=(0, 90, 0))
        kit.box((length * 0.15, side * span, -0.03), (0.13, 0.035, 0.03), RED, rounding=0.02)
        for x in (0.05, -0.28, 0.38):
            kit.ball((x * length, side * r * (1.0 if x != -0.28 else 0.86), 0.035), (0.032, 0.03, 0.032), DARK)


def rocket(kit: Kit) -> None:
    """Standing upright; round windows and a hatch on the front."""
    r, h = kit.vary(0.17, 0.21), kit.vary(0.42, 0.52)
    kit.ball((0, 0, 0), (r, r, h * 1.15))
    kit.cylinder((0, 0, -h * 0.42), r * 0.86, h * 0.42, MAIN, top=r * 0.96)
    kit.cylinder((0, 0, h * 0.98), r * 0.55, h * 0.22, RED, top=0.012)
    for z, size in ((0.35, 0.10), (-0.12, 0.075)):
        kit.cylinder((r * (0.97 if z < 0 else 0.92), 0, h * z), size, 0.035, WHITE, rot=(0, 90, 0))
        kit.cylinder((r * (0.97 if z < 0 else 0.92) + 0.02, 0, h * z), size * 0.68, 0.03, GLASS, rot=(0, 90, 0))
    kit.box((r * 0.92, 0, -h * 0.55), (0.025, 0.055, 0.085), DARK)
    for angle in (45, 135, 225, 315):
        a = radians(angle)
        kit.box((r * 1.2 * cos(a), r * 1.2 * sin(a), -h * 0.72), (0.11, 0.02, 0.15), RED, rot=(0, 14, angle), taper=-0.35)
    kit.cylinder((0, 0, -h * 0.90), r * 0.62, 0.05, DARK)
    kit.ball((0, 0, -h * 1.05), (r * 0.48, r * 0.48, 0.17), ORANGE)
    kit.ball((0, 0, -h * 1.02), (r * 0.60, r * 0.60, 0.08), YELLOW)
