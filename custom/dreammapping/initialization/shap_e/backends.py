"""The two programs that can run Shap-E."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError
from ...registry import Registry
from ..mesh import ColoredMesh
from ..points import linear_to_srgb
from .settings import ShapESettings
from .weights import WAY_ON


@dataclass(frozen=True)
class Request:
    """One mesh to make, with nothing left open."""

    prompt: str
    settings: ShapESettings
    seed: int
    device: torch.device
    half: bool
    """Whether text and diffusion are computed in float16."""


class Backend(ABC):
    """Made for one request; says which weights it would use before it loads them."""

    def __init__(self, request: Request) -> None:
        """Raises ConfigError where the package or the weights are missing."""
        self.request = request

    @property
    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What tells its weights and program from others; found without loading them."""

    @abstractmethod
    def generate(self) -> ColoredMesh:
        """Draw a latent and decode it. Raises ConfigError, also where nothing is inside the surface."""


BACKENDS: Registry[type[Backend]] = Registry("Shap-E backend")


def colored_mesh(vertices: Tensor, faces: Tensor, linear_colors: Tensor) -> ColoredMesh:
    """Shap-E's mesh (z up, colors in linear light) as ours, on the CPU."""
    colors = linear_to_srgb(linear_colors.detach().float().cpu())
    return ColoredMesh(vertices.detach().float().cpu().contiguous(), faces.detach().long().cpu().contiguous(), colors)


def empty_mesh_error(request: Request, latent: Tensor) -> ConfigError:
    """What to say where the field is negative everywhere."""
    if not bool(latent.isfinite().all()):
        return ConfigError(
            f"Shap-E's latent of {request.prompt!r} has values that are not finite"
            + ("; in float16 numbers may overflow: set shap_e.half_precision=false" if request.half else ": its weights are damaged")
        )
    return ConfigError(
        f"Shap-E made an empty mesh of {request.prompt!r} (seed {request.seed}): its field is negative everywhere. "
        f"Try another shap_e.seed, a lower shap_e.guidance_scale, or simpler words. {WAY_ON}"
    )
