from __future__ import annotations

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.initialization import choose_colors, linear_to_srgb, normalize, reorient, sphere_points
from dreammapping.initialization.points import ColoredPoints


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square(samples: torch.Tensor, bins: int) -> float:
    """Of values that should be uniform in [0, 1]."""
    counts = torch.histc(samples, bins, 0.0, 1.0)
    assert counts.sum() == samples.numel()
    expected = samples.numel() / bins
    return float(((counts - expected) ** 2 / expected).sum())


BOUND = 43.8  # 19 degrees of freedom, p = 0.001


@pytest.mark.parametrize(("distribution", "power"), [("center", 1), ("ball", 3), ("surface", None)])
def test_distances_and_directions_are_distributed_as_promised(distribution, power):
    points = sphere_points(20_000, 2.0, generator(), distribution=distribution).points
    distance = points.norm(dim=-1) / 2.0
    if power is None:
        torch.testing.assert_close(distance, torch.ones_like(distance))
    else:
        assert chi_square(distance**power, 20) < BOUND  # P(distance < r) = r^power
    unit = points / points.norm(dim=-1, keepdim=True)
    for axis in range(3):  # Archimedes: each coordinate of a uniform direction is uniform in [-1, 1]
        assert chi_square((unit[:, axis] / 2 + 0.5).clamp(0, 1), 20) < BOUND
    azimuth = torch.atan2(unit[:, 1], unit[:, 0]) / (2 * torch.pi) + 0.5
    assert chi_square(azimuth.clamp(0, 1), 20) < BOUND


def test_the_generator_decides():
    a, b, c = (sphere_points(50, 1.0, generator(s), color="random") for s in (1, 1, 2))
    assert torch.equal(a.points, b.points) and torch.equal(a.colors, b.colors)
    assert not torch.equal(a.points, c.points)


def test_colors():
    torch.testing.assert_close(choose_colors(2, [0.1, 0.2, 0.3], generator()), torch.tensor([[0.1, 0.2, 0.3]] * 2))
    gray = choose_colors(500, "gray", generator())
    assert gray.min() >= 0.5 and gray.max() < 0.5012 and gray.std() > 0
    assert chi_square(choose_colors(4000, "random", generator()).flatten(), 20) < BOUND
    for bad in ("pink", [1, 2, 3], [0.1, 0.2]):
        with pytest.raises(ConfigError, match="color"):
            choose_colors(1, bad, generator())


def test_bad_spheres_are_explained():
    with pytest.raises(ConfigError, match="num_points is 0"):
        sphere_points(0, 1.0, generator())
    with pytest.raises(ConfigError, match="radius is -1"):
        sphere_points(1, -1.0, generator())
    with pytest.raises(ConfigError, match="distribution is 'cube'"):
        sphere_points(1, 1.0, generator(), distribution="cube")


def test_normalization_centers_the_box_and_fits_the_radius():
    cloud = ColoredPoints(torch.tensor([[1.0, 5, 0], [3, 5, 0], [2, 9, 0]]), torch.zeros(3, 3))
    points = normalize(cloud, 0.5).points
    assert points.norm(dim=-1).max() == pytest.approx(0.5)
    torch.testing.assert_close(points.amin(0) + points.amax(0), torch.zeros(3))
    torch.testing.assert_close(torch.cdist(points, points), torch.cdist(cloud.points, cloud.points) * (0.5 / 5**0.5))
    single = normalize(ColoredPoints(torch.ones(1, 3), torch.zeros(1, 3)), 0.5)
    assert single.points.tolist() == [[0.0, 0.0, 0.0]]
    with pytest.raises(ConfigError, match="radius is 0"):
        normalize(cloud, 0.0)


@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_up_becomes_z_without_mirroring(up):
    axes = ColoredPoints(torch.eye(3), torch.zeros(3, 3))
    turned = reorient(axes, up).points
    torch.testing.assert_close(turned["xyz".index(up)], torch.tensor([0.0, 0.0, 1.0]))
    assert torch.det(turned) == pytest.approx(1.0)


def test_yaw_turns_counterclockwise_about_z():
    cloud = ColoredPoints(torch.tensor([[1.0, 0.0, 2.0]]), torch.zeros(1, 3))
    torch.testing.assert_close(reorient(cloud, yaw=90.0).points, torch.tensor([[0.0, 1.0, 2.0]]))


def test_srgb_curve():
    linear = torch.tensor([-1.0, 0.0, 0.0031308, 0.2140, 1.0, 2.0])
    torch.testing.assert_close(linear_to_srgb(linear), torch.tensor([0.0, 0.0, 0.04045, 0.5, 1.0, 1.0]), rtol=1e-3, atol=1e-5)
