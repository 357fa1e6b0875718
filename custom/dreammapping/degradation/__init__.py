"""The learnable degradation operator M_psi."""

from __future__ import annotations

from .operators import OPERATORS, Linear, OperatorShape, TimeConditioned, WithNoise, build_operator
from .ulite import ULite, choose_stages

__all__ = [
    "OPERATORS",
    "Linear",
    "OperatorShape",
    "TimeConditioned",
    "ULite",
    "WithNoise",
    "build_operator",
    "choose_stages",
]
