"""The interface of tiny-cuda-nn's PyTorch bindings in plain PyTorch, as far as threestudio's NeRF configs use it.

For tests on a CPU: same sizes, same meaning of the config keys, float32 inside. Numbers differ from the original's
(other initial values, no float16).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

PRIMES = (1, 2654435761, 805459861)  # Instant NGP, eq. 4


def free_temporary_memory() -> None:
    """There is none on a CPU."""


class Encoding(nn.Module):
    """[N, n_input_dims] in [0, 1] -> [N, n_output_dims]."""

    def __init__(
        self, n_input_dims: int, encoding_config: dict, seed: int = 1337, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        kind = encoding_config["otype"]
        if kind in ("HashGrid", "Grid"):
            self.encoding: nn.Module = _HashGrid(n_input_dims, encoding_config, seed)
        elif kind == "SphericalHarmonics":
            self.encoding = _SphericalHarmonics(encoding_config)
        else:
            raise NotImplementedError(f"the tests' stand-in for tinycudann has no encoding {kind!r}")
        self.n_input_dims, self.n_output_dims, self.dtype = n_input_dims, self.encoding.n_output_dims, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.encoding(x.float()).to(self.dtype)


class _HashGrid(nn.Module):
    """Multiresolution hash grid (Instant NGP, section 3), levels that fit stored densely, interpolated linearly."""

    def __init__(self, n_input_dims: int, config: dict, seed: int) -> None:
        super().__init__()
        scale, base = float(config.get("per_level_scale", 2.0)), int(config.get("base_resolution", 16))
        self.resolutions = [math.floor(base * scale**level) for level in range(int(config["n_levels"]))]
        features = int(config.get("n_features_per_level", 2))
        self.n_output_dims = features * len(self.resolutions)
        limit = 2 ** int(config.get("log2_hashmap_size", 19))
        generator = torch.Generator().manual_seed(seed)
        self.tables = nn.ParameterList(
            (torch.rand(min((r + 1) ** n_input_dims, limit), features, generator=generator) * 2 - 1) * 1e-4
            for r in self.resolutions
        )
        self.corners = list(itertools.product((0, 1), repeat=n_input_dims))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._level(x, r, table) for r, table in zip(self.resolutions, self.tables)], dim=-1)

    def _level(self, x: Tensor, resolution: int, table: Tensor) -> Tensor:
        scaled = x * resolution
        cell = scaled.detach().floor().clamp(0, resolution - 1)
        within, cell = scaled - cell, cell.long()
        value = x.new_zeros(len(x), table.shape[1])
        for corner in self.corners:
            offset = torch.tensor(corner)
            share = torch.where(offset.bool(), within, 1 - within).prod(dim=-1, keepdim=True)
            value = value + share * table[self._index(cell + offset, resolution, len(table))]
        return value

    @staticmethod
    def _index(vertex: Tensor, resolution: int, size: int) -> Tensor:
        dims = vertex.shape[1]
        if (resolution + 1) ** dims <= size:
            strides = torch.tensor([(resolution + 1) ** d for d in range(dims)])
            return (vertex * strides).sum(dim=-1)
        hashed = vertex[:, 0] * PRIMES[0]
        for d in range(1, dims):
            hashed = hashed ^ (vertex[:, d] * PRIMES[d])
        return hashed % size


class _SphericalHarmonics(nn.Module):
    """Degrees 0 to 2 of a direction that is mapped from [-1, 1] to [0, 1]."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.degree = int(config.get("degree", 3))
        if not 1 <= self.degree <= 3:
            raise NotImplementedError(f"the tests' stand-in for tinycudann has no harmonics of degree {self.degree}")
        self.n_output_dims = self.degree**2

    def forward(self, direction: Tensor) -> Tensor:
        x, y, z = (direction * 2 - 1).unbind(dim=-1)
        values = [torch.full_like(x, 0.28209479), -0.48860251 * y, 0.48860251 * z, -0.48860251 * x]
        values += [1.0925484 * x * y, -1.0925484 * y * z, 0.31539157 * (3 * z * z - 1), -1.0925484 * x * z]
        values += [0.54627422 * (x * x - y * y)]
        return torch.stack(values[: self.n_output_dims], dim=-1)


class Network(nn.Module):
    """Layers without bias, ReLU between them: [N, n_input_dims] -> [N, n_output_dims]."""

    def __init__(self, n_input_dims: int, n_output_dims: int, network_config: dict, seed: int = 1337) -> None:
        super().__init__()
        outer = str(network_config.get("output_activation", "None")).lower()
        if network_config.get("activation", "ReLU") != "ReLU" or outer not in ("none", "sigmoid"):
            raise NotImplementedError(f"the tests' stand-in for tinycudann has no network {network_config}")
        hidden = [int(network_config["n_neurons"])] * int(network_config["n_hidden_layers"])
        widths = [n_input_dims, *hidden, n_output_dims]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths))
        self.squash = outer == "sigmoid"

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else x.relu())
        return x.sigmoid() if self.squash else x


class NetworkWithInputEncoding(nn.Module):
    """A network behind an encoding."""

    def __init__(self, n_input_dims: int, n_output_dims: int, encoding_config: dict, network_config: dict, **_: Any):
        super().__init__()
        self.encoding = Encoding(n_input_dims, encoding_config)
        self.network = Network(self.encoding.n_output_dims, n_output_dims, network_config)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.encoding(x))
