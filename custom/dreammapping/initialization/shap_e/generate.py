"""From a prompt to a mesh, or to the one made of it before."""

from __future__ import annotations

import logging
import time

import torch

from ...errors import ConfigError
from ...evaluation.resources import peak_gpu_memory_bytes, peak_memory_bytes
from ...random_streams import stream_seed
from ..mesh import ColoredMesh
from . import diffusers_backend, original_backend  # noqa: F401  they register themselves
from .backends import BACKENDS, Backend, Request
from .cache import MeshCache
from .settings import ShapESettings

_LOG = logging.getLogger("pytorch_lightning")  # threestudio's, under its own name


def shap_e_mesh(prompt: str, settings: ShapESettings, device: torch.device | str) -> ColoredMesh:
    """The mesh Shap-E makes of `prompt`, on the CPU, in Shap-E's own coordinates: z up, within [-1, 1]^3.

    It comes from the cache where the same was asked before of the same weights; nothing is loaded then. Without a seed in
    `settings` the run's seed decides (torch's global one, as threestudio sets it), whatever was drawn from it before.

    Args:
        prompt: what to make; of long ones the text encoder sees the first 77 tokens.
        device: where to compute.

    Raises:
        ConfigError: an empty prompt, missing or unfit weights or package, or an empty mesh.
    """
    prompt = (prompt or "").strip()
    if not prompt:
        raise ConfigError("Shap-E's prompt is empty; give init.prompt, a text that says what to make")
    device = torch.device(device)
    seed = stream_seed("shap-e") if settings.seed is None else settings.seed
    half = device.type == "cuda" if settings.half_precision is None else settings.half_precision
    request = Request(prompt, settings, seed, device, half)
    name = "diffusers" if settings.backend == "auto" else settings.backend
    backend = BACKENDS.get(name)(request)
    cache = MeshCache(settings.cache_dir, _inputs(request, name, backend))
    mesh = cache.read()
    if mesh is not None:
        _LOG.info(f"Shap-E: {prompt!r} as made before, {mesh.summary}, from {cache.file}")
        return mesh
    mesh = _timed(backend, request)
    cache.write(mesh)
    return mesh


def _inputs(request: Request, name: str, backend: Backend) -> dict[str, object]:
    """Everything the mesh depends on. The device is left out: it changes the last digits only."""
    settings = request.settings
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "grid_size": settings.grid_size,
        "half": request.half,
        "backend": name,
        **backend.identity,
    }


def _timed(backend: Backend, request: Request) -> ColoredMesh:
    """Generate, and say in one line how long it took and how much memory it needed."""
    started = time.perf_counter()
    mesh = backend.generate()
    seconds = time.perf_counter() - started
    gpu = peak_gpu_memory_bytes(request.device)
    peak, where = (peak_memory_bytes(), "process") if gpu is None else (gpu, "GPU")
    memory = "unknown" if peak is None else f"{peak / 1e9:.2f} GB ({where})"
    _LOG.info(
        f"Shap-E: {request.prompt!r}, seed {request.seed}, {mesh.summary}, in {seconds:.1f} s, peak memory {memory}, "
        f"{request.settings.steps} steps of {request.settings.model} on {request.device}"
    )
    return mesh
