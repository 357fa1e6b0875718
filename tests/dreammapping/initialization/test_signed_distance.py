"""Distance and inside against closed forms and against plain sums over all triangles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.initialization import ColoredMesh, signed_distance
from dreammapping.initialization.signed_distance import MeshSurface
from dreammapping.initialization.triangle_tree import TriangleTree

trimesh = pytest.importorskip("trimesh")


def cube_points(count: int, half: float = 1.0, seed: int = 0) -> torch.Tensor:
    return (torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * half


def soup(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Triangles of all sizes in no order."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(count, 1, 1, generator=generator) ** 3
    corners = cube_points(count, seed=seed)[:, None] + sizes * torch.randn(count, 3, 3, generator=generator)
    return corners.reshape(-1, 3), torch.arange(3 * count).reshape(-1, 3)


def all_distances(vertices: torch.Tensor, faces: torch.Tensor, points: torch.Tensor) -> np.ndarray:
    """[N, F], by trimesh's formula for one triangle."""
    triangles = vertices[faces].double().numpy()
    each = [trimesh.triangles.closest_point(np.repeat(t[None], len(points), 0), points.double().numpy()) for t in triangles]
    return np.stack([np.linalg.norm(e - points.double().numpy(), axis=1) for e in each], axis=1)


def exact_winding(vertices: torch.Tensor, faces: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Sum of all solid angles, through the angles of the spherical triangle (L'Huilier), signed by the side."""
    corners = vertices[faces].double()[None] - points.double()[:, None, None]  # [N, F, 3, 3]
    side = torch.linalg.det(corners).sign()
    unit = torch.nn.functional.normalize(corners, dim=-1)
    a, b, c = ((unit[..., i, :] * unit[..., j, :]).sum(-1).clamp(-1, 1).acos() for i, j in ((1, 2), (2, 0), (0, 1)))
    s = (a + b + c) / 2
    product = (s / 2).tan() * ((s - a) / 2).tan() * ((s - b) / 2).tan() * ((s - c) / 2).tan()
    return (4 * product.clamp_min(0).sqrt().atan() * side).sum(1) / (4 * math.pi)


def test_sphere_in_closed_form():
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    points = cube_points(3000)
    expected = points.norm(dim=-1) - 0.5
    torch.testing.assert_close(signed_distance(mesh, points), expected, rtol=0, atol=5e-4)  # facets lie inside the sphere
    clear = expected.abs() > 1e-3
    assert torch.equal((signed_distance(mesh, points) < 0)[clear], (expected < 0)[clear])


def test_box_in_closed_form_with_its_faces_edges_and_corners():
    half = torch.tensor([0.5, 0.3, 0.2])
    mesh = trimesh.creation.box((2 * half).numpy())
    points = cube_points(4000)
    beyond = points.abs() - half
    expected = beyond.clamp_min(0).norm(dim=-1) + beyond.amax(-1).clamp_max(0)
    torch.testing.assert_close(signed_distance(mesh, points), expected, rtol=0, atol=1e-6)


def test_the_gradient_is_the_unit_normal():
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    points = cube_points(300, seed=1)
    points = points[(points.norm(dim=-1) > 0.1)]
    step = 1e-2
    ahead, behind = (
        torch.stack([signed_distance(mesh, points + side * step * axis) for axis in torch.eye(3)], 1) for side in (1, -1)
    )
    expected = torch.nn.functional.normalize(points, dim=-1)
    assert ((ahead - behind) / (2 * step) - expected).abs().max() < 0.05


@pytest.mark.parametrize("count", [1, 8, 9, 100])
def test_a_soup_of_triangles_equals_the_search_through_all(count):
    vertices, faces = soup(count)
    points = cube_points(200, half=2.0, seed=5)
    found = TriangleTree(vertices, faces).nearest(points)
    reference = all_distances(vertices, faces, points)
    np.testing.assert_allclose(found.distances.numpy(), reference.min(1), atol=1e-9)
    np.testing.assert_allclose(reference[np.arange(200), found.faces.numpy()], reference.min(1), atol=1e-9)
    place = (vertices[faces[found.faces]].double() * found.weights[..., None]).sum(1)
    torch.testing.assert_close((place - points).norm(dim=-1), found.distances)
    assert found.weights.min() >= 0
    torch.testing.assert_close(found.weights.sum(1), torch.ones(200, dtype=torch.float64))


@pytest.mark.parametrize("count", [8, 9, 100, 1000])
def test_winding_numbers_equal_the_sum_of_solid_angles(count):
    vertices, faces = soup(count, seed=2)
    points = cube_points(300, half=2.0, seed=3)
    numbers = TriangleTree(vertices, faces).winding_numbers(points)
    exact = exact_winding(vertices, faces, points)
    assert exact.abs().max() > 0.09  # there is something to be wrong about
    assert (numbers - exact).abs().max() < 1e-3  # what the dipoles err by


def test_winding_of_a_closed_mesh_is_one_inside_and_zero_outside():
    mesh = trimesh.creation.torus(0.5, 0.2)
    points = cube_points(2000, seed=7)
    tube = ((points[:, :2].norm(dim=-1) - 0.5) ** 2 + points[:, 2] ** 2).sqrt() - 0.2
    numbers = TriangleTree(torch.tensor(mesh.vertices), torch.tensor(mesh.faces)).winding_numbers(points)
    clear = tube.abs() > 0.02
    assert (numbers[clear] - (tube[clear] < 0).double()).abs().max() < 0.01


def test_open_meshes_are_wrong_only_near_the_hole_and_more_so_the_larger_it_is():
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    points = cube_points(20_000, half=0.6, seed=4)
    inside = points.norm(dim=-1) < 0.5
    clear = (points.norm(dim=-1) - 0.5).abs() > 0.005  # of the facets
    wrong = []
    for height in (0.48, 0.4, 0.25):
        kept = sphere.triangles_center[:, 2] < height
        mesh = trimesh.Trimesh(sphere.vertices, sphere.faces[kept], process=False)
        mistaken = ((signed_distance(mesh, points) < 0) != inside) & clear
        wrong.append(float(mistaken.float().mean()))
        rim = math.sqrt(0.5**2 - height**2)
        from_hole = (points - torch.tensor([0.0, 0.0, height])).norm(dim=-1)
        assert not bool((mistaken & (from_hole > rim)).any())
    assert 0 < wrong[0] < wrong[1] < wrong[2] < 0.06 and wrong[0] < 1e-3


def test_inside_out_meshes_overlaps_and_sheets():
    points = cube_points(2000, seed=8)
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    flipped = trimesh.Trimesh(ball.vertices, ball.faces[:, ::-1], process=False)
    assert torch.equal(signed_distance(flipped, points), signed_distance(ball, points))
    other = ball.copy()
    other.apply_translation([0.3, 0, 0])
    both = signed_distance(trimesh.util.concatenate([ball, other]), points)
    union = (signed_distance(ball, points) < 0) | (signed_distance(other, points) < 0)
    assert torch.equal(both < 0, union)
    square = ColoredMesh(torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]]), torch.zeros(4, 3))
    away = points[points[:, 2].abs() > 0.05]
    torch.testing.assert_close(signed_distance(square, away), away[:, 2].abs())


def test_triangles_without_area_do_no_harm_but_alone_are_refused():
    box = trimesh.creation.box((1, 1, 1))
    vertices, faces = torch.tensor(box.vertices), torch.tensor(box.faces)
    slivers = torch.cat([torch.tensor([[0, 0, 1], [2, 3, 3]]), faces])
    points = cube_points(500)
    whole, with_slivers = MeshSurface(vertices, faces).query(points), MeshSurface(vertices, slivers).query(points)
    assert torch.equal(whole.distances, with_slivers.distances) and torch.equal(whole.faces + 2, with_slivers.faces)
    with pytest.raises(ConfigError, match="no area"):
        MeshSurface(vertices, slivers[:2])
    with pytest.raises(ConfigError, match="no triangles"):
        MeshSurface(vertices, faces[:0])


def test_any_number_of_points_and_threads_gives_the_same():
    mesh = trimesh.creation.torus(0.5, 0.2)
    surface = MeshSurface(torch.tensor(mesh.vertices), torch.tensor(mesh.faces))
    points = cube_points(2000)
    assert len(surface.query(points[:0]).distances) == 0
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(surface.query(points).distances)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
    assert torch.equal(surface.query(points[7:8]).distances, found[0][7:8])
