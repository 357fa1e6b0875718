"""Colours of accessories and the few parts that several families share."""

from __future__ import annotations

from ..primitives import EXTRA, Kit, Number

BLACK, DARK, WHITE, GRAY = (0.04, 0.04, 0.05), (0.16, 0.16, 0.18), (0.97, 0.97, 0.97), (0.62, 0.63, 0.66)
CREAM, TAN, WOOD, BROWN = (0.97, 0.91, 0.72), (0.85, 0.62, 0.34), (0.48, 0.29, 0.14), (0.28, 0.15, 0.07)
RED, ORANGE, YELLOW, GOLD = (0.85, 0.08, 0.08), (1.0, 0.55, 0.05), (1.0, 0.85, 0.15), (0.93, 0.72, 0.20)
GREEN, GLASS, PINK, TERRACOTTA = (0.15, 0.55, 0.15), (0.45, 0.75, 0.95), (0.98, 0.45, 0.65), (0.75, 0.36, 0.20)


def face(kit: Kit, front: Number, height: Number, spread: Number, size: Number = 0.045, lean: float = 0.0) -> None:
    """Two white-rimmed eyes and a smile at x = front: what tells the front of a round object from its back.

    Args:
        front, height: x and z of the eyes' centres. spread: y distance of each eye from the middle.
        size: eye radius. lean: degrees by which the face looks up.
    """
    for side in (-1.0, 1.0):
        at = (front, side * spread, height)
        kit.ball(at, (size * 0.6, size * 1.25, size * 1.25), WHITE, rot=(0.0, -lean, 0.0), group=EXTRA)
        kit.ball((front + size * 0.4, side * spread, height), (size * 0.5, size * 0.75, size * 0.8), BLACK, group=EXTRA)
    kit.ring((front, 0.0, height - size * 1.0), spread * 0.62, size * 0.33, BLACK, rot=(90.0, lean, 90.0), spin=180.0, arc=65.0, group=EXTRA)


def front_label(kit: Kit, radius: Number, height: Number, half: Number, color: tuple[float, float, float], arc: float = 40.0) -> None:
    """A strip around the front of an upright cylinder of that radius."""
    kit.ring((0.0, 0.0, height), radius, 0.008, color, spin=-90.0, arc=arc, band=half, group=EXTRA)
