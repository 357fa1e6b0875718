"""The command line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from dreammapping.initialization import ShapESettings, points_from_file, points_from_mesh, reorient, shap_e_mesh
from dreammapping.initialization.points import linear_to_srgb, srgb_to_linear
from dreammapping.initialization.shap_e import __main__ as cli


@pytest.fixture
def command(model: Path, tmp_path: Path):
    """Run with a tiny model; returns the file."""

    def run(name: str, *options: str) -> Path:
        output = tmp_path / name
        quick = ["--model", str(model), "--steps", "2", "--grid-size", "16", "--cache-dir", str(tmp_path / "cache"), "--device", "cpu"]
        cli.main(["--prompt", "a red mug", "--output", str(output), *quick, *options])
        return output

    return run


@pytest.fixture
def mesh(settings, tmp_path):
    return shap_e_mesh("a red mug", settings(), "cpu")


def test_every_setting_is_an_option():
    options = {option for action in cli._parser()._actions for option in action.option_strings}
    assert {"--" + field.name.replace("_", "-") for field in fields(ShapESettings)} <= options
    parsed = cli._parser().parse_args(["--prompt", "a", "--output", "a.ply"])
    assert ShapESettings(**{field.name: getattr(parsed, field.name) for field in fields(ShapESettings)}) == ShapESettings(seed=0)


def test_help_is_there(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0 and "--guidance-scale" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_a_file_read_back_is_the_mesh(command, mesh, capsys, suffix):
    file = command(f"mug{suffix}")
    assert f"{len(mesh.faces)} faces, {'z' if suffix == '.ply' else 'y'} up" in capsys.readouterr().out
    read = trimesh.load(file, process=False, force="mesh")
    assert len(read.faces) == len(mesh.faces)
    points = torch.from_numpy(np.array(read.vertices, dtype=np.float32))
    if suffix != ".ply":
        points = points @ torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])  # y up to z up
    torch.testing.assert_close(points, mesh.vertices, rtol=0, atol=1e-5)
    colors = torch.from_numpy(np.array(read.visual.vertex_colors[:, :3], dtype=np.float32)) / 255
    torch.testing.assert_close(colors, srgb_to_linear(mesh.colors) if suffix == ".glb" else mesh.colors, rtol=0, atol=1 / 255)


@pytest.mark.parametrize(("suffix", "options"), [(".ply", []), (".obj", []), (".obj", ["--up", "z"])])
def test_init_type_mesh_reads_it_back_where_it_was(command, mesh, suffix, options):
    file = command(f"mug{suffix}", *options)
    cloud = points_from_mesh(file, 500, torch.Generator().manual_seed(0))
    up = "y" if suffix == ".obj" and not options else "z"
    turned = reorient(cloud, up).points
    triangles = mesh.vertices[mesh.faces]
    middle, size = triangles.mean(1), (triangles - triangles.mean(1, keepdim=True)).norm(dim=-1).max()
    assert torch.cdist(turned, middle).amin(1).max() <= size + 1e-5


def test_points_are_a_cloud_with_colors(command, mesh, settings):
    cloud = points_from_file(command("points.ply", "--points", "300"))
    assert cloud.count == 300 and torch.cdist(cloud.points, mesh.vertices).amin(1).max() < 2 / 16
    assert (cloud.colors - mesh.colors.mean(0)).abs().max() < 0.5
    grown = points_from_file(command("grown.ply", "--points", "301", "--growing"))
    assert grown.count == 301 and grown.colors.mean() > cloud.colors.mean() + 0.03  # of the noise
    assert torch.cdist(grown.points, mesh.vertices).amin(1).max() <= settings().growing_distance + 1e-5


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(command):
    first, again, other = command("a.ply"), command("b.ply"), command("c.ply", "--seed", "5")
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mug.stl", [], r"mug.stl; it must end in .ply, .glb, .obj"),
        ("mug.obj", ["--points", "5"], r"with --points: .ply"),
        ("mug.ply", ["--points", "0"], "--points is 0"),
        ("mug.ply", ["--steps", "0"], "shap_e.steps is 0"),
        ("mug.ply", ["--prompt", " "], "prompt is empty"),
        ("mug.ply", ["--model", "./nowhere"], "was not found"),
    ],
)
def test_mistakes_are_one_message(command, name, options, message):
    with pytest.raises(SystemExit) as ended:
        command(name, *options)
    assert str(ended.value.code).startswith("Error: ") and message.replace("\\", "") in str(ended.value.code)


def test_a_file_that_cannot_be_written_is_said(command, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit, match="Error: cannot write"):
        command("taken/mug.ply")


def test_srgb_and_linear_light_undo_each_other():
    values = torch.linspace(0, 1, 1001)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, rtol=0, atol=2e-6)
    torch.testing.assert_close(srgb_to_linear(torch.tensor([0.5])), torch.tensor([0.2140411]), rtol=0, atol=1e-6)
