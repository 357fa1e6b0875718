"""Random scenes with everything in them that a rasterizer must survive."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from dreammapping.rasterization import Rasterization, rasterize
from dreammapping.rasterization.reference import project
from dreammapping.rasterization.types import ALPHA_MAX, ALPHA_THRESHOLD, TRANSMITTANCE_STOP, Scene

DIFFERENTIABLE = ("means", "quats", "scales", "opacities", "colors", "background")


@dataclass
class Case:
    """One scene; its numbers are exact in float32, so every backend starts from the same."""

    tensors: dict[str, Tensor]
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int
    sh_degree: int | None
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def render(self, backend: str, dtype: torch.dtype, device: str = "cpu", weights: dict | None = None) -> Rasterization:
        """Render; with ``weights`` (one per output) also run the backward pass of the weighted sum."""
        leaves = {k: v.to(device, dtype, copy=True).requires_grad_(weights is not None) for k, v in self.tensors.items()}
        out = rasterize(
            viewmats=self.viewmats.to(device, dtype), Ks=self.Ks.to(device, dtype), width=self.width,
            height=self.height, sh_degree=self.sh_degree, backend=backend, **leaves,
        )  # fmt: skip
        if weights is not None:
            out.info["means2d"].retain_grad()
            sum((getattr(out, k) * w.to(device, dtype)).sum() for k, w in weights.items()).backward()
            self.gradients = {k: v.grad for k, v in leaves.items()} | {"means2d": out.info["means2d"].grad}
        return out

    def weights(self) -> dict[str, Tensor]:
        """Random weights of the outputs, zero at pixels where a rounding error may flip one of the tests."""
        generator = torch.Generator().manual_seed(5)
        steady = steady_pixels(self)
        cameras = len(self.viewmats)
        channels = {"rgb": 3, "alpha": 1, "depth": 1}
        return {
            k: torch.randn(cameras, self.height, self.width, d, generator=generator, dtype=torch.float64) * steady
            for k, d in channels.items()
        }


def steady_pixels(case: Case) -> Tensor:
    """[C, H, W, 1] 1 where no alpha is near its threshold or clamp and no transmittance near the stop, else 0."""
    t = case.tensors
    scene = Scene(
        t["means"], t["quats"], t["scales"], t["opacities"], t["colors"], case.viewmats, case.Ks, case.width,
        case.height, case.sh_degree, 0.01, 1e10, t["background"], 0.3,
    )  # fmt: skip
    projected = project(scene)
    ys, xs = torch.meshgrid(torch.arange(case.height) + 0.5, torch.arange(case.width) + 0.5, indexing="ij")
    pixels = torch.stack([xs, ys], -1).reshape(-1, 1, 2).double()
    steady = []
    for camera in range(len(case.viewmats)):
        seen = (projected.radii[camera] > 0).any(-1).nonzero().squeeze(-1)
        seen = seen[projected.depths[camera, seen].argsort()]
        dx, dy = (projected.means2d[camera, seen] - pixels).unbind(-1)
        a, b, c = projected.conics[camera, seen].unbind(-1)
        raw = t["opacities"][seen] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
        alpha = torch.where(raw >= ALPHA_THRESHOLD, raw.clamp_max(ALPHA_MAX), 0.0)
        after = torch.cumprod(1 - alpha, -1)
        risky = ((raw / ALPHA_THRESHOLD - 1).abs() < 1e-4) | ((raw / ALPHA_MAX - 1).abs() < 1e-6)
        risky |= (after / TRANSMITTANCE_STOP - 1).abs() < 1e-3
        steady.append(~risky.any(-1))
    return torch.stack(steady).reshape(-1, case.height, case.width, 1).double()


def random_case(
    count: int, cameras: int, sh_degree: int | None, width: int = 41, height: int = 35, seed: int = 0
) -> Case:
    """``count`` Gaussians round the origin seen from a circle of radius 3, some of them behind, beside, huge, tiny,
    nearly opaque or too transparent to show."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 3, generator=g) * 0.6
    scales = torch.exp(torch.randn(count, 3, generator=g) * 0.8 - 2.7)
    opacities = torch.rand(count, generator=g)
    special = torch.arange(count) % 13
    means[special == 1] *= 8  # behind the cameras or beside the image
    scales[special == 2] *= 12
    scales[special == 3] *= 0.01
    opacities[special == 4] = 0.9999
    opacities[special == 5] = 0.002
    coefficients = (count, 3) if sh_degree is None else (count, (sh_degree + 1) ** 2, 3)
    colors = torch.rand(coefficients, generator=g) if sh_degree is None else torch.randn(coefficients, generator=g)
    background = torch.rand(cameras, 3, generator=g)
    tensors = dict(
        means=means, quats=torch.randn(count, 4, generator=g), scales=scales, opacities=opacities, colors=colors,
        background=background,
    )  # fmt: skip
    viewmats = torch.stack([look_at_origin(0.4 + 2.4 * i, 0.3 * i - 0.2, 3.0) for i in range(cameras)])
    Ks = torch.tensor([[1.3 * width, 0, 0.48 * width], [0, 1.4 * width, 0.53 * height], [0, 0, 1]]).repeat(cameras, 1, 1)
    return Case({k: v.double() for k, v in tensors.items()}, viewmats.double(), Ks.double(), width, height, sh_degree)


def look_at_origin(azimuth: float, elevation: float, distance: float) -> Tensor:
    """World-to-camera matrix, OpenCV axes, rounded to float32."""
    position = distance * torch.tensor(
        [math.cos(elevation) * math.sin(azimuth), -math.sin(elevation), -math.cos(elevation) * math.cos(azimuth)]
    )
    forward = -position / position.norm()
    right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward)
    right = right / right.norm()
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    matrix = torch.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = -rotation @ position
    return matrix


def relative_error(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, and |a| where b vanishes."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / b.norm() if b.norm() > 0 else a.norm())


@pytest.fixture(name="random_case", scope="session")
def _random_case():
    return random_case


@pytest.fixture(name="relative_error", scope="session")
def _relative_error():
    return relative_error


@pytest.fixture
def keep_threads():
    """Restore torch's number of threads after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
