"""Rays and projections agree with each other and with hand numbers."""

from __future__ import annotations

import math

import pytest
import torch

from threestudio.data.sampling import look_at
from threestudio.errors import ConfigError
from threestudio.utils.ops import (
    convert_pose,
    get_cam_info_gaussian,
    get_fov_gaussian,
    get_mvp_matrix,
    get_projection_matrix,
    get_projection_matrix_gaussian,
    get_ray_directions,
    get_rays,
)


@pytest.fixture
def camera():
    position = torch.tensor([[1.0, -2.0, 0.7], [0.3, 0.4, 2.0]])
    return look_at(
        position, torch.tensor([[0.1, 0.0, -0.2], [0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]] * 2), torch.zeros(2)
    )


def test_directions_of_a_two_pixel_image_by_hand():
    directions = get_ray_directions(H=2, W=2, focal=2.0)
    assert directions.shape == (2, 2, 3)
    assert directions[0, 0].tolist() == [-0.25, 0.25, -1.0]  # left is negative x, the top row looks up
    assert directions[1, 1].tolist() == [0.25, -0.25, -1.0]
    corner = get_ray_directions(H=2, W=2, focal=(2.0, 4.0), principal=(0.0, 0.0), use_pixel_centers=False)
    assert corner[1, 1].tolist() == [0.5, -0.25, -1.0]
    with pytest.raises(ConfigError, match="principal"):
        get_ray_directions(2, 2, (1.0, 1.0))


def test_a_pixels_ray_projects_back_to_the_pixel(camera):
    H, W, fovy = 6, 10, torch.tensor([0.9, 0.5])
    focal = 0.5 * H / torch.tan(0.5 * fovy)
    directions = torch.stack([get_ray_directions(H, W, float(f)) for f in focal])
    rays_o, rays_d = get_rays(directions, camera, keepdim=True)
    points = rays_o + 1.7 * rays_d
    mvp = get_mvp_matrix(camera, get_projection_matrix(fovy, W / H, 0.01, 100.0))
    clip = torch.einsum("bij,bhwj->bhwi", mvp, torch.cat([points, torch.ones_like(points[..., :1])], dim=-1))
    ndc = clip[..., :3] / clip[..., 3:]
    x, y = (ndc[..., 0] + 1) / 2 * W, (ndc[..., 1] + 1) / 2 * H  # y grows downward
    assert torch.allclose(x, (torch.arange(W) + 0.5).expand(2, H, W), atol=1e-3)
    assert torch.allclose(y, (torch.arange(H) + 0.5)[:, None].expand(2, H, W), atol=1e-3)
    assert ndc[..., 2].abs().max() < 1
    assert torch.allclose(rays_d.norm(dim=-1), torch.ones(2, H, W))


def test_get_rays_takes_every_documented_shape(camera):
    directions = get_ray_directions(3, 4, 5.0)
    o, d = get_rays(directions, camera[0], keepdim=True, normalize=False)
    assert d.shape == (3, 4, 3) and torch.equal(o, camera[0, :3, 3].expand(3, 4, 3))
    flat_o, flat_d = get_rays(directions, camera, normalize=False)
    assert flat_d.shape == (24, 3) and torch.allclose(flat_d[:12], d.reshape(-1, 3))
    points = directions.reshape(-1, 3)
    assert torch.allclose(get_rays(points, camera[:1], normalize=False)[1], flat_d[:12])
    per_ray = camera[:1].expand(12, 4, 4)
    assert torch.allclose(get_rays(points, per_ray, normalize=False)[1], flat_d[:12])
    noisy = [
        get_rays(directions, camera[0], keepdim=True, noise_scale=0.1, generator=torch.Generator().manual_seed(1))[0]
        for _ in "ab"
    ]
    assert torch.equal(noisy[0], noisy[1]) and torch.allclose(
        noisy[0] - o, (noisy[0] - o)[0, 0].expand(3, 4, 3), atol=1e-6
    )
    with pytest.raises(ConfigError, match="directions"):
        get_rays(torch.zeros(3), camera)


def test_gaussian_camera_maps_points_as_the_opengl_one(camera):
    fovx, fovy = 0.8, 0.6
    view, full, center = get_cam_info_gaussian(camera[0], fovx, fovy, 0.1, 100.0)
    assert torch.equal(center, camera[0, :3, 3])
    point = torch.tensor([0.2, -0.1, 0.3, 1.0])
    seen = point @ view
    opengl = torch.linalg.inv(camera[0]) @ point
    assert torch.allclose(seen[:3], opengl[:3] * torch.tensor([1.0, -1.0, -1.0]), atol=1e-5)
    clip = point @ full
    assert torch.allclose(clip[3], seen[2], atol=1e-5)  # w is depth in front of the camera
    assert torch.allclose(
        clip[:2] / clip[3], seen[:2] / seen[2] / torch.tensor([math.tan(fovx / 2), math.tan(fovy / 2)]), atol=1e-5
    )
    projection = get_projection_matrix_gaussian(0.1, 100.0, torch.tensor(fovx), fovy)
    near, far = projection @ torch.tensor([0, 0, 0.1, 1]), projection @ torch.tensor([0, 0, 100.0, 1])
    assert abs(float(near[2] / near[3])) < 1e-5 and abs(float(far[2] / far[3]) - 1) < 1e-5
    assert get_fov_gaussian(projection) == pytest.approx((fovx, fovy), abs=1e-6)


def test_convert_pose_twice_is_the_identity(camera):
    once = convert_pose(camera[0])
    assert torch.equal(once[:, 1:3], -camera[0, :, 1:3]) and torch.equal(convert_pose(once), camera[0])
