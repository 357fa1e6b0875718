"""Things in a house: mug, teapot, lamp, clock, umbrella, guitar, candle, bottle, gift box."""

from __future__ import annotations

from ..primitives import CUT, EXTRA, MAIN, Kit
from .shared import BLACK, BROWN, CREAM, DARK, GOLD, GRAY, RED, WHITE, WOOD, YELLOW, front_label

_FLAME, _CORK = (1.0, 0.55, 0.08), (0.78, 0.58, 0.36)


def mug(kit: Kit) -> None:
    """Handle at +y, a label with a dot on the front."""
    r, h = kit.vary(0.28, 0.36), kit.vary(0.30, 0.40)
    kit.cylinder((0, 0, 0), r * kit.vary(0.94, 1.0), h, MAIN, rounding=0.03, top=r)
    kit.cylinder((0, 0, 0.09), r - 0.09, h, group=CUT, rounding=0.02, top=r - 0.045)
    kit.cylinder((0, 0, h * 0.72), r - 0.05, 0.02, BROWN, group=EXTRA)
    kit.ring((0, r + 0.01, 0), h * kit.vary(0.48, 0.62), 0.045, MAIN, rot=(90, 0, 90), spin=-90, arc=100, group=EXTRA)
    front_label(kit, r * 0.995, 0.0, h * 0.42, CREAM, arc=38)
    kit.ball((r * 0.995, 0, 0), (0.03, h * 0.27, h * 0.27), RED, group=EXTRA)


def teapot(kit: Kit) -> None:
    """Spout and two golden spots to the front, handle to the back."""
    r, flat = kit.vary(0.36, 0.42), kit.vary(0.72, 0.92)
    z = r * flat
    kit.ball((0, 0, 0), (r, r, z))
    kit.cylinder((0, 0, -z * 0.93), r * 0.55, 0.05, MAIN)
    kit.ball((0, 0, z * 0.82), (r * 0.52, r * 0.52, r * 0.26))
    kit.ball((0, 0, z * 0.82 + r * 0.34), r * 0.15, GOLD)
    kit.rod((r * 0.75, 0, -z * 0.25), (r * 1.35, 0, z * 0.35), 0.085)
    kit.rod((r * 1.35, 0, z * 0.35), (r * 1.55, 0, z * 0.72), 0.058)
    for side in (-1, 1):  # painted spots beside the spout
        kit.ball((r * 0.80, side * r * 0.55, z * 0.12), (0.05, 0.085, 0.085), GOLD, rot=(0, 0, side * 35))
    kit.ball((r * 1.58, 0, z * 0.78), (0.04, 0.045, 0.03), DARK)
    kit.ring((-r * 0.98, 0, 0.02), r * kit.vary(0.48, 0.6), 0.048, MAIN, rot=(90, 0, 0), spin=90, arc=105)


def lamp(kit: Kit) -> None:
    """A shade on a pole; switch and pull cord on the front, cable and transformer behind."""
    r, h = kit.vary(0.34, 0.44), kit.vary(0.20, 0.27)
    pole = kit.vary(0.42, 0.56)
    kit.cylinder((0, 0, pole + h * 0.5), r, h, MAIN, top=r * kit.vary(0.5, 0.7), rounding=0.02)
    kit.cylinder((0, 0, pole - h * 0.6), r * 0.86, h * 0.3, (1.0, 0.95, 0.7), group=CUT)
    kit.rod((0, 0, 0), (0, 0, pole), 0.035, GOLD, group=EXTRA)
    kit.ball((0, 0, 0.14), (0.12, 0.12, 0.13), MAIN, group=EXTRA)
    kit.cylinder((0, 0, 0), r * 0.62, 0.05, MAIN, rounding=0.03, group=EXTRA)
    kit.rod((r * 0.55, 0, pole - h * 0.4), (r * 0.55, 0, pole - h * 1.5), 0.012, DARK, group=EXTRA)
    kit.ball((r * 0.55, 0, pole - h * 1.55), 0.04, RED, group=EXTRA)
    kit.ball((r * 0.42, 0, 0.06), (0.06, 0.06, 0.03), RED, group=EXTRA)
    kit.rod((-r * 0.55, 0, 0.03), (-r * 1.05, 0, -0.02), 0.03, DARK, group=EXTRA)  # the cable
    kit.box((-r * 0.58, 0, 0.06), (0.05, 0.07, 0.05), DARK, group=EXTRA)


def clock(kit: Kit) -> None:
    """An alarm clock: dial on the front, two bells on top, a winding key behind."""
    r, d = kit.vary(0.38, 0.44), kit.vary(0.13, 0.19)
    kit.cylinder((0, 0, 0), r, d, MAIN, rot=(0, 90, 0), rounding=0.05)
    kit.cylinder((d * 0.95, 0, 0), r * 0.72, 0.025, WHITE, rot=(0, 90, 0))
    front = d + 0.03
    hour, minute = kit.vary(-70, 70), kit.vary(-170, 170)
    for angle, length in ((hour, 0.36), (minute, 0.55)):
        turn = angle * 0.017453
        kit.rod((front, 0, 0), (front, r * length * turn.sin(), r * length * turn.cos()), 0.02, BLACK)
    for y, z in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        kit.ball((front - 0.01, y * r * 0.6, z * r * 0.6), (0.015, 0.032, 0.032), DARK)
    for side in (-1, 1):
        kit.ball((0, side * r * 0.52, r * 1.02), (0.13, 0.14, 0.11), MAIN, rot=(side * -28, 0, 0))
        kit.rod((0, side * r * 0.4, -r * 0.8), (0, side * r * 0.62, -r * 1.18), 0.045, DARK)
    kit.rod((0, 0, r), (0, 0, r * 1.25), 0.025, DARK)
    kit.box((-d - 0.06, 0, 0), (0.06, 0.12, 0.035), GOLD)


def umbrella(kit: Kit) -> None:
    """Open umbrella; the hook and a white emblem are on the front."""
    r, h = kit.vary(0.48, 0.56), kit.vary(0.28, 0.38)
    pole = kit.vary(0.50, 0.62)
    kit.ball((0, 0, 0), (r, r, h))
    kit.ball((0, 0, -0.03), (r - 0.03, r - 0.03, h - 0.02), group=CUT)
    kit.box((0, 0, -0.46), (0.8, 0.8, 0.45), group=CUT)
    kit.rod((0, 0, -pole), (0, 0, h + 0.07), 0.022, GRAY, group=EXTRA)
    kit.ring((0.09, 0, -pole), 0.09, 0.034, WOOD, rot=(90, 0, 0), spin=180, arc=90, group=EXTRA)
    kit.rod((0, 0, -pole), (0, 0, -pole + 0.12), 0.034, WOOD, group=EXTRA)
    kit.ball((r * 0.72, 0, h * 0.70), (0.03, 0.13, 0.11), WHITE, rot=(0, -38, 0), group=EXTRA)
    kit.ball((r * 0.76, 0, h * 0.72), (0.03, 0.06, 0.05), DARK, rot=(0, -38, 0), group=EXTRA)
    for y in (-1, 1):
        kit.ball((0, y * r * 0.98, 0.0), 0.03, GRAY, group=EXTRA)


def guitar(kit: Kit) -> None:
    """Strings, hole and bridge on the front, a plain back."""
    low, high = kit.vary(0.31, 0.36), kit.vary(0.23, 0.27)
    d, neck = kit.vary(0.08, 0.11), kit.vary(0.42, 0.52)
    waist = low * 0.72 + high * 0.62
    kit.cylinder((0, 0, -0.28), low, d, MAIN, rot=(0, 90, 0), rounding=0.03)
    kit.cylinder((0, 0, -0.28 + waist), high, d, MAIN, rot=(0, 90, 0), rounding=0.03)
    kit.cylinder((d, 0, -0.28 + waist * 0.72), 0.10, 0.012, BLACK, rot=(0, 90, 0))
    kit.box((d + 0.01, 0, -0.40), (0.025, 0.13, 0.035), BROWN)
    top = -0.28 + waist + high * 0.85
    kit.box((d - 0.02, 0, top + neck * 0.42), (0.03, 0.05, neck * 0.62), BROWN)
    kit.box((d - 0.02, 0, top + neck * 1.12), (0.03, 0.085, 0.12), MAIN)
    for side in (-1, 1):
        for z in (1.05, 1.22):
            kit.ball((d - 0.02, side * 0.11, top + neck * z), 0.032, GRAY)
        kit.rod((d + 0.02, side * 0.022, -0.40), (d + 0.02, side * 0.022, top + neck), 0.008, CREAM)


def candle(kit: Kit) -> None:
    """A thick candle on a saucer: a wax run on the front, the saucer's ring behind."""
    r, h = kit.vary(0.19, 0.26), kit.vary(0.34, 0.46)
    kit.cylinder((0, 0, 0), r, h, MAIN, rounding=0.03)
    kit.cylinder((0, 0, -h - 0.02), r * 1.35, 0.03, GOLD, top=r * 1.6, rounding=0.02)
    kit.ring((-r * 1.75, 0, -h + 0.06), 0.09, 0.025, GOLD, rot=(90, 0, 0))
    kit.rod((0, 0, h), (0, 0, h + 0.07), 0.014, BLACK)
    kit.ball((0, 0, h + 0.15), (0.055, 0.055, 0.11), _FLAME)
    kit.ball((0.02, 0, h + 0.13), (0.045, 0.03, 0.06), YELLOW)
    kit.rod((r * 0.98, 0.03, h * 0.95), (r * 0.98, 0.03, h * 0.45), 0.04, MAIN)
    kit.ball((r * 0.98, 0, -h * 0.15), (0.03, r * 0.42, r * 0.5), RED)
    kit.ball((r * 1.0, 0, -h * 0.15), (0.03, r * 0.22, r * 0.26), WHITE)


def bottle(kit: Kit) -> None:
    """Label on the front."""
    r, h = kit.vary(0.20, 0.26), kit.vary(0.34, 0.42)
    neck = kit.vary(0.16, 0.24)
    kit.cylinder((0, 0, 0), r, h, MAIN, rounding=0.04)
    kit.ball((0, 0, h - 0.03), (r * 0.98, r * 0.98, r * 0.8))
    kit.cylinder((0, 0, h + neck), 0.085, neck, MAIN)
    kit.ring((0, 0, h + neck * 1.65), 0.085, 0.022, MAIN)
    kit.cylinder((0, 0, h + neck * 2.1), 0.07, 0.06, _CORK)
    front_label(kit, r, -0.04, h * 0.52, CREAM, arc=52)
    front_label(kit, r + 0.012, -0.04, h * 0.14, RED, arc=40)


def gift_box(kit: Kit) -> None:
    """Ribbon around box and lid, a bow on top, a tag on the front."""
    w, d, h = kit.vary(0.32, 0.40), kit.vary(0.30, 0.40), kit.vary(0.24, 0.36)
    kit.box((0, 0, 0), (d, w, h), MAIN, rounding=0.015)
    kit.box((0, 0, h), (d + 0.035, w + 0.035, 0.075), MAIN, rounding=0.015)
    for lift, grow, half in ((0.0, 0.008, h), (h, 0.043, 0.082)):
        kit.box((0, 0, lift), (d + grow, 0.06, half), GOLD)
        kit.box((0, 0, lift), (0.06, w + grow, half), GOLD)
    for side in (-1, 1):
        kit.ball((0, side * 0.13, h + 0.16), (0.06, 0.13, 0.075), GOLD, rot=(side * 25, 0, 0))
    kit.ball((0, 0, h + 0.12), 0.06, GOLD)
    kit.box((d + 0.02, w * 0.5, h * 0.05), (0.02, w * 0.26, h * 0.3), WHITE, rot=(14, 0, 0))
    kit.ball((d + 0.04, w * 0.5, h * 0.05), (0.015, 0.045, 0.045), RED)
