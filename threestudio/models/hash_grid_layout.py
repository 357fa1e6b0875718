"""How the levels of a grid encoding lie in one flat table: the layout of tiny-cuda-nn's `params`, level by level, entry
by entry, features last."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from threestudio.errors import ConfigError, suggest

PRIMES = (1, 2654435761, 805459861, 3674653429)
"""One factor per coordinate of the spatial hash (Instant-NGP, eq. 4; the fourth is tiny-cuda-nn's)."""
INTERPOLATIONS = ("Linear", "Smoothstep", "Nearest")
TYPES = ("Hash", "Dense", "Tiled")
# Names tiny-cuda-nn keeps for `Grid` with a type.
_TYPE_OF = {"HashGrid": "Hash", "DenseGrid": "Dense", "TiledGrid": "Tiled"}


@dataclass(frozen=True)
class Level:
    """One resolution of a grid."""

    scale: float
    """A coordinate x in [0, 1] lies at `x * scale + 0.5` in units of the grid."""
    resolution: int
    """Grid points along each axis."""
    strides: tuple[int, ...]
    """Entries from one grid point to the next along each axis; of no meaning where `hashed`."""
    size: int
    """Entries of this level's part of the table."""
    offset: int
    """Its first entry."""
    hashed: bool
    """Whether a point's entry is its hash. Else it is counted along the axes, modulo `size`."""


@dataclass(frozen=True)
class LevelTensors:
    """The levels as tensors [L] and [L, D], int64 but for the scales."""

    scales: Tensor
    strides: Tensor
    sizes: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class GridLayout:
    """All levels of a grid of `dims` coordinates, coarse to fine; hashed levels follow the others."""

    dims: int
    features: int
    interpolation: str
    levels: tuple[Level, ...]
    _tensors: dict[torch.device, LevelTensors] = field(default_factory=dict, repr=False, compare=False)

    @property
    def entries(self) -> int:
        """Entries of the whole table; each holds `features` numbers."""
        return self.levels[-1].offset + self.levels[-1].size

    def tensors(self, device: torch.device) -> LevelTensors:
        """The levels on a device, copied there once."""
        if device not in self._tensors:
            self._tensors[device] = LevelTensors(
                torch.tensor([level.scale for level in self.levels], dtype=torch.float64).to(device),
                torch.tensor([level.strides for level in self.levels], device=device),
                torch.tensor([level.size for level in self.levels], device=device),
                torch.tensor([level.offset for level in self.levels], device=device),
            )
        return self._tensors[device]

    def groups(self, most: int) -> Iterator[slice]:
        """Runs of at most `most` levels that are all hashed or all not."""
        split = sum(not level.hashed for level in self.levels)
        for start, stop in ((0, split), (split, len(self.levels))):
            for first in range(start, stop, most):
                yield slice(first, min(first + most, stop))


def make_layout(dims: int, config: Mapping[str, Any]) -> GridLayout:
    """The layout that a config of `HashGrid`, `DenseGrid`, `TiledGrid` or `Grid` describes.

    Keys and defaults are tiny-cuda-nn's: `type` (Hash, Dense, Tiled; for Grid), `n_levels` 16, `n_features_per_level`
    2, `log2_hashmap_size` 19, `base_resolution` 16, `per_level_scale` 2.0, `interpolation` (Linear, Smoothstep,
    Nearest).

    Raises:
        ConfigError: a value out of range, a name that is not known, or more than 4 coordinates.
    """
    otype = str(config.get("otype", "Grid"))
    kind = _choice(config, "type", _TYPE_OF.get(otype, "Hash"), TYPES)
    interpolation = _choice(config, "interpolation", "Linear", INTERPOLATIONS)
    if not 1 <= dims <= len(PRIMES):
        raise ConfigError(f"encoding {otype} takes 1 to {len(PRIMES)} coordinates, not {dims}.")
    for key, only in (("hash", "CoherentPrime"), ("stochastic_interpolation", False)):
        if config.get(key, only) != only:
            raise ConfigError(f"encoding {otype}: {key} is {config[key]!r}; only backend: tcnn has that.")
    base, growth = _at_least(config, "base_resolution", 16), _at_least(config, "per_level_scale", 2.0)
    capacity = 2 ** int(_at_least(config, "log2_hashmap_size", 19))
    levels: list[Level] = []
    for k in range(int(_at_least(config, "n_levels", 16))):
        scale = base * growth**k - 1.0
        offset = levels[-1].offset + levels[-1].size if levels else 0
        levels.append(_level(dims, kind, scale, int(base), capacity, offset))
    return GridLayout(dims, int(_at_least(config, "n_features_per_level", 2)), interpolation, tuple(levels))


def _level(dims: int, kind: str, scale: float, base: int, capacity: int, offset: int) -> Level:
    resolution = math.ceil(scale) + 1
    size = -(-(resolution**dims) // 8) * 8  # tiny-cuda-nn keeps levels aligned to 8 entries
    limit = {"Hash": capacity, "Dense": size, "Tiled": base**dims}[kind]
    size = min(size, limit)
    # An axis whose stride exceeds the table no longer tells its points apart, so it is left out (Tiled).
    strides = tuple(resolution**axis if resolution**axis <= size else 0 for axis in range(dims))
    return Level(scale, resolution, strides, size, offset, hashed=kind == "Hash" and resolution**dims > size)


def _choice(config: Mapping[str, Any], key: str, default: str, known: tuple[str, ...]) -> str:
    value = str(config.get(key, default))
    for name in known:
        if name.lower() == value.lower():
            return name
    raise ConfigError(f"encoding {config.get('otype')}: {key} is {value!r}. {suggest(value, known)}")


def _at_least(config: Mapping[str, Any], key: str, default: float, lowest: float = 1) -> float:
    value = config.get(key, default)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"encoding {config.get('otype')}: {key} is {value!r}; it must be a number.") from error
    if not math.isfinite(number) or number < lowest:
        raise ConfigError(f"encoding {config.get('otype')}: {key} is {value}; it must be at least {lowest}.")
    return number
