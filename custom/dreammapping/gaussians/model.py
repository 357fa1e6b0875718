"""The Gaussians themselves: six parameter tensors under gsplat's names, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..initialization import ColoredPoints

SH_C0 = 0.28209479177387814
"""Y_00 = 1 / (2 sqrt(pi)), the constant spherical harmonic."""

MAX_SH_DEGREE = 4

MIN_SQUARED_DISTANCE = 1e-7
"""Floor of the mean squared neighbor distance, for points on top of each other (3D Gaussian Splatting, its first scales)."""

PARAMETER_NAMES = ("means", "scales", "quats", "opacities", "sh0", "shN")


def rgb_to_sh0(rgb: Tensor) -> Tensor:
    """Constant SH coefficient whose color is `rgb`: (rgb - 0.5) / Y_00."""
    return (rgb - 0.5) / SH_C0


def sh0_to_rgb(sh0: Tensor) -> Tensor:
    """Inverse of `rgb_to_sh0`; not limited to [0, 1]."""
    return sh0 * SH_C0 + 0.5


def knn_scales(points: Tensor, neighbors: int = 3) -> Tensor:
    """Root mean squared distance of each point to its nearest neighbors (3D Gaussian Splatting, section 5.1).

    Args:
        points: [N, 3], N >= 1.
        neighbors: how many; fewer where the cloud has fewer other points.

    Returns:
        [N] distances, at least sqrt(1e-7). A lone point has no neighbor and gets 0.01.
    """
    count = points.shape[0]
    if count < 2:
        return points.new_full((count,), 0.01)
    cloud = points.detach().cpu().double().numpy()
    k = min(neighbors, count - 1)
    distances, _ = cKDTree(cloud).query(cloud, k=k + 1)  # column 0 is the point itself, or its twin at distance 0
    mean_squared = np.square(distances[:, 1:]).mean(axis=1)
    return torch.from_numpy(np.sqrt(np.maximum(mean_squared, MIN_SQUARED_DISTANCE))).to(points)


class GaussianModel(nn.Module):
    """N anisotropic Gaussians with view-dependent color.

    `params` holds the raw, optimized tensors under gsplat's names, so that its operations apply:

    | name | shape | meaning |
    | --- | --- | --- |
    | means | [N, 3] | world positions |
    | scales | [N, 3] | natural logarithm of the standard deviations |
    | quats | [N, 4] | rotations, w x y z, any length but zero |
    | opacities | [N] | logit of the opacity |
    | sh0 | [N, 1, 3] | constant SH coefficients |
    | shN | [N, (sh_degree + 1)^2 - 1, 3] | the other SH coefficients |

    A state dict with another N loads: the tensors are resized first, keeping their identity as parameters.
    """

    def __init__(self, sh_degree: int = 0, count: int = 0) -> None:
        """`sh_degree` in 0..4; `count` rows of zeros (to be filled, or loaded into)."""
        super().__init__()
        if not 0 <= sh_degree <= MAX_SH_DEGREE:
            raise ConfigError(f"sh_degree is {sh_degree}; it must lie between 0 and {MAX_SH_DEGREE}")
        self.sh_degree = sh_degree
        self.active_sh_degree = sh_degree
        """The highest degree that is rendered now; at most `sh_degree`."""
        self.params = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape)) for name, shape in self._shapes(count).items()}
        )

    @classmethod
    def from_points(cls, points: ColoredPoints, *, sh_degree: int = 0, opacity: float = 0.1) -> GaussianModel:
        """One round Gaussian for each colored point, as wide as the point's neighbors are away.

        Args:
            points: N >= 1 positions and colors.
            sh_degree: 0..4. Coefficients above the constant one start at zero.
            opacity: of every Gaussian, in (0, 1).
        """
        if not 0.0 < opacity < 1.0:
            raise ConfigError(f"opacity_init is {opacity}; it must lie between 0 and 1, both excluded")
        count = points.points.shape[0]
        if count == 0:
            raise ConfigError("the initialization gave no points; at least one is needed")
        model = cls(sh_degree, count).to(points.points.device)
        with torch.no_grad():
            model.params["means"].copy_(points.points)
            model.params["scales"].copy_(knn_scales(points.points).log()[:, None].expand(-1, 3))
            model.params["quats"][:, 0] = 1.0
            model.params["opacities"].fill_(float(torch.logit(torch.tensor(opacity, dtype=torch.float64))))
            model.params["sh0"].copy_(rgb_to_sh0(points.colors)[:, None, :])
        return model

    # ------------------------------------------------------------------ activated values

    @property
    def get_means(self) -> Tensor:
        """[N, 3] world positions."""
        return self.params["means"]

    @property
    def get_scales(self) -> Tensor:
        """[N, 3] standard deviations, > 0."""
        return self.params["scales"].exp()

    @property
    def get_quats(self) -> Tensor:
        """[N, 4] unit quaternions, w x y z."""
        return nn.functional.normalize(self.params["quats"], dim=-1)

    @property
    def get_opacities(self) -> Tensor:
        """[N] in (0, 1)."""
        return self.params["opacities"].sigmoid()

    @property
    def get_sh(self) -> Tensor:
        """[N, (sh_degree + 1)^2, 3] SH coefficients."""
        return torch.cat([self.params["sh0"], self.params["shN"]], dim=1)

    @property
    def get_rgb(self) -> Tensor:
        """[N, 3] color of the constant coefficient alone, at least 0 (as the rasterizer shows it), not limited above."""
        return sh0_to_rgb(self.params["sh0"][:, 0]).clamp_min(0.0)

    def rasterizer_inputs(self) -> dict[str, Any]:
        """The keyword arguments of `rasterize` that describe the Gaussians (means, quats, scales, opacities, colors, sh_degree).

        Without view dependence plain colors are passed, which saves evaluating SH once per view.
        """
        plain = self.active_sh_degree == 0
        return {
            "means": self.get_means,
            "quats": self.get_quats,
            "scales": self.get_scales,
            "opacities": self.get_opacities,
            "colors": self.get_rgb if plain else self.get_sh,
            "sh_degree": None if plain else self.active_sh_degree,
        }

    # ------------------------------------------------------------------ size

    @property
    def count(self) -> int:
        """N."""
        return self.params["means"].shape[0]

    def bounding_radius(self) -> float:
        """Largest distance of a mean from the origin; 0 without Gaussians."""
        if self.count == 0:
            return 0.0
        return float(self.params["means"].detach().norm(dim=-1).max())

    def finite_rows(self) -> Tensor:
        """[N] bool: whether every value of the Gaussian is finite."""
        finite = self.params["opacities"].isfinite()
        for value in self.params.values():
            if value.dim() > 1:
                finite = finite & value.isfinite().flatten(1).all(1)
        return finite

    def with_sh_degree(self, sh_degree: int) -> GaussianModel:
        """A copy on the same device with another SH degree: coefficients are dropped, or added as zeros."""
        copy = GaussianModel(sh_degree, self.count).to(self.params["means"].device)
        with torch.no_grad():
            for name, value in self.params.items():
                target = copy.params[name]
                if name == "shN":
                    shared = min(target.shape[1], value.shape[1])
                    target[:, :shared] = value[:, :shared]
                else:
                    target.copy_(value)
        return copy

    def resize(self, count: int) -> None:
        """Give every tensor `count` rows of zeros, keeping the Parameter objects. For use before `load_state_dict`."""
        if count == self.count:
            return
        for name, shape in self._shapes(count).items():
            parameter = self.params[name]
            parameter.grad = None
            parameter.data = parameter.data.new_zeros(shape)

    def _shapes(self, count: int) -> dict[str, tuple[int, ...]]:
        return {
            "means": (count, 3),
            "scales": (count, 3),
            "quats": (count, 4),
            "opacities": (count,),
            "sh0": (count, 1, 3),
            "shN": (count, (self.sh_degree + 1) ** 2 - 1, 3),
        }

    # ------------------------------------------------------------------ state

    def prepare_for_state_dict(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Resize to the number of Gaussians in `state`, whose keys here start with `prefix`.

        Raises:
            ConfigError: the state was saved with another SH degree.
        """
        means, rest = state.get(f"{prefix}params.means"), state.get(f"{prefix}params.shN")
        if means is None:
            return
        if rest is not None and rest.shape[1] != self.params["shN"].shape[1]:
            saved = round((rest.shape[1] + 1) ** 0.5) - 1
            raise ConfigError(
                f"the saved Gaussians have SH degree {saved}, this run asks for {self.sh_degree}; set sh_degree to {saved}"
            )
        self.resize(means.shape[0])

    def get_extra_state(self) -> dict[str, int]:
        return {"active_sh_degree": self.active_sh_degree}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        self.active_sh_degree = min(int(state["active_sh_degree"]), self.sh_degree)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self.prepare_for_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"count={self.count}, sh_degree={self.sh_degree}, active_sh_degree={self.active_sh_degree}"
