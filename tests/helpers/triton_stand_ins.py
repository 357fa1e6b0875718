"""PyTorch in place of the modules that hold Triton's kernels, so that a CPU can run what calls them."""

from __future__ import annotations

import sys
import types

import torch

from threestudio.models import hash_grid_torch


def exclusive_ray_sum(values, starts, reverse):
    out = torch.zeros_like(values)
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist()):
        steps = range(stop - 1, start - 1, -1) if reverse else range(start, stop)
        total = values.new_zeros(())
        for k in steps:
            out[k] = total
            total = total + values[k]
    return out


def occupied_steps(origins, directions, t_min, t_max, first, counts, occupied, step):
    found = []
    for ray in range(len(origins)):
        for k in range(int(first[ray]), int(first[ray] + counts[ray])):
            t = t_min[ray] + (k + 0.5) * step
            cell = torch.addcmul(origins[ray], directions[ray], t).floor().long()
            inside = bool(((cell >= 0) & (cell < torch.tensor(occupied.shape))).all()) and bool(t < t_max[ray])
            if inside and bool(occupied[tuple(cell)]):
                found.append((ray, k))
    return tuple(torch.tensor(found, dtype=torch.long).reshape(-1, 2).t().contiguous())


def install(monkeypatch) -> list[str]:
    """Have the CPU count as a device on which Triton runs. Returns the names of what is called, as it is called."""
    calls: list[str] = []

    def noted(name, function):
        return lambda *args: calls.append(name) or function(*args)

    modules = {
        "threestudio.utils.ray_scan_triton": {"exclusive_ray_sum": exclusive_ray_sum},
        "threestudio.models.estimators.marching_triton": {"occupied_steps": occupied_steps},
        "threestudio.models.hash_grid_triton": {
            "fits": lambda x, layout: layout.dims == 3,
            **{name: getattr(hash_grid_torch, name) for name in ("gather", "scatter", "contract")},
        },
        "threestudio.models.mlp_triton": {
            "fits": lambda layers, x: len(layers) == 3,
            "two_layers": lambda x, first, last: (x @ first.t()).relu() @ last.t(),
        },
    }
    for path, functions in modules.items():
        made = types.SimpleNamespace(**{name: noted(name, function) for name, function in functions.items()})
        monkeypatch.setitem(sys.modules, path, made)
        package, name = path.rsplit(".", 1)
        monkeypatch.setattr(sys.modules[package], name, made, raising=False)
    for path in ("utils.volume_rendering", "models.estimators.marching", "models.hash_grid", "models.networks"):
        __import__(f"threestudio.{path}")
        monkeypatch.setattr(sys.modules[f"threestudio.{path}"], "triton_runs", lambda device: True)
    return calls
