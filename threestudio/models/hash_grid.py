"""Multi-resolution hash grids (Müller et al. 2022, Instant-NGP), with the parameters and the values of tiny-cuda-nn's.

Compiled loops do the work on the CPU (`hash_grid_numba`), Triton's kernels on a CUDA GPU (`hash_grid_triton`), PyTorch
elsewhere (`hash_grid_torch`). Twice differentiable, as normals from the gradient of a density need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.errors import ConfigError
from threestudio.models.hash_grid_layout import GridLayout, make_layout
from threestudio.models.tcnn import TCNNEncoding, wants_tcnn
from threestudio.utils.base import Updateable
from threestudio.utils.triton_support import triton_runs


def _backend(x: Tensor, layout: GridLayout, wanted: str) -> ModuleType:
    """What looks up these points. `wanted`: see `HashGrid`."""
    from threestudio.models import hash_grid_numba, hash_grid_torch  # numba takes a while to import

    if hash_grid_numba.supports(x, layout) and wanted != "triton":
        return hash_grid_numba
    if wanted != "torch" and triton_runs(x.device):
        from threestudio.models import hash_grid_triton  # only here is Triton sure to be

        if hash_grid_triton.fits(x, layout):
            return hash_grid_triton
    if wanted == "triton":
        raise ConfigError(
            f"The grid's backend is 'triton', whose kernels need a CUDA GPU on which Triton runs, 3 coordinates and 1, "
            f"2, 4 or 8 features per level; here they are {layout.dims} and {layout.features}, on {x.device}. Take "
            "backend: auto, or torch."
        )
    return hash_grid_torch


@dataclass(frozen=True)
class _Grid:
    """What every lookup in one grid has in common."""

    layout: GridLayout
    backend: str

    def kernels(self, x: Tensor) -> ModuleType:
        return _backend(x, self.layout, self.backend)


def _lookup(x: Tensor, params: Tensor, grid: _Grid) -> Tensor:
    """Points [N, D] and parameters -> features [N, L * F].

    The gradients in parameters and in points come from two nodes of the graph, since autograd does not tell one node
    which of its gradients are asked for: a normal needs only the one in points, and the other one is dear.
    """
    features = _Gather.apply(params, (x,), grid)
    return _Slope.apply(features, x, (params,), grid) if x.requires_grad else features


class _Gather(torch.autograd.Function):
    """The features; differentiable in the parameters. The points come in a tuple, which autograd does not look into."""

    @staticmethod
    def forward(ctx, params: Tensor, points: tuple[Tensor], grid: _Grid) -> Tensor:
        ctx.points, ctx.grid = points, grid
        return grid.kernels(points[0]).gather(points[0], None, params, grid.layout)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:
        return _Scatter.apply(ctx.points[0], g, ctx.grid), None, None


class _Slope(torch.autograd.Function):
    """Passes the features on and adds their gradient in the points."""

    @staticmethod
    def forward(ctx, features: Tensor, x: Tensor, params: tuple[Tensor], grid: _Grid) -> Tensor:
        ctx.save_for_backward(x)
        ctx.params, ctx.grid = params, grid
        return features.view_as(features)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return g, _Contract.apply(ctx.saved_tensors[0], ctx.params[0], g, ctx.grid), None, None


class _Scatter(torch.autograd.Function):
    """The gradient in the parameters, as a function of the points and of the features' gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, g: Tensor, grid: _Grid) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.grid = grid
        return grid.kernels(x).scatter(x, None, g, grid.layout)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, w: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, g = ctx.saved_tensors
        kernels, layout, needed = ctx.grid.kernels(x), ctx.grid.layout, ctx.needs_input_grad
        return (
            kernels.contract(x, None, w, g, layout) if needed[0] else None,
            kernels.gather(x, None, w, layout) if needed[1] else None,
            None,
        )


class _Contract(torch.autograd.Function):
    """The gradient in the points, as a function of points, parameters and the features' gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, params: Tensor, g: Tensor, grid: _Grid) -> Tensor:
        ctx.save_for_backward(x, params, g)
        ctx.grid = grid
        return grid.kernels(x).contract(x, None, params, g, grid.layout)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, params, g = ctx.saved_tensors
        kernels, layout, needed = ctx.grid.kernels(x), ctx.grid.layout, ctx.needs_input_grad
        return (
            kernels.contract(x, v, params, g, layout) if needed[0] else None,
            kernels.scatter(x, v, g, layout) if needed[1] else None,
            kernels.gather(x, v, params, layout) if needed[2] else None,
            None,
        )


class Grid(nn.Module):
    """Our grid: `params` is laid out as tiny-cuda-nn's, meant for each to load the other's checkpoints (not tried).

    A coordinate x is at `x * scale + 0.5` on a level with `scale = base_resolution * per_level_scale^level - 1` and
    `ceil(scale) + 1` points along each axis. A level whose points fit into the table has one entry per point, counted
    with the first coordinate fastest; points on the far rim count on into the next row, as they do in tiny-cuda-nn.
    Otherwise the entry is the exclusive or of the coordinates times `PRIMES`, modulo the table's size.
    """

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.layout = make_layout(n_input_dims, config)
        self._grid = _Grid(self.layout, str(config.get("backend", "auto")))
        self.n_output_dims = len(self.layout.levels) * self.layout.features
        # Instant-NGP, section 4: small and even, so that the network starts from nearly nothing.
        self.params = nn.Parameter(torch.empty(self.layout.entries * self.layout.features).uniform_(-1e-4, 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        return _lookup(x.to(self.params.dtype), self.params, self._grid)


def _make_grid(n_input_dims: int, config: Mapping[str, Any]) -> nn.Module:
    """tiny-cuda-nn's grid if the config's `backend` and the machine say so, else ours."""
    otype = config["otype"]
    if not wants_tcnn(config, "encoding"):
        return Grid(n_input_dims, config)
    return TCNNEncoding(n_input_dims, config, [f"{otype} with backend: torch"]).encoding


class HashGrid(nn.Module):
    """Features [N, n_levels * n_features_per_level] of points [N, D] in [0, 1], coarse levels first.

    Config: see `make_layout`, and `backend`: "auto" (default) takes on a CUDA GPU tiny-cuda-nn if it is installed, else
    our kernels if Triton runs, else PyTorch; "tcnn" and "triton" take theirs or are an error; "torch" takes neither. On
    the CPU, "auto" and "torch" are the compiled loops.
    """

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoding = _make_grid(n_input_dims, config)
        self.n_output_dims: int = self.encoding.n_output_dims

    def forward(self, x: Tensor) -> Tensor:
        return self.encoding(x)


class ProgressiveBandHashGrid(HashGrid, Updateable):
    """A hash grid whose levels appear one by one; those still hidden give zeros (Neuralangelo, Li et al. 2023).

    Config: as HashGrid, and `start_level` (levels shown from the start), `start_step` (nothing changes before it),
    `update_steps` (steps from one further level to the next). `current_level` is the number of levels shown.
    """

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        missing = [key for key in ("start_level", "start_step", "update_steps") if key not in config]
        if missing:
            raise ConfigError(f"encoding ProgressiveBandHashGrid needs {', '.join(missing)}; the config is {config}.")
        super().__init__(n_input_dims, {**config, "otype": "HashGrid"})
        self.n_level = int(config.get("n_levels", 16))
        self.n_features_per_level = self.n_output_dims // self.n_level
        self.start_level, self.start_step = int(config["start_level"]), int(config["start_step"])
        self.update_steps = int(config["update_steps"])
        if self.update_steps < 1 or self.start_level < 0:
            raise ConfigError(
                f"encoding ProgressiveBandHashGrid: update_steps is {self.update_steps} and start_level "
                f"{self.start_level}; they must be at least 1 and 0."
            )
        self.mask: Tensor
        self.register_buffer("mask", torch.empty(self.n_output_dims), persistent=False)
        self.update_step(0, 0)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        opened = max(global_step - self.start_step, 0) // self.update_steps
        self.current_level = min(self.start_level + opened, self.n_level)
        shown = torch.arange(self.n_output_dims) < self.current_level * self.n_features_per_level
        self.mask.copy_(shown)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoding(x) * self.mask
