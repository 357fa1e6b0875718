"""Snowman, duck, fish, teddy bear, robot: whatever looks back at you."""

from __future__ import annotations

from ..primitives import MAIN, Kit
from .shared import BLACK, BROWN, CREAM, DARK, GLASS, GRAY, ORANGE, RED, WHITE, YELLOW


def snowman(kit: Kit) -> None:
    """Carrot nose, buttons, hat and stick arms."""
    r = kit.vary(0.29, 0.34)
    chest, head = r * kit.vary(0.70, 0.80), r * kit.vary(0.52, 0.60)
    z1, z2 = r + chest * 0.62, r + chest * 1.35 + head * 0.62
    kit.ball((0, 0, 0), (r, r, r * 0.95))
    kit.ball((0, 0, z1 - r * 0.15), chest)
    kit.ball((0, 0, z2 - r * 0.15), head)
    z2 = z2 - r * 0.15
    kit.cylinder((head * 1.35, 0, z2), 0.055, 0.13, ORANGE, rot=(0, 90, 0), top=0.012)
    for side in (-1, 1):
        kit.ball((head * 0.86, side * head * 0.38, z2 + head * 0.36), 0.036, BLACK)
        kit.rod((0, side * chest * 0.85, z1), (0.02, side * (chest + 0.26), z1 + 0.16), 0.025, BROWN)
    for lift in (0.35, -0.3):
        kit.ball((chest * 0.94, 0, z1 - r * 0.15 + lift * chest), 0.035, BLACK)
    kit.ball((r * 0.96, 0, r * 0.2), 0.04, BLACK)
    kit.cylinder((0, 0, z2 + head * 0.80), head * 1.05, 0.025, BLACK)
    kit.cylinder((0, 0, z2 + head * 1.2), head * 0.68, head * 0.42, BLACK)
    kit.ring((0, 0, z2 - head * 0.78), head * 0.72, 0.05, RED)
    kit.rod((head * 0.7, 0.1, z2 - head * 0.85), (head * 0.95, 0.14, z2 - head * 1.7), 0.05, RED)


def duck(kit: Kit) -> None:
    """A rubber duck."""
    body, head = kit.vary(0.32, 0.37), kit.vary(0.20, 0.24)
    neck = kit.vary(0.30, 0.36)
    kit.ball((0, 0, 0), (body * 1.18, body * 0.92, body * 0.74))
    kit.ball((body * 0.62, 0, neck + 0.08), head)
    kit.ball((body * 0.55, 0, neck * 0.5), (head * 0.8, head * 0.8, head * 0.9))
    kit.ball((-body * 1.08, 0, body * 0.36), (0.16, 0.12, 0.08), rot=(0, 40, 0))
    front = body * 0.62 + head
    kit.ball((front, 0, neck + 0.05), (0.12, 0.10, 0.035), ORANGE)
    kit.ball((front - 0.02, 0, neck + 0.01), (0.09, 0.08, 0.03), (0.9, 0.4, 0.02))
    for side in (-1, 1):
        eye = (body * 0.62 + head * 0.76, side * head * 0.52, neck + 0.08 + head * 0.42)
        kit.ball(eye, 0.05, WHITE)
        kit.ball((eye[0] + 0.025, side * head * 0.60, eye[2]), 0.034, BLACK)
        kit.ball((-body * 0.12, side * body * 0.86, 0.05), (body * 0.58, 0.06, body * 0.36), rot=(0, 18, 0))


def fish(kit: Kit) -> None:
    """Looks to the front (+x), tail behind."""
    length, h, w = kit.vary(0.36, 0.42), kit.vary(0.24, 0.31), kit.vary(0.15, 0.20)
    kit.ball((0, 0, 0), (length, w, h))
    for side in (-1, 1):
        kit.ball((-length * 1.22, 0, side * 0.12), (0.20, 0.035, 0.08), rot=(0, side * 42, 0))
        eye = (length * 0.68, side * w * 0.66, h * 0.22)
        kit.ball(eye, 0.065, WHITE)
        kit.ball((length * 0.72, side * w * 0.86, h * 0.22), 0.04, BLACK)
        kit.ball((0.02, side * w * 1.05, -0.06), (0.12, 0.03, 0.06), ORANGE, rot=(side * 30, -35, side * -25))
    kit.ball((-0.05, 0, h * 0.98), (0.20, 0.03, 0.11), ORANGE, rot=(0, 14, 0))
    kit.ball((-0.05, 0, -h * 0.95), (0.10, 0.028, 0.07), ORANGE, rot=(0, -20, 0))
    kit.ring((length * 0.97, 0, -h * 0.18), 0.05, 0.026, RED, rot=(0, 90, 0))


def teddy_bear(kit: Kit) -> None:
    """Sitting, legs to the front."""
    body, head = kit.vary(0.25, 0.30), kit.vary(0.21, 0.25)
    z = body + head * 0.75
    kit.ball((0, 0, 0), (body * 0.88, body, body * 1.08))
    kit.ball((body * 0.70, 0, -0.01), (body * 0.25, body * 0.58, body * 0.66), CREAM)
    kit.ball((0.03, 0, z), head)
    kit.ball((head * 0.92, 0, z - head * 0.25), (0.09, 0.11, 0.085), CREAM)
    kit.ball((head * 0.92 + 0.085, 0, z - head * 0.15), (0.03, 0.042, 0.032), BLACK)
    for side in (-1, 1):
        kit.ball((0.03, side * head * 0.80, z + head * 0.72), (0.055, 0.095, 0.095))
        kit.ball((0.07, side * head * 0.80, z + head * 0.72), (0.03, 0.055, 0.055), CREAM)
        kit.ball((head * 0.88, side * head * 0.40, z + head * 0.22), 0.036, BLACK)
        kit.rod((0.02, side * body * 0.85, body * 0.42), (0.16, side * (body + 0.12), -0.02), 0.08)
        kit.rod((0.05, side * body * 0.60, -body * 0.78), (0.32, side * body * 0.85, -body * 0.86), 0.10)
        kit.ball((0.41, side * body * 0.88, -body * 0.86), (0.03, 0.07, 0.07), CREAM)


def robot(kit: Kit) -> None:
    """Eyes, mouth and a panel of lights in front, a battery behind."""
    w, h = kit.vary(0.21, 0.26), kit.vary(0.21, 0.26)
    head = kit.vary(0.15, 0.19)
    z = h + head + 0.06
    kit.box((0, 0, 0), (w * 0.75, w, h), MAIN, rounding=0.03)
    kit.box((0, 0, z), (head * 0.85, head * 1.15, head), MAIN, rounding=0.03)
    kit.cylinder((0, 0, h + 0.03), 0.06, 0.05, DARK)
    front = head * 0.85
    for side in (-1, 1):
        kit.cylinder((front, side * head * 0.5, z + head * 0.22), 0.055, 0.02, YELLOW, rot=(0, 90, 0))
        kit.rod((0, side * (w + 0.07), h * 0.68), (0.05, side * (w + 0.12), -h * 0.6), 0.058)
        kit.ball((0.06, side * (w + 0.12), -h * 0.82), 0.075, DARK)
        kit.box((0, side * w * 0.52, -h - 0.13), (0.075, 0.08, 0.15), MAIN, rounding=0.02)
        kit.box((0.045, side * w * 0.52, -h - 0.29), (0.13, 0.095, 0.05), DARK, rounding=0.03)
    kit.box((front, 0, z - head * 0.5), (0.015, head * 0.6, 0.028), BLACK)
    kit.box((w * 0.75, 0, h * 0.15), (0.015, w * 0.62, h * 0.5), GLASS)
    kit.ball((w * 0.75 + 0.015, w * 0.25, h * 0.3), 0.04, RED)
    kit.rod((0, 0, z + head), (0, 0, z + head + 0.13), 0.016, GRAY)
    kit.ball((0, 0, z + head + 0.15), 0.042, RED)
    kit.box((-w * 0.75 - 0.05, 0, 0.02), (0.06, w * 0.6, h * 0.65), DARK)
