"""The objects: one function per family that writes its primitives into a Kit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from ..primitives import Kit
from . import creatures, food, furniture, household, outdoors, vehicles

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Family:
    """One kind of object. `natural`: main colours it has when no colour is asked for."""

    build: Callable[[Kit], None]
    natural: tuple[Color, ...]


_TAN, _CREAM, _RED, _GREEN = (0.80, 0.55, 0.28), (0.93, 0.87, 0.74), (0.86, 0.08, 0.08), (0.14, 0.55, 0.18)
_WOOD, _WHITE, _GRAY, _BLUE = (0.55, 0.33, 0.16), (0.95, 0.95, 0.95), (0.55, 0.56, 0.58), (0.15, 0.35, 0.80)

TABLE: dict[str, Family] = {
    "mug": Family(household.mug, (_WHITE, _BLUE)),
    "teapot": Family(household.teapot, (_WHITE, (0.55, 0.30, 0.20))),
    "lamp": Family(household.lamp, (_CREAM, (0.98, 0.85, 0.45))),
    "clock": Family(household.clock, (_RED, (0.35, 0.70, 0.75))),
    "umbrella": Family(household.umbrella, (_RED, _BLUE)),
    "guitar": Family(household.guitar, (_TAN, (0.70, 0.38, 0.14))),
    "candle": Family(household.candle, (_CREAM, _RED)),
    "bottle": Family(household.bottle, ((0.10, 0.40, 0.18), (0.35, 0.20, 0.08))),
    "gift box": Family(household.gift_box, (_RED, _BLUE)),
    "chair": Family(furniture.chair, (_WOOD, _TAN)),
    "table": Family(furniture.table, (_WOOD, _TAN)),
    "bed": Family(furniture.bed, (_BLUE, _WHITE)),
    "sofa": Family(furniture.sofa, (_GRAY, (0.60, 0.30, 0.18))),
    "donut": Family(food.donut, ((0.98, 0.50, 0.70), (0.35, 0.18, 0.08))),
    "hamburger": Family(food.hamburger, (_TAN, (0.86, 0.58, 0.26))),
    "ice cream cone": Family(food.ice_cream_cone, (_CREAM, (0.98, 0.62, 0.72))),
    "cake": Family(food.cake, (_CREAM, (0.98, 0.62, 0.74))),
    "strawberry": Family(food.strawberry, (_RED, (0.90, 0.12, 0.14))),
    "pumpkin": Family(food.pumpkin, ((0.96, 0.48, 0.06), (0.92, 0.42, 0.04))),
    "house": Family(outdoors.house, (_CREAM, (0.70, 0.32, 0.22))),
    "birdhouse": Family(outdoors.birdhouse, (_WOOD, _TAN)),
    "tree": Family(outdoors.tree, (_GREEN, (0.20, 0.48, 0.12))),
    "cactus": Family(outdoors.cactus, (_GREEN, (0.25, 0.60, 0.30))),
    "mushroom": Family(outdoors.mushroom, (_RED, (0.65, 0.40, 0.22))),
    "snowman": Family(creatures.snowman, (_WHITE, _WHITE)),
    "duck": Family(creatures.duck, ((0.99, 0.85, 0.12), (0.99, 0.80, 0.10))),
    "fish": Family(creatures.fish, ((0.98, 0.50, 0.08), _BLUE)),
    "teddy bear": Family(creatures.teddy_bear, (_WOOD, _TAN)),
    "robot": Family(creatures.robot, (_GRAY, (0.70, 0.72, 0.75))),
    "car": Family(vehicles.car, (_RED, _BLUE)),
    "boat": Family(vehicles.boat, (_WHITE, _WOOD)),
    "airplane": Family(vehicles.airplane, (_WHITE, (0.75, 0.77, 0.80))),
    "rocket": Family(vehicles.rocket, (_WHITE, (0.75, 0.77, 0.80))),
}

FAMILIES: tuple[str, ...] = tuple(TABLE)
