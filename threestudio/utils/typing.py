"""The names threestudio extensions expect from `from threestudio.utils.typing import *`.

The core itself imports what it uses by name; this module exists for extensions, nearly all of which star-import it.
Shapes written with jaxtyping (`Float[Tensor, "B H W 3"]`) are documentation unless a checker is switched on.
"""

from __future__ import annotations

from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Sized,
    Tuple,
    Type,
    TypeVar,
    Union,
)

from jaxtyping import Bool, Complex, Float, Inexact, Int, Integer, Num, Shaped, UInt
from omegaconf import DictConfig
from torch import Tensor

try:
    from typeguard import typechecked as typechecker
except ImportError:  # typeguard is needed only by people who check types at run time

    def typechecker(target):
        """Return `target` unchanged: typeguard is not installed, so nothing is checked."""
        return target


__all__ = [
    "Any",
    "Bool",
    "Callable",
    "Complex",
    "Dict",
    "DictConfig",
    "Float",
    "Inexact",
    "Int",
    "Integer",
    "Iterable",
    "List",
    "Literal",
    "NamedTuple",
    "NewType",
    "Num",
    "Optional",
    "Shaped",
    "Sized",
    "Tensor",
    "Tuple",
    "Type",
    "TypeVar",
    "UInt",
    "Union",
    "typechecker",
]
