"""Small tensor functions used across the core and by extensions. Camera functions live in `utils.cameras`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.errors import ConfigError, UserError
from threestudio.utils.cameras import (
    convert_pose,
    get_cam_info_gaussian,
    get_fov_gaussian,
    get_full_projection_matrix,
    get_mvp_matrix,
    get_projection_matrix,
    get_projection_matrix_gaussian,
    get_ray_directions,
    get_rays,
)

__all__ = [
    "SpecifyGradient",
    "binary_cross_entropy",
    "chunk_batch",
    "convert_pose",
    "dot",
    "get_activation",
    "get_cam_info_gaussian",
    "get_fov_gaussian",
    "get_full_projection_matrix",
    "get_mvp_matrix",
    "get_projection_matrix",
    "get_projection_matrix_gaussian",
    "get_ray_directions",
    "get_rays",
    "perpendicular_component",
    "reflect",
    "scale_tensor",
    "shifted_cosine_decay",
    "shifted_expotional_decay",
    "tet_sdf_diff",
    "trunc_exp",
    "validate_empty_rays",
]


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product over the last axis, which stays with length 1."""
    return (x * y).sum(-1, keepdim=True)


def reflect(x: Tensor, n: Tensor) -> Tensor:
    """Mirror of `x` about the unit vector `n` (both point away from the surface)."""
    return 2 * dot(x, n) * n - x


def scale_tensor(dat: Tensor, inp_scale: Any, tgt_scale: Any) -> Tensor:
    """Map the interval `inp_scale` linearly onto `tgt_scale`; None is (0, 1). Values outside are not clamped.

    Either may be a pair of numbers or a tensor [2, D] with limits per last-axis component.
    """
    low, high = (0, 1) if inp_scale is None else inp_scale
    target_low, target_high = (0, 1) if tgt_scale is None else tgt_scale
    return (dat - low) / (high - low) * (target_high - target_low) + target_low


class _TruncExp(torch.autograd.Function):
    """exp whose gradient stops growing at x = 15, so that one outlier cannot overflow the parameters (instant-ngp)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.exp(x.clamp(max=15))


def trunc_exp(x: Tensor) -> Tensor:
    """exp(x), in float32 at least, with the gradient `exp(min(x, 15))`."""
    return _TruncExp.apply(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)


class SpecifyGradient(torch.autograd.Function):
    """`SpecifyGradient.apply(x, g)`: a dummy loss of value 1 whose gradient with respect to `x` is `g`."""

    @staticmethod
    def forward(ctx, input_tensor: Tensor, gt_grad: Tensor) -> Tensor:
        ctx.save_for_backward(gt_grad)
        return input_tensor.new_ones(1)

    @staticmethod
    def backward(ctx, grad_scale: Tensor) -> tuple[Tensor, None]:
        (gt_grad,) = ctx.saved_tensors
        return gt_grad * grad_scale, None


def _lin2srgb(x: Tensor) -> Tensor:
    curved = 1.055 * x.clamp(min=0.0031308) ** (1.0 / 2.4) - 0.055
    return torch.where(x > 0.0031308, curved, 12.92 * x).clamp(0.0, 1.0)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "lin2srgb": _lin2srgb,
    "exp": torch.exp,
    "shifted_exp": lambda x: torch.exp(x - 1.0),
    "trunc_exp": trunc_exp,
    "shifted_trunc_exp": lambda x: trunc_exp(x - 1.0),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "shifted_softplus": lambda x: F.softplus(x - 1.0),
    "scale_-11_01": lambda x: x * 0.5 + 0.5,
    # What tiny-cuda-nn calls so in the configs of its networks.
    "exponential": torch.exp,
    "sine": torch.sin,
    "squareplus": lambda x: 0.5 * (x + torch.sqrt(x * x + 4.0)),
}


def get_activation(name: str | None) -> Callable[[Tensor], Tensor]:
    """The function called `name`: one of this module's, or any of `torch.nn.functional` (ReLU is accepted for relu)."""
    key = "none" if name is None else str(name).lower()
    if key in _ACTIVATIONS:
        return _ACTIVATIONS[key]
    for candidate in (str(name), key):
        function = getattr(F, candidate, None)
        if callable(function) and not candidate.startswith("_"):
            return function
    raise ConfigError(
        f"Unknown activation {name!r}. Known: {', '.join(_ACTIVATIONS)}, and the functions of torch.nn.functional."
    )


def _merge_chunks(chunks: list[Any]) -> Any:
    first = chunks[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(chunks, dim=0)
    if isinstance(first, dict):
        parts: dict[Any, list[Any]] = defaultdict(list)
        for chunk in chunks:
            for key, value in chunk.items():
                parts[key].append(value)
        return {key: _merge_chunks(values) for key, values in parts.items()}
    if isinstance(first, (list, tuple)):
        return type(first)(_merge_chunks(list(values)) for values in zip(*chunks))
    raise UserError(
        f"chunk_batch: the function returned {type(first).__name__}; it may return tensors, None, and lists, tuples or "
        "dicts of them."
    )


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_detached(item) for item in value)
    return value


def chunk_batch(func: Callable[..., Any], chunk_size: int, *args: Any, **kwargs: Any) -> Any:
    """Call `func` on slices of its tensor arguments and join the results along axis 0.

    Args:
        func: returns tensors, None, or lists, tuples or dicts of them.
        chunk_size: length of a slice; zero or less calls `func` once.
        args, kwargs: tensors are sliced along axis 0 (equal lengths); everything else is passed on as it is.

    Returns:
        What `func` returns, joined; detached when gradients are off.
    """
    if chunk_size <= 0:
        return func(*args, **kwargs)
    lengths = {len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
    if len(lengths) != 1:
        raise UserError(
            f"chunk_batch: tensor arguments must share one length along axis 0; theirs are {sorted(lengths)}."
        )
    chunks = []
    # A call with length zero still tells the shapes, so there is at least one.
    for start in range(0, max(1, lengths.pop()), chunk_size):
        part = slice(start, start + chunk_size)
        result = func(
            *[value[part] if isinstance(value, Tensor) else value for value in args],
            **{key: value[part] if isinstance(value, Tensor) else value for key, value in kwargs.items()},
        )
        chunks.append(result if torch.is_grad_enabled() else _detached(result))
    return _merge_chunks(chunks)


def binary_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    """Mean of -(t log x + (1 - t) log(1 - x)); runs under autocast, where torch's refuses. `input` in the open (0,
    1)."""
    return -(target * torch.log(input) + (1 - target) * torch.log(1 - input)).mean()


def tet_sdf_diff(vert_sdf: Tensor, tet_edges: Tensor) -> Tensor:
    """Sum over sign-changing edges of the cross entropy between one end's SDF and the other end's sign (nvdiffrec, eq.
    2).

    Args:
        vert_sdf: [Nv, 1].  tet_edges: [Ne, 2] vertex indices.
    """
    ends = vert_sdf[:, 0][tet_edges.reshape(-1)].reshape(-1, 2)
    first, second = ends[torch.sign(ends[:, 0]) != torch.sign(ends[:, 1])].unbind(-1)
    return F.binary_cross_entropy_with_logits(first, (second > 0).to(first)) + F.binary_cross_entropy_with_logits(
        second, (first > 0).to(first)
    )


def shifted_expotional_decay(a: float, b: float, c: float, r: Tensor) -> Tensor:
    """`a * exp(-b * r) + c`, the decay of Perp-Neg's weights. (The name's spelling is upstream's.)"""
    return a * torch.exp(-b * r) + c


def shifted_cosine_decay(a: float, b: float, c: float, r: Tensor) -> Tensor:
    """`a * cos(b * r + c) + a`."""
    return a * torch.cos(b * r + c) + a


def perpendicular_component(x: Tensor, y: Tensor) -> Tensor:
    """What is left of `x` [B, C, H, W] after its projection on `y`, per sample (Perp-Neg, Armandpour et al. 2023)."""
    axes = (1, 2, 3)
    # A zero y has no direction: the floor makes its projection zero instead of NaN.
    square = (y * y).sum(dim=axes, keepdim=True).clamp(min=1e-6)
    return x - (x * y).sum(dim=axes, keepdim=True) / square * y


def validate_empty_rays(ray_indices: Tensor, t_start: Tensor, t_end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Replace an empty set of ray samples by one sample of length zero on ray 0, with a warning."""
    if ray_indices.numel() > 0:
        return ray_indices, t_start, t_end
    from threestudio import warn

    warn("No ray met occupied space: one empty sample stands in. The occupancy may have been pruned too far.")
    return ray_indices.new_zeros(1), t_start.new_zeros(1), t_end.new_zeros(1)
