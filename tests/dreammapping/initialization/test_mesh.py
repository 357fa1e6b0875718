from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.gaussians import GaussianFileError
from dreammapping.initialization import ColoredMesh, InitSettings, initial_points, mesh_from_file, points_from_mesh, points_on_mesh
from dreammapping.initialization.mesh import sample_triangles, triangle_areas

trimesh = pytest.importorskip("trimesh")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_points_are_uniform_over_triangles_and_inside_each():
    areas = torch.tensor([1.0, 0.0, 3.0, 6.0])
    faces, weights = sample_triangles(areas, 20_000, generator())
    counts = torch.bincount(faces, minlength=4).double()
    assert counts[1] == 0
    assert chi_square(counts[[0, 2, 3]], areas[[0, 2, 3]].double() * 2000) < 13.8  # 2 degrees of freedom, p = 0.001
    torch.testing.assert_close(weights.sum(1), torch.ones(20_000, dtype=torch.float64))
    assert weights.min() >= 0
    # Four congruent parts of the triangle, cut at the middles of its sides, get equal shares.
    part = torch.where(weights.amax(1) > 0.5, weights.argmax(1), 3)
    assert chi_square(torch.bincount(part, minlength=4).double(), torch.full((4,), 5000.0)) < 16.3  # 3, p = 0.001


def test_exactly_as_many_points_as_asked_all_on_the_surface(tmp_path):
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.stl")
    points = points_from_mesh(tmp_path / "box.stl", 777, generator()).points
    assert points.shape == (777, 3)
    torch.testing.assert_close((points.abs() * torch.tensor([2.0, 1.0, 2 / 3])).amax(1), torch.ones(777))
    again = points_from_mesh(tmp_path / "box.stl", 777, generator())
    assert torch.equal(points, again.points)


def test_vertex_colors_are_interpolated(tmp_path):
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    colors = np.array([[0, 0, 255, 255], [255, 0, 255, 255], [0, 255, 255, 255]], np.uint8)
    trimesh.Trimesh(corners, [[0, 1, 2]], vertex_colors=colors, process=False).export(tmp_path / "a.ply")
    cloud = points_from_mesh(tmp_path / "a.ply", 200, generator())
    expected = torch.cat([cloud.points[:, :2], torch.ones(200, 1)], 1)  # red grows along x, green along y
    torch.testing.assert_close(cloud.colors, expected, rtol=0, atol=1e-5)


def test_texture_and_factor_color_the_points_in_a_scene(tmp_path):
    from PIL import Image

    square = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = [[0, 1, 2], [0, 2, 3]]
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8))
    image = image.resize((64, 64), Image.Resampling.NEAREST)
    uv = square[:, :2]
    textured = trimesh.Trimesh(square, faces, process=False)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, baseColorFactor=[255, 255, 127, 255])
    textured.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    plain = trimesh.Trimesh(square + [0, 0, 5], faces, process=False)
    plain.visual = trimesh.visual.TextureVisuals(material=trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 0, 51, 255]))
    scene = trimesh.Scene()
    scene.add_geometry(textured)
    scene.add_geometry(plain, transform=trimesh.transformations.translation_matrix([0, 0, 5]))
    scene.export(tmp_path / "scene.glb")

    cloud = points_from_mesh(tmp_path / "scene.glb", 4000, generator())
    high = cloud.points[:, 2] > 5
    assert 1700 < int(high.sum()) < 2300
    torch.testing.assert_close(cloud.points[high][:, 2], torch.full((int(high.sum()),), 10.0))
    # Factors are of linear light: 0.2 of it is displayed as 0.485, one half as 0.735.
    torch.testing.assert_close(cloud.colors[high][0], torch.tensor([1.0, 0.0, 0.485]), rtol=0, atol=0.01)
    quarter = {(0, 1): [1.0, 0, 0], (1, 1): [0, 1.0, 0], (0, 0): [0, 0, 0.735], (1, 0): [1.0, 1.0, 0.735]}
    flat, colors = cloud.points[~high], cloud.colors[~high]
    clear = ((flat[:, :2] - 0.5).abs() > 0.03).all(1)
    expected = torch.tensor([quarter[(int(x > 0.5), int(y > 0.5))] for x, y in flat[clear][:, :2].tolist()])
    torch.testing.assert_close(colors[clear], expected, rtol=0, atol=0.01)


def quartered(size: int = 64):
    """Red and green above, blue and white below."""
    from PIL import Image

    image = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    return Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST)


def textured_square():
    """One unit square of two triangles in the x-y plane, with the whole picture on it."""
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    square = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=quartered(), metallicFactor=0.0, roughnessFactor=1.0)
    square.visual = trimesh.visual.TextureVisuals(uv=corners[:, :2], material=material)
    return square


def test_nodes_of_a_glb_are_turned_scaled_and_repeated(tmp_path):
    """As generators of meshes write them: nodes below nodes, one geometry used twice."""
    scene = trimesh.Scene()
    turn = trimesh.transformations.rotation_matrix(np.pi / 2, [0, 0, 1])
    scene.graph.update(frame_to="parent", frame_from="world", matrix=turn @ np.diag([2.0, 2, 2, 1]))
    move = trimesh.transformations.translation_matrix([0, 0, 1])
    scene.add_geometry(textured_square(), geom_name="square", node_name="first", parent_node_name="parent", transform=move)
    scene.graph.update(frame_to="second", frame_from="parent", geometry="square", matrix=trimesh.transformations.translation_matrix([3, 0, 0]))
    scene.export(tmp_path / "scene.glb")
    # First: (x, y, 1), then doubled, then x -> y and y -> -x. Second: moved by 3 along x before that.
    points = points_from_mesh(tmp_path / "scene.glb", 2000, generator())
    mesh = mesh_from_file(tmp_path / "scene.glb")
    for at in (points.points, mesh.vertices[mesh.faces].reshape(-1, 3)):
        first = at[:, 2] > 1
        torch.testing.assert_close(at[first].amin(0), torch.tensor([-2.0, 0, 2]), rtol=0, atol=0.1)
        torch.testing.assert_close(at[first].amax(0), torch.tensor([0.0, 2, 2]), rtol=0, atol=0.1)
        torch.testing.assert_close(at[~first].amin(0), torch.tensor([-2.0, 6, 0]), rtol=0, atol=0.1)
        torch.testing.assert_close(at[~first].amax(0), torch.tensor([0.0, 8, 0]), rtol=0, atol=0.1)
    # The picture's lower left quarter, blue, lies where the square's corner was: x and y small.
    blue = (points.colors - torch.tensor([0.0, 0, 1])).abs().amax(1) < 0.05
    assert points.points[blue & (points.points[:, 2] > 1)].abs().amax(0)[:2].max() < 1.05


def test_a_texture_moves_to_vertices_that_are_close_enough(tmp_path):
    textured_square().export(tmp_path / "square.glb")
    mesh = mesh_from_file(tmp_path / "square.glb")
    sides = (mesh.vertices[mesh.faces] - mesh.vertices[mesh.faces].roll(1, 1)).norm(dim=-1)
    assert sides.max() < 0.011
    torch.testing.assert_close(triangle_areas(mesh.vertices, mesh.faces).sum(), torch.tensor(1.0))
    normals = torch.linalg.cross(*(mesh.vertices[mesh.faces[:, k]] - mesh.vertices[mesh.faces[:, 0]] for k in (1, 2)))
    assert normals[:, 2].min() > 0  # pieces face as the whole does
    cloud = points_on_mesh(mesh, 3000, generator())
    clear = ((cloud.points[:, :2] - 0.5).abs() > 0.03).all(1)
    right, upper = cloud.points[clear, 0] > 0.5, cloud.points[clear, 1] > 0.5
    expected = torch.stack([(upper ^ right) | (right & ~upper), right, ~upper], 1).float()
    torch.testing.assert_close(cloud.colors[clear], expected, rtol=0, atol=0.01)


def test_each_triangle_has_its_own_place_in_the_texture(tmp_path):
    square = textured_square()
    corners = np.asarray(square.vertices)[np.asarray(square.faces)].reshape(-1, 3)
    uv = np.array([[0.1, 0.1], [0.3, 0.1], [0.3, 0.3], [0.6, 0.6], [0.9, 0.9], [0.6, 0.9]])  # in the blue and in the green
    halves = trimesh.Trimesh(corners, [[0, 1, 2], [3, 4, 5]], process=False)
    halves.visual = trimesh.visual.TextureVisuals(uv=uv, material=square.visual.material)
    halves.export(tmp_path / "halves.glb")
    mesh = mesh_from_file(tmp_path / "halves.glb")
    middle = mesh.vertices[mesh.faces].mean(1)
    lower = (middle[:, 0] > middle[:, 1])[:, None, None]
    expected = torch.where(lower, torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 1, 0])).expand(-1, 3, -1)
    torch.testing.assert_close(mesh.colors[mesh.faces], expected, rtol=0, atol=0.01)


def test_colors_of_vertices_faces_and_none_become_one_mesh(tmp_path):
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9]])
    colors = np.array([[0, 0, 255, 255], [255, 0, 255, 255], [0, 255, 255, 255], [0, 0, 0, 255]], np.uint8)
    trimesh.Trimesh(corners, [[0, 1, 2]], vertex_colors=colors, process=False).export(tmp_path / "vertex.ply")
    mesh = mesh_from_file(tmp_path / "vertex.ply")
    assert mesh.vertices.tolist() == corners[:3].tolist()  # a vertex without a face is no part of the object
    np.testing.assert_allclose(mesh.colors.numpy(), colors[:3, :3] / 255, atol=1e-6)

    two = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
    two.visual = trimesh.visual.ColorVisuals(two, face_colors=[[255, 0, 0, 255], [0, 0, 255, 255]])
    two.export(tmp_path / "face.ply")
    mesh = mesh_from_file(tmp_path / "face.ply")
    assert mesh.colors[mesh.faces].tolist() == [[[1, 0, 0]] * 3, [[0, 0, 1]] * 3]

    trimesh.creation.box().export(tmp_path / "plain.stl")
    mesh = mesh_from_file(tmp_path / "plain.stl", color=[0.2, 0.4, 0.6])
    torch.testing.assert_close(mesh.colors, torch.tensor([0.2, 0.4, 0.6]).expand(len(mesh.vertices), 3))
    torch.testing.assert_close(triangle_areas(mesh.vertices, mesh.faces).sum(), torch.tensor(6.0))

    with pytest.raises(GaussianFileError, match="no area"):
        (tmp_path / "line.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
        mesh_from_file(tmp_path / "line.obj")


def test_our_own_exports_come_back_as_they_were(tmp_path):
    from threestudio.utils.glbfile import glb_bytes

    box = trimesh.creation.box((0.2, 0.4, 0.6))
    (tmp_path / "box.glb").write_bytes(glb_bytes(np.asarray(box.vertices, np.float32), np.asarray(box.faces)))
    box.export(tmp_path / "box.obj")
    for name, up, yaw in (("box.glb", "auto", 90.0), ("box.obj", "z", 0.0)):
        settings = InitSettings(type="mesh", path=str(tmp_path / name), up=up, yaw=yaw, normalize=False, num_points=500)
        at = initial_points(settings, generator(), 1000).points
        torch.testing.assert_close(at.amax(0), torch.tensor([0.1, 0.2, 0.3]), rtol=0, atol=1e-3)
        torch.testing.assert_close(at.amin(0), -torch.tensor([0.1, 0.2, 0.3]), rtol=0, atol=1e-3)


def test_face_colors_are_taken_as_they_are(tmp_path):
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [6, 0, 0], [5, 1, 0]])
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [3, 4, 5]], process=False)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, face_colors=[[255, 0, 0, 255], [0, 0, 255, 255]])
    mesh.export(tmp_path / "a.ply")
    cloud = points_from_mesh(tmp_path / "a.ply", 100, generator())
    left = cloud.points[:, 0] < 2
    assert torch.equal(cloud.colors[left], torch.tensor([[1.0, 0, 0]]).expand(int(left.sum()), 3))
    assert torch.equal(cloud.colors[~left], torch.tensor([[0, 0, 1.0]]).expand(int((~left).sum()), 3))


def test_bad_meshes_are_explained(tmp_path):
    trimesh.PointCloud(np.eye(3)).export(tmp_path / "cloud.ply")
    with pytest.raises(GaussianFileError, match=r"cloud\.ply: contains no triangles"):
        points_from_mesh(tmp_path / "cloud.ply", 10, generator())
    (tmp_path / "line.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    with pytest.raises(GaussianFileError, match=r"line\.obj: its triangles have no area"):
        points_from_mesh(tmp_path / "line.obj", 10, generator())
    (tmp_path / "nan.obj").write_text("v 0 0 0\nv 1 nan 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(GaussianFileError, match=r"nan\.obj: 1 of 3 rows .*rows 1"):
        points_from_mesh(tmp_path / "nan.obj", 10, generator())
    trimesh.creation.box().export(tmp_path / "box.stl")
    with pytest.raises(ConfigError, match="num_points is 0"):
        points_from_mesh(tmp_path / "box.stl", 0, generator())


def colored_box() -> ColoredMesh:
    """A box of 1 x 2 x 3 whose colors are its coordinates, scaled to [0, 1]."""
    box = trimesh.creation.box((1, 2, 3))
    vertices = torch.from_numpy(np.array(box.vertices, dtype=np.float32))
    return ColoredMesh(vertices, torch.from_numpy(np.array(box.faces, dtype=np.int64)), vertices / torch.tensor([1.0, 2, 3]) + 0.5)


def test_fifty_thousand_points_of_a_colored_mesh_are_uniform_by_area():
    cloud = points_on_mesh(colored_box(), 50_000, generator())
    assert cloud.points.shape == (50_000, 3)
    scaled = cloud.points / torch.tensor([1.0, 2, 3]) * 2  # [-1, 1]^3
    side = scaled.abs().argmax(1) * 2 + (scaled.gather(1, scaled.abs().argmax(1)[:, None])[:, 0] > 0)
    quarter = [(scaled[:, a] > 0).long() * 2 + (scaled[:, b] > 0) for a, b in ((1, 2), (0, 2), (0, 1))]
    cell = side * 4 + torch.stack(quarter).gather(0, (side // 2)[None])[0]
    areas = torch.tensor([6.0, 6, 3, 3, 2, 2], dtype=torch.float64).repeat_interleave(4) / 4
    expected = 50_000 * areas / areas.sum()
    assert chi_square(torch.bincount(cell, minlength=24).double(), expected) < 49.7  # 23 degrees of freedom, p = 0.001
    torch.testing.assert_close(cloud.colors, cloud.points / torch.tensor([1.0, 2, 3]) + 0.5, rtol=0, atol=1e-5)


def test_points_of_a_colored_mesh_follow_the_generator():
    first, again, other = (points_on_mesh(colored_box(), 50, generator(s)).points for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    "change",
    [
        {"faces": torch.zeros(0, 3, dtype=torch.int64)}, {"faces": torch.tensor([[0, 1, 8]])}, {"faces": torch.tensor([[0, -1, 1]])},
        {"vertices": torch.full((8, 3), float("nan"))}, {"colors": torch.full((8, 3), 1.1)}, {"colors": torch.zeros(7, 3)},
        {"vertices": torch.zeros(8, 3, dtype=torch.float64)}, {"faces": torch.zeros(1, 3, dtype=torch.int32)},
    ],
)  # fmt: skip
def test_a_colored_mesh_that_is_none(change):
    colored_box().check()
    with pytest.raises(ValueError, match="its|it has"):
        replace(colored_box(), **change).check()
