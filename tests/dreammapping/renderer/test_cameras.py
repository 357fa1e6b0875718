from __future__ import annotations

import math

import pytest
import torch
from dreammapping.renderer.cameras import intrinsics, world_to_camera

from threestudio.utils.ops import get_ray_directions, get_rays


def look_at_origin(azimuth: float, elevation: float, distance: float) -> torch.Tensor:
    """[4, 4] threestudio's camera: z up, columns right, up, backward, position; float64."""
    a, e = math.radians(azimuth), math.radians(elevation)
    backward = torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)], dtype=torch.float64)
    right = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), backward)
    right = right / right.norm()
    up = torch.linalg.cross(backward, right)
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3] = torch.stack([right, up, backward, distance * backward], dim=1)
    return c2w


def test_world_to_camera_is_the_inverse_up_to_the_change_of_axes():
    c2w = torch.stack([look_at_origin(30, 20, 2.0), look_at_origin(-110, -10, 3.0)])
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    assert torch.allclose(world_to_camera(c2w), flip @ torch.linalg.inv(c2w), atol=1e-12)


def test_front_camera_sees_y_to_the_right_and_z_up():
    viewmat = world_to_camera(look_at_origin(0, 0, 2.0)[None])[0]
    seen = viewmat @ torch.tensor([0.0, 0.3, 0.4, 1.0], dtype=torch.float64)
    assert torch.allclose(seen[:3], torch.tensor([0.3, -0.4, 2.0], dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("height, width", [(8, 8), (6, 10)])
def test_a_pixel_ray_projects_back_onto_its_pixel(height, width):
    """threestudio's rays and the rasterizer's projection describe one camera."""
    c2w = look_at_origin(70, 25, 2.0)[None].float()
    fovy = torch.tensor([0.9])
    directions = get_ray_directions(height, width, float(0.5 * height / torch.tan(0.5 * fovy)))
    rays_o, rays_d = get_rays(directions, c2w[0], keepdim=True)
    points = (rays_o + 1.7 * rays_d).reshape(-1, 3)

    local = points @ world_to_camera(c2w)[0, :3, :3].T + world_to_camera(c2w)[0, :3, 3]
    pixels = local @ intrinsics(fovy, height, width)[0].T
    pixels = (pixels[:, :2] / pixels[:, 2:]).reshape(height, width, 2)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    assert torch.allclose(pixels, torch.stack([x, y], dim=-1), atol=1e-4)
