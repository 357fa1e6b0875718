"""How Shap-E is asked, as a config block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Optional

from ...errors import ConfigError

MOST_STEPS = 1000
"""Of a noise schedule with 1,024 steps, as Shap-E's is."""
GRID_SIZES = (8, 256)
"""Above, marching cubes needs tens of gigabytes."""


@dataclass(frozen=True)
class ShapESettings:
    """What decides the mesh that Shap-E (Jun and Nichol 2023) makes of a prompt."""

    model: str = "openai/shap-e"
    """A folder in the layout of diffusers' ShapEPipeline, or the name of such a repository on the Hugging Face hub."""
    backend: Literal["auto", "diffusers", "original"] = "auto"
    """diffusers: ShapEPipeline. original: OpenAI's package `shap-e`, which loads weights of its own. auto: diffusers,
    whether or not the package is installed, so that a config means the same on every machine."""
    steps: int = 64
    """Steps of Heun's sampler with Karras' noise levels, 1 to 1000. The default is Shap-E's own examples'."""
    guidance_scale: float = 15.0
    """uncond + scale (cond - uncond), at least 1, which is no guidance. Shap-E's own examples: 15."""
    grid_size: int = 128
    """Points along each side of the grid that marching cubes looks at, 8 to 256. Shap-E: 128."""
    seed: Optional[int] = None
    """Of the noise that becomes the object, 0 to 2^63 - 1; None: from the run's seed, so that another run's seed gives
    another object."""
    half_precision: Optional[bool] = None
    """Text encoder and diffusion in float16; None: on CUDA. The surface is always decoded in float32."""
    cache_dir: Optional[str] = None
    """Where meshes are kept; None: .threestudio_cache/shap_e in the working directory."""
    growing: bool = False
    """Points come not from the surface but from the space near it, with noisy colors, as GaussianDreamer grows them."""

    @property
    def growing_distance(self) -> float:
        """How far from a vertex points may grow, in Shap-E's units: GaussianDreamer's 0.01, about two thirds of
        a grid cell."""
        return 0.01 * (ShapESettings.grid_size - 1) / (self.grid_size - 1)

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError("shap_e.model is empty; give a folder or a hub name such as openai/shap-e")
        if not 1 <= self.steps <= MOST_STEPS:
            raise ConfigError(f"shap_e.steps is {self.steps}; it must lie between 1 and {MOST_STEPS}")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 1):
            raise ConfigError(f"shap_e.guidance_scale is {self.guidance_scale}; it must be at least 1 (1: no guidance)")
        low, high = GRID_SIZES
        if not low <= self.grid_size <= high:
            raise ConfigError(f"shap_e.grid_size is {self.grid_size}; it must lie between {low} and {high}")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"shap_e.seed is {self.seed}; it must lie between 0 and 2^63 - 1")
        if self.backend == "original" and self.model != ShapESettings.model:
            raise ConfigError(
                f"shap_e.model is {self.model!r}, but backend original loads OpenAI's own files (transmitter, text300M); "
                "leave model out, or take backend diffusers"
            )
