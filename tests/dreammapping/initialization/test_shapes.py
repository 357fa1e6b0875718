"""Solid shapes from files and points: placed in the world, with distances and colors where they are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.gaussians import GaussianFileError
from dreammapping.initialization import ColoredPoints, InitSettings, ShapESettings, initial_mesh, initial_shape, shap_e_mesh
from dreammapping.initialization.shapes import PointShape

from tests.helpers.tiny_shap_e import make_tiny_shap_e

trimesh = pytest.importorskip("trimesh")
CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cube_points(count: int, half: float = 1.0) -> torch.Tensor:
    return (torch.rand(count, 3, generator=generator(5)) * 2 - 1) * half


@pytest.fixture
def box_file(tmp_path):
    """2 wide, 4 deep, 6 high, with green growing along y, in a file whose up is y."""
    box = trimesh.creation.box((2, 6, 4))
    box.visual.vertex_colors = np.stack([np.zeros(8), (box.vertices[:, 2] + 2) / 4 * 255, np.zeros(8), np.full(8, 255)], 1).astype(np.uint8)
    box.apply_translation([5, 5, 5])
    box.export(tmp_path / "box.ply")
    return str(tmp_path / "box.ply")


def test_a_prompt_becomes_the_solid_of_shap_es_mesh(tmp_path):
    """The one that the cached mesh encloses, at its place and in its colors."""
    folder = make_tiny_shap_e(tmp_path / "model")
    shap_e = {"model": str(folder), "steps": 2, "grid_size": 24, "seed": 1, "cache_dir": str(tmp_path / "cache")}
    settings = InitSettings(type="shap-e", prompt="a red mug", radius=0.5, yaw=90.0, shap_e=shap_e)
    made = shap_e_mesh("a red mug", ShapESettings(**shap_e), CPU)
    mesh, shape = initial_mesh(settings, CPU), initial_shape(settings, generator(), CPU)
    assert torch.equal(mesh.faces, made.faces) and torch.equal(mesh.colors, made.colors)
    assert mesh.vertices.norm(dim=-1).max().item() == pytest.approx(0.5, abs=1e-5)
    middle = (made.vertices.amax(0) + made.vertices.amin(0)) / 2
    turned = (made.vertices - middle)[:, [1, 0, 2]] * torch.tensor([-1.0, 1.0, 1.0])  # a quarter turn about z
    torch.testing.assert_close(mesh.vertices, turned * (0.5 / turned.norm(dim=-1).max()), rtol=1e-4, atol=1e-5)
    distances, colors = shape.query(mesh.vertices[:50])
    assert distances.abs().max() < 1e-5
    with pytest.raises(ConfigError, match="needs init.prompt"):
        initial_mesh(InitSettings(type="shap-e"), CPU)


def test_a_mesh_is_turned_centered_and_scaled(box_file):
    mesh = initial_mesh(InitSettings(type="mesh", path=box_file, up="y", radius=0.5), CPU)
    scale = 0.5 / 14**0.5  # half the diagonal of 2, 4, 6
    torch.testing.assert_close(mesh.vertices.abs().amax(0), scale * torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(mesh.vertices.amin(0), -mesh.vertices.amax(0))
    front = mesh.vertices[:, 1] < 0  # the file's +z
    assert mesh.colors[front, 1].min() == 1 and mesh.colors[~front, 1].max() == 0
    as_it_is = initial_mesh(InitSettings(type="mesh", path=box_file, normalize=False), CPU)
    torch.testing.assert_close(as_it_is.vertices.amax(0), torch.tensor([6.0, 8.0, 7.0]))
    assert initial_mesh(InitSettings(), CPU) is None


def test_the_shape_of_a_mesh_knows_distance_and_color(box_file):
    shape = initial_shape(InitSettings(type="mesh", path=box_file, normalize=False), generator(), CPU)
    points = cube_points(500, half=6.0) + 5
    beyond = (points - 5).abs() - torch.tensor([1.0, 3.0, 2.0])
    distances, colors = shape.query(points)
    torch.testing.assert_close(distances, beyond.clamp_min(0).norm(dim=-1) + beyond.amax(-1).clamp_max(0))
    outside = distances > 0
    expected = ((points[outside, 2] - 3) / 4).clamp(0, 1)
    torch.testing.assert_close(colors[outside], torch.stack([0 * expected, expected, 0 * expected], 1), rtol=0, atol=3e-3)
    surface = shape.surface_points(300, generator())
    torch.testing.assert_close(shape.query(surface)[0], torch.zeros(300), rtol=0, atol=1e-5)


def test_points_become_balls_that_touch():
    grid = torch.stack(torch.meshgrid(*[torch.arange(5.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    cloud = ColoredPoints(grid, grid / 4)
    shape = PointShape(cloud)
    distances, colors = shape.query(torch.tensor([[2.0, 2.0, 2.0], [2.5, 2.0, 2.0], [-3.0, 0.0, 0.0], [4.0, 4.0, 9.0]]))
    torch.testing.assert_close(distances, torch.tensor([-1.0, -0.5, 2.0, 4.0]))  # each ball reaches its neighbors
    torch.testing.assert_close(colors[0], torch.full((3,), 0.5), rtol=0, atol=1e-4)
    torch.testing.assert_close(colors[1], torch.tensor([0.625, 0.5, 0.5]), rtol=0, atol=0.1)
    surface = shape.surface_points(100, generator())
    assert shape.query(surface)[0].max() < 1e-5
    alone = PointShape(ColoredPoints(torch.zeros(1, 3), torch.ones(1, 3)))
    torch.testing.assert_close(alone.query(torch.tensor([[1.0, 0, 0]]))[0], torch.tensor([0.99]))


def test_a_sphere_is_a_ball_in_its_color():
    shape = initial_shape(InitSettings(radius=0.3, color=[0.2, 0.4, 0.6]), generator(), CPU)
    points = cube_points(100)
    distances, colors = shape.query(points)
    torch.testing.assert_close(distances, points.norm(dim=-1) - 0.3)
    torch.testing.assert_close(colors, torch.tensor([0.2, 0.4, 0.6]).expand(100, 3))
    torch.testing.assert_close(shape.surface_points(50, generator()).norm(dim=-1), torch.full((50,), 0.3))


def test_a_point_file_is_placed_too(tmp_path):
    trimesh.PointCloud(np.array([[0.0, 0, 0], [0, 8, 0]]), np.array([[255, 0, 0], [0, 0, 255]], np.uint8)).export(tmp_path / "two.ply")
    shape = initial_shape(InitSettings(type="points", path=str(tmp_path / "two.ply"), up="y", radius=0.5), generator(), CPU)
    distances, colors = shape.query(torch.tensor([[0.0, 0, 0.5], [0, 0, -0.5]]))
    torch.testing.assert_close(distances, torch.full((2,), -1.0))
    torch.testing.assert_close(colors, torch.tensor([[0.0, 0, 1], [1, 0, 0]]), rtol=0, atol=1e-4)


def test_mistakes_are_explained(tmp_path):
    with pytest.raises(ConfigError, match="needs init.path"):
        initial_shape(InitSettings(type="mesh"), generator(), CPU)
    with pytest.raises(ConfigError, match="did you mean 'mesh'"):
        initial_shape(InitSettings(type="mes"), generator(), CPU)
    with pytest.raises(GaussianFileError, match=r"gone\.obj: no such file"):
        initial_shape(InitSettings(type="mesh", path=str(tmp_path / "gone.obj")), generator(), CPU)
