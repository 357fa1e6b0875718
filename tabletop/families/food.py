"""Donut, hamburger, ice cream cone, cake, strawberry, pumpkin."""

from __future__ import annotations

import math

from ..primitives import CUT, EXTRA, MAIN, Kit
from .shared import BLACK, BROWN, CREAM, GREEN, ORANGE, PINK, RED, TAN, WHITE, YELLOW, face

_TURQUOISE = (0.2, 0.8, 0.8)


def donut(kit: Kit) -> None:
    """Lying flat, icing on top; someone has bitten into its front."""
    big, small = kit.vary(0.34, 0.38), kit.vary(0.165, 0.20)
    kit.ring((0, 0, -0.025), big, small * 0.97, TAN)
    kit.ring((0, 0, 0.02), big, small * 1.04, MAIN)
    kit.ball((big + 0.22, 0, 0.05), 0.21, group=CUT)
    sprinkles = ((45, RED), (85, YELLOW), (120, _TURQUOISE), (155, WHITE), (200, GREEN), (240, YELLOW), (275, PINK), (315, WHITE))
    for angle, color in sprinkles:
        turn = (kit.vary(angle - 8, angle + 8)) * 0.017453
        r, lift = big + kit.vary(-0.06, 0.06), 0.02 + small * 1.0
        kit.ball((r * turn.cos(), r * turn.sin(), lift), (0.045, 0.02, 0.02), color, rot=(0, 0, kit.vary(0, 180)), group=EXTRA)


def hamburger(kit: Kit) -> None:
    """Two bun halves around lettuce, cheese and patty; a face on the front of the upper bun."""
    r, h = kit.vary(0.40, 0.46), kit.vary(0.28, 0.34)
    kit.ball((0, 0, 0.10), (r, r, h))
    kit.box((0, 0, -0.38), (1, 1, 0.45), group=CUT)
    kit.cylinder((0, 0, -0.19), r * 0.96, 0.09, MAIN, rounding=0.07, group=EXTRA)
    kit.cylinder((0, 0, -0.06), r * 1.0, 0.05, (0.30, 0.14, 0.06), rounding=0.045, group=EXTRA)
    kit.box((0, 0, 0.0), (r * 0.78, r * 0.78, 0.018), YELLOW, rot=(0, 0, 45), group=EXTRA)
    kit.cylinder((0, 0, 0.045), r * 1.05, 0.025, (0.35, 0.75, 0.15), rounding=0.02, group=EXTRA)
    face(kit, r * 0.90, h * 0.62, 0.13, 0.055, lean=20)
    for x, y in ((-0.1, 0.12), (0.08, 0.0), (-0.05, -0.15), (-0.22, -0.02), (0.02, 0.22)):
        z = 0.10 + h * (1 - (x * x + y * y) / (r * r)).sqrt()
        kit.ball((x, y, z), (0.03, 0.02, 0.012), CREAM, group=EXTRA)


def ice_cream_cone(kit: Kit) -> None:
    """Two scoops on a wafer; a face on the lower scoop, a wafer stick behind."""
    r, cone = kit.vary(0.27, 0.32), kit.vary(0.20, 0.26)
    kit.cylinder((0, 0, -cone), 0.04, cone, TAN, top=r * 0.82)
    kit.ring((0, 0, -0.01), r * 0.80, 0.04, (0.72, 0.48, 0.22))
    kit.ball((0, 0, r * 0.55), r)
    kit.ring((0, 0, r * 0.22), r * 0.86, 0.07, MAIN)
    kit.ball((0, 0, r * 1.55), r * 0.80)
    kit.ring((0, 0, r * 1.28), r * 0.66, 0.06, MAIN)
    kit.ball((0, 0, r * 2.42), 0.075, RED)
    kit.rod((-r * 0.45, 0.02, r * 1.6), (-r * 1.15, 0.06, r * 2.7), 0.04, BROWN)
    face(kit, r * 0.98, r * 0.82, 0.11, 0.048)


def cake(kit: Kit) -> None:
    """Two tiers on a plate, a slice missing in front, candles on top."""
    r, h = kit.vary(0.40, 0.46), kit.vary(0.13, 0.17)
    upper = r * kit.vary(0.58, 0.68)
    kit.cylinder((0, 0, 0), r, h, MAIN, rounding=0.03)
    kit.cylinder((0, 0, h * 1.9), upper, h, MAIN, rounding=0.03)
    for side in (-1, 1):  # the missing slice, two boxes that meet in the middle
        kit.box((0.36, side * 0.06, 0.02), (0.22, 0.10, h * 1.02), group=CUT, rot=(0, 0, side * 18))
    kit.box((0.20, 0, -h * 0.02), (0.04, 0.2, h * 0.75), (0.90, 0.30, 0.35), group=EXTRA)
    kit.cylinder((0, 0, -h - 0.02), r * 1.12, 0.025, (0.80, 0.82, 0.86), group=EXTRA)
    kit.ring((0, 0, h * 1.02), upper + 0.015, 0.032, WHITE, group=EXTRA)
    for y in (-0.12, 0.0, 0.12):
        kit.cylinder((-0.02, y, h * 2.9 + 0.07), 0.02, 0.08, PINK, group=EXTRA)
        kit.ball((-0.02, y, h * 2.9 + 0.19), (0.026, 0.026, 0.045), ORANGE, group=EXTRA)
    kit.ball((upper * 0.7, 0, h * 2.9 + 0.03), 0.065, RED, group=EXTRA)


def strawberry(kit: Kit) -> None:
    """Pointed below, leaves on top, a face on the front."""
    r, h = kit.vary(0.34, 0.40), kit.vary(0.30, 0.36)
    kit.cylinder((0, 0, 0), 0.135, h, MAIN, top=r, rounding=0.13)
    kit.ball((0, 0, h * 0.5), (r * 0.93, r * 0.93, h * 0.62))
    for angle in (0, 72, 144, 216, 288):
        kit.ball((0.15 * _cos(angle), 0.15 * _sin(angle), h + 0.065), (0.17, 0.065, 0.025), GREEN, rot=(0, 14, angle))
    kit.rod((0, 0, h), (0.02, 0, h + 0.2), 0.028, GREEN)
    for angle, z in ((75, 0.1), (125, -0.3), (165, 0.35), (205, -0.25), (260, 0.3), (290, -0.3), (180, -0.75)):
        s = 0.135 + (r - 0.135) * (0.5 + 0.5 * z)
        kit.ball((s * 0.99 * _cos(angle), s * 0.99 * _sin(angle), h * z), (0.016, 0.022, 0.03), YELLOW, rot=(0, 0, angle))
    face(kit, r * 0.90, h * 0.30, 0.12, 0.05)


def pumpkin(kit: Kit) -> None:
    """Ribs all around, a carved face on the front."""
    r, flat = kit.vary(0.22, 0.26), kit.vary(0.72, 0.95)
    h = r * 1.62 * flat
    for angle in range(0, 360, 45):
        kit.ball((r * 0.92 * _cos(angle), r * 0.92 * _sin(angle), 0), (r * 1.02, r * 0.86, h), rot=(0, 0, angle))
    kit.rod((0, 0, h * 0.75), (0.03, 0.04, h * 1.3), 0.055, GREEN)
    for side in (-1, 1):
        kit.box((r * 1.45, side * r * 0.70, h * 0.26), (0.07, r * 0.30, h * 0.17), BLACK, rot=(side * 12, 0, side * 18), taper=-0.5)
        kit.ball((r * 1.36, side * r * 0.75, -h * 0.30), (0.06, 0.055, 0.055), BLACK)
    kit.box((r * 1.86, 0, -h * 0.02), (0.05, 0.045, 0.045), BLACK, taper=-0.6)
    kit.ring((r * 1.56, 0, h * 0.02), r * 0.85, 0.05, BLACK, rot=(90, 0, 90), spin=180, arc=58)


def _cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def _sin(degrees: float) -> float:
    return _cos(degrees - 90.0)
