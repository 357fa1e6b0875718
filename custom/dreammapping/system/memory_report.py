"""One line before the training: what memory the run will need, what the GPU has, and what helps if it does not fit."""

from __future__ import annotations

from typing import Any

import threestudio
import torch

from ..processes import process_count
from ..teachers import DiffusersTeacher
from ..teachers.diffusers_teacher import weights_dtype
from .memory_estimate import CONTEXT_BYTES, GIB, Setup, estimate, helpful_options

BYTES_PER_NUMBER = 4


def announce(system: Any) -> None:
    """Log the estimate of a run on a CUDA device; nothing elsewhere, nor for parts that are not known here."""
    device, data = system.device, getattr(system.trainer, "datamodule", None)
    steps = getattr(system.trainer, "max_steps", None)
    setup = setup_of(system, getattr(data, "train_dataset", None), steps) if device.type == "cuda" else None
    if setup is None:
        return
    teacher = system.guidance.teacher
    try:
        dtype = weights_dtype(device, teacher.options)
        text = describe(teacher, operator_of(system), setup, dtype, available_bytes(device))
    except Exception as problem:  # noqa: BLE001  an estimate must not stop a run that may well work
        text = f"Memory: no estimate for this teacher ({type(problem).__name__}: {problem})"
    threestudio.info(text)


def describe(teacher: Any, operator: Any, setup: Setup, dtype: torch.dtype, available: int) -> str:
    """The line, for `available` bytes; and where that is not enough one more for each option that helps."""
    found = estimate(teacher, operator, setup, dtype)
    text = (
        f"Memory: an estimated peak of {found.peak / GIB:.1f} GiB (with up to {setup.gaussians:,} Gaussians); "
        f"{available / GIB:.1f} GiB are there for this process"
    )
    if found.peak <= available:
        return text
    helps = [
        f"  {overrides}: saves {(found.peak - less.peak) / GIB:.1f} GiB, {less.peak / GIB:.1f} GiB"
        + ("" if less.peak <= available else ", not enough by itself")
        for overrides, less in helpful_options(teacher, operator, setup, dtype)
    ]
    return "\n".join([f"{text}. That will not fit. Options with the same result, see docs/memory.md:", *helps])


def setup_of(system: Any, data: Any, steps: int | None = None) -> Setup | None:
    """What the estimate has to know, or None where it is not Gaussians from views by a model in diffusers' layout.

    `data` is the dataset of training cameras, `steps` the run's length if it is known.
    """
    teacher = getattr(getattr(system, "guidance", None), "teacher", None)
    geometry = system.geometry
    if not isinstance(teacher, DiffusersTeacher) or not hasattr(data, "batch_sizes"):
        return None
    if not hasattr(geometry, "gaussians"):
        return None
    settings, now = geometry.densification.settings, sum(p.numel() for p in geometry.parameters())
    most = geometry.count if settings.type == "none" else settings.cap_max
    cfg, options = system.guidance.cfg, teacher.options
    views, *further = sorted({-(-size // process_count()) for size in data.batch_sizes}, reverse=True)
    tiny = options.tiny_encoder
    return Setup(
        views=views,
        further_views=tuple(further),
        height=max(data.heights),
        width=max(data.widths),
        gaussians=most,
        scene_bytes=BYTES_PER_NUMBER * now * most // max(geometry.count, 1),
        prompts=4 if getattr(system.prompt_utils, "use_perp_neg", False) else 2,
        encode_slice=getattr(cfg, "encode_slice", 0),
        unet_slice=options.unet_slice,
        cpu_offload=options.cpu_offload,
        fast_encoder=teacher.encodes_fast,
        cuda_graphs=options.cuda_graphs and teacher.device.type == "cuda",
        tiny_encoder=tiny.wanted and steps is not None and 0 < steps <= tiny.until_step,
    )


def operator_of(system: Any) -> Any:
    """What the loss trains beside the scene, if it is a network of latents and t."""
    return getattr(getattr(system.guidance, "loss", None), "operator", None)


def available_bytes(device: torch.device) -> int:
    """Of a GPU: what is free and what this process has already, its context included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) + CONTEXT_BYTES
