from __future__ import annotations

import numpy as np
import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.gaussians import GaussianFileError, GaussianModel, save_gaussians, sh0_to_rgb
from dreammapping.initialization import InitSettings, initial_points, points_from_file
from dreammapping.initialization.settings import up_axis
from dreammapping.settings import parse_settings

POINTS = np.array([[0.0, 0, 0], [1, 2, 3], [-4, 5, 6.5]], np.float32)
COLORS = np.array([[255, 0, 51], [0, 102, 0], [10, 20, 30]], np.uint8)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def write_ply(path, points=POINTS, colors=COLORS):
    trimesh = pytest.importorskip("trimesh")
    trimesh.PointCloud(points, colors).export(path)
    return path


@pytest.mark.parametrize("suffix", ["ply", "xyz", "glb"])
def test_points_and_colors_come_back_in_order(tmp_path, suffix):
    cloud = points_from_file(write_ply(tmp_path / f"cloud.{suffix}"))
    np.testing.assert_allclose(cloud.points.numpy(), POINTS)
    if suffix == "ply":
        np.testing.assert_allclose(cloud.colors.numpy(), COLORS / 255, atol=1e-6)


def test_vertices_of_a_colored_mesh_are_points(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.Trimesh(POINTS, [[0, 1, 2]], vertex_colors=COLORS, process=False)
    for suffix in ("ply", "off", "obj"):
        mesh.export(tmp_path / f"mesh.{suffix}")
        cloud = points_from_file(tmp_path / f"mesh.{suffix}", color=[0.2, 0.2, 0.2])
        np.testing.assert_allclose(cloud.points.numpy(), POINTS)
        if suffix != "off":
            np.testing.assert_allclose(cloud.colors.numpy(), COLORS / 255, atol=1e-2)


def test_splat_ply_gives_centers_and_colors(tmp_path):
    model = GaussianModel(1, 4)
    with torch.no_grad():
        model.params["means"].normal_()
        model.params["sh0"].uniform_(-1, 1)
        model.params["quats"].fill_(1)
    cloud = points_from_file(save_gaussians(model, tmp_path / "a.ply"))
    assert torch.equal(cloud.points, model.get_means)
    torch.testing.assert_close(cloud.colors, sh0_to_rgb(model.params["sh0"][:, 0]).detach().clamp(0, 1))


def test_file_without_colors_gets_the_chosen_one(tmp_path):
    (tmp_path / "a.xyz").write_text("0 0 0\n1 1 1\n")
    cloud = points_from_file(tmp_path / "a.xyz", color=[0.25, 0.5, 1.0])
    assert cloud.colors.tolist() == [[0.25, 0.5, 1.0]] * 2


def test_bad_files_are_named_with_their_rows(tmp_path):
    broken = POINTS.copy()
    broken[1, 2], broken[2, 0] = np.nan, np.inf
    with pytest.raises(GaussianFileError, match=r"nan\.ply: 2 of 3 rows have positions .*rows 1, 2"):
        points_from_file(write_ply(tmp_path / "nan.ply", broken))
    with pytest.raises(GaussianFileError, match=r"many\.ply: contains 3 points, more than the limit of 2"):
        points_from_file(write_ply(tmp_path / "many.ply"), max_points=2)
    with pytest.raises(GaussianFileError, match=r"gone\.ply: no such file"):
        points_from_file(tmp_path / "gone.ply")
    (tmp_path / "empty.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    with pytest.raises(GaussianFileError, match=r"empty\.ply: contains no points"):
        points_from_file(tmp_path / "empty.ply")
    (tmp_path / "flat.ply").write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n")
    with pytest.raises(GaussianFileError, match=r"flat\.ply: its vertices have no x, y, z"):
        points_from_file(tmp_path / "flat.ply")
    for name, content in (("noise.glb", b"\x00\x01\x02garbage"), ("notes.docx", b"hello"), ("noise.obj", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GaussianFileError, match=name):
            points_from_file(tmp_path / name)


def test_settings_choose_place_and_limit_the_points(tmp_path):
    path = str(write_ply(tmp_path / "a.ply"))
    settings = parse_settings(InitSettings, {"type": "points", "path": path, "radius": 2.0}, "init")
    cloud = initial_points(settings, generator(), 100_000)
    assert cloud.count == 3 and cloud.points.norm(dim=-1).max() == pytest.approx(2.0)
    kept = initial_points(InitSettings(type="points", path=path, normalize=False, num_points=2), generator(), 10)
    assert kept.count == 2
    rows = [POINTS.tolist().index(p) for p in kept.points.tolist()]
    assert rows == sorted(rows)
    np.testing.assert_allclose(kept.colors.numpy(), COLORS[rows] / 255, atol=1e-6)
    with pytest.raises(GaussianFileError, match="limit of 2"):
        initial_points(InitSettings(type="points", path=path, num_points=None), generator(), 2)


@pytest.mark.parametrize(("name", "axis"), [("a.glb", "y"), ("a.gltf", "y"), ("A.OBJ", "y"), ("a.ply", "z"), ("a.stl", "z"), (None, "z")])
def test_auto_takes_the_up_axis_from_the_kind_of_file(name, axis):
    assert up_axis(InitSettings(path=name, up="auto")) == axis
    assert up_axis(InitSettings(path=name)) == "z" and up_axis(InitSettings(path=name, up="-x")) == "-x"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "spere"}, "did you mean 'sphere'"),
        ({"type": "points"}, "needs init.path"),
        ({"type": "mesh", "path": "a.obj", "num_points": None}, "needs init.num_points"),
        ({"num_points": 2000}, "above densification.cap_max"),
        ({"point_count": 20}, "init.point_count"),
        ({"up": "w"}, "init.up"),
    ],
)
def test_bad_settings_are_explained(values, message):
    with pytest.raises(ConfigError, match=message):
        initial_points(parse_settings(InitSettings, values, "init"), generator(), 1000)
