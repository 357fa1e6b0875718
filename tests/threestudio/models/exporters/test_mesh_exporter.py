"""A colored shape whose surface is known, exported and read back from the files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image, ImageDraw

import launch
from threestudio import find, register
from threestudio.errors import ConfigError, UserError
from threestudio.extensions import load_extensions
from threestudio.models.exporters.base import Exporter
from threestudio.models.geometry.base import BaseExplicitGeometry, BaseImplicitGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.systems.base import BaseLift3DSystem
from threestudio.utils.base import BaseModule
from threestudio.utils.saving import SaverMixin

pytest.importorskip("xatlas")

# Balls: center, radius. The front (+x) has a nose, the top (+z) a higher hat.
BALLS = np.array([[0, 0, 0, 0.4], [0.4, 0, 0, 0.2], [0, 0, 0.45, 0.25]])
BOX = np.array([[-0.4, -0.4, -0.4], [0.6, 0.4, 0.7]])


def color_at(points):
    """[N, 3] -> [N, 3] in [0, 1]; for tensors and arrays alike."""
    library = torch if isinstance(points, torch.Tensor) else np
    return 0.5 + 0.4 * library.sin(4 * points + 1)


@register("export-test-geometry")
class Shape(BaseImplicitGeometry):
    @dataclass
    class Config(BaseImplicitGeometry.Config):
        isosurface_resolution: int = 12
        grow: float = 0.0

    def forward_field(self, points):
        balls = torch.tensor(BALLS).to(points)
        return ((points[..., None, :] - balls[:, :3]).norm(dim=-1) - balls[:, 3]).amin(-1, keepdim=True), None

    def forward_level(self, field, threshold):
        return field - threshold - self.cfg.grow

    def export(self, points, **kwargs):
        return {"features": torch.logit(color_at(points))}


@register("export-test-material")
class Everything(BaseMaterial):
    def export(self, points, features, **kwargs):
        rough = (points[:, 2:] + 1) / 2
        return {
            "albedo": features.sigmoid(),
            "roughness": rough,
            "metallic": 1 - rough,
            "bump": torch.full_like(points, 0.5),
            "unheard": rough,
        }


def exporter(config=None, geometry=None, material=None):
    parts = {"geometry": geometry or Shape({}), "material": material or find("no-material")({}), "background": None}
    return find("mesh-exporter")({"texture_size": 128, "texture_format": "png", **(config or {})}, **parts)


def export(folder, config=None, **parts) -> Path:
    """The main file."""
    saver = SaverMixin()
    saver.set_save_dir(str(folder))
    (output,) = exporter(config, **parts)()
    written = getattr(saver, f"save_{output.save_type}")(f"it7-export/{output.save_name}", **output.params)
    return Path(written[0] if isinstance(written, list) else written)


def load(path):
    """The mesh in world coordinates."""
    mesh = trimesh.load(path, process=False)
    if path.suffix == ".glb":
        (mesh,) = mesh.geometry.values()
        mesh.vertices = mesh.vertices[:, [2, 0, 1]]
    return mesh


def picture(mesh):
    material = mesh.visual.material
    image = material.baseColorTexture if hasattr(material, "baseColorTexture") else material.image
    return np.asarray(image.convert("RGB"), dtype=float)


def looked_up(image, uv):
    """Bilinear lookup as a renderer does it: uv [N, 2], v from the bottom -> [N, 3]."""
    size = np.array(image.shape[1::-1])
    at = np.stack([uv[:, 0], 1 - uv[:, 1]], -1) * size - 0.5
    low = np.floor(at).astype(int)
    part = (at - low)[:, :, None]
    x0, y0 = low.clip(0, size - 1).T
    x1, y1 = (low + 1).clip(0, size - 1).T
    top = image[y0, x0] * (1 - part[:, 0]) + image[y0, x1] * part[:, 0]
    bottom = image[y1, x0] * (1 - part[:, 0]) + image[y1, x1] * part[:, 0]
    return top * (1 - part[:, 1]) + bottom * part[:, 1]


def color_errors(mesh, count=5000):
    """Differences, in 8-bit levels, between texture and truth at random surface points."""
    points, face = trimesh.sample.sample_surface(mesh, count, seed=0)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)
    uv = (mesh.visual.uv[mesh.faces[face]] * weights[..., None]).sum(1)
    return np.abs(looked_up(picture(mesh), uv) - 255 * color_at(points))


@pytest.fixture(scope="module", params=["obj-mtl", "glb"])
def textured(request, tmp_path_factory):
    config = {"fmt": request.param, "texture_size": 256}
    return load(export(tmp_path_factory.mktemp(request.param), config, geometry=Shape({"isosurface_resolution": 20})))


# ---- shape ----


def test_the_mesh_is_closed_and_lies_where_the_shape_lies(textured):
    assert len(textured.faces) > 1000 and np.allclose(textured.bounds, BOX, atol=0.02)
    joined = textured.copy()
    joined.merge_vertices(merge_tex=True, merge_norm=True)
    assert joined.is_watertight and joined.is_winding_consistent and joined.volume > 0
    assert len(joined.split()) == 1


@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 2)])
def test_silhouettes_agree(textured, axes):
    size, axes = 256, list(axes)
    image = Image.new("1", (size, size))
    draw = ImageDraw.Draw(image)
    for triangle in (textured.triangles[..., axes] + 1) / 2 * size - 0.5:
        draw.polygon([tuple(corner) for corner in triangle], fill=1)
    line = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(line, line, indexing="xy")
    truth = np.zeros((size, size), dtype=bool)
    for ball in BALLS:
        truth |= (x - ball[axes[0]]) ** 2 + (y - ball[axes[1]]) ** 2 < ball[3] ** 2
    seen = np.asarray(image)
    assert (seen & truth).sum() / (seen | truth).sum() >= 0.95


def test_glb_stands_upright_and_faces_the_viewer(tmp_path):
    path = export(tmp_path, {"fmt": "glb", "save_normal": True})
    bounds = trimesh.load(path, process=False, force="mesh").bounds
    assert np.allclose(bounds, BOX[:, [1, 2, 0]], atol=0.05)  # left, up, front


# ---- color ----


def test_texture_coordinates_and_colors_are_right(textured):
    uv = textured.visual.uv
    assert uv.min() >= 0 and uv.max() <= 1 and picture(textured).shape == (256, 256, 3)
    errors = color_errors(textured)
    assert errors.max() < 6 and errors.mean() < 0.8


def test_no_background_in_the_charts_nor_beside_them(textured):
    image = picture(textured)
    # Every texel, even the farthest from any chart, holds a color of the surface: 0.1 to 0.9.
    assert image.min() >= 25 and image.max() <= 230
    half = image.reshape(128, 2, 128, 2, 3).mean((1, 3))  # the next mipmap level
    textured = textured.copy()
    textured.visual.material = trimesh.visual.material.SimpleMaterial(image=Image.fromarray(half.astype("uint8")))
    assert color_errors(textured).mean() < 4


def test_jpeg_is_close(tmp_path):
    path = export(tmp_path, {"texture_format": "jpg"})
    assert (path.parent / "texture_kd.jpg").is_file() and color_errors(load(path)).mean() < 2.5


def test_all_maps_of_a_material_are_written(tmp_path):
    path = export(tmp_path, {"save_name": "mug", "save_normal": True}, material=Everything({}))
    names = {"mug.obj", "mug.mtl", *(f"texture_{kind}.png" for kind in ("kd", "metallic", "roughness", "nrm"))}
    assert {entry.name for entry in path.parent.iterdir()} == names
    text = (path.parent / "mug.mtl").read_text()
    used = [line.split()[1] for line in text.splitlines() if line.startswith("map_")]
    assert len(used) == 4 and set(used) < names  # relative, in the same folder
    rough = np.asarray(Image.open(path.parent / "texture_roughness.png").convert("L"), dtype=float)
    metal = np.asarray(Image.open(path.parent / "texture_metallic.png").convert("L"), dtype=float)
    assert np.abs(rough + metal - 255).max() <= 1 and rough.max() == pytest.approx(255 * 0.85, abs=3)
    material = load(export(tmp_path, {"fmt": "glb"}, material=Everything({}))).visual.material
    packed = np.asarray(material.metallicRoughnessTexture.convert("RGB"))
    assert np.abs(packed[..., 1] - rough).max() <= 1 and np.abs(packed[..., 2] - metal).max() <= 1
    assert material.normalTexture is not None


@pytest.mark.parametrize("fmt", ["obj", "obj-mtl"])
def test_without_a_texture_the_vertices_carry_the_color(tmp_path, fmt):
    path = export(tmp_path, {"fmt": fmt, "save_texture": False, "save_uv": False})
    rows = np.array([line.split()[1:] for line in path.read_text().splitlines() if line.startswith("v ")], dtype=float)
    assert np.abs(rows[:, 3:] - color_at(rows[:, :3])).max() < 1e-4
    assert not list(path.parent.glob("texture*")) and "vt " not in path.read_text()
    assert load(path).is_watertight


def test_glb_without_a_texture(tmp_path):
    mesh = load(export(tmp_path, {"fmt": "glb", "save_texture": False, "save_uv": False}))
    linear = np.asarray(mesh.visual.vertex_attributes["color"])[:, :3] / 255
    display = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(display - color_at(mesh.vertices)).mean() < 0.005


def test_a_material_without_albedo_gives_a_plain_mesh_and_a_warning(tmp_path, caplog):
    for config in ({}, {"save_texture": False, "save_uv": False}):
        path = export(tmp_path, config, material=BaseMaterial({}))
        assert "BaseMaterial exports no albedo" in caplog.text
        caplog.clear()
    assert load(path).is_watertight
    assert not list(path.parent.glob("texture*"))


def test_outliers_go_as_the_geometry_is_configured(tmp_path):
    class WithCrumb(Shape):
        def forward_field(self, points):
            crumb = (points - points.new_tensor([-0.8, -0.8, -0.8])).norm(dim=-1, keepdim=True) - 0.1
            return torch.minimum(super().forward_field(points)[0], crumb), None

    plain = {"fmt": "obj", "save_uv": False}
    def exported(**settings):
        geometry = WithCrumb({"isosurface_resolution": 20, **settings})
        return load(export(tmp_path, plain, geometry=geometry)).bounds

    assert np.allclose(exported(isosurface_outlier_n_faces_threshold=0.2), BOX, atol=0.03)
    assert np.allclose(exported(isosurface_remove_outliers=False)[0], -0.9, atol=0.03)
    with pytest.raises(UserError, match="isosurface_outlier_n_faces_threshold"):
        exported(isosurface_outlier_n_faces_threshold=10**6)


# ---- the flow, and mistakes ----


def test_exports_repeat_byte_for_byte(tmp_path):
    first, second = (export(tmp_path / name, {"fmt": "glb"}).read_bytes() for name in "ab")
    assert first == second


def test_gradients_do_not_change_the_result(tmp_path):
    class Learned(Shape):
        def configure(self):
            super().configure()
            self.shift = torch.nn.Parameter(torch.zeros(()))

        def forward_field(self, points):
            return super().forward_field(points)[0] + self.shift, None

    plain = {"fmt": "obj", "save_uv": False}
    learned = export(tmp_path / "a", plain, geometry=Learned({}))
    assert learned.read_bytes() == export(tmp_path / "b", plain).read_bytes()


@pytest.mark.parametrize("fmt", ["obj-mtl", "glb"])
def test_a_failed_write_leaves_the_old_files(tmp_path, monkeypatch, fmt):
    path = export(tmp_path, {"fmt": fmt})
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        export(tmp_path, {"fmt": fmt}, geometry=Shape({"grow": 0.05}))
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before


@register("export-test-part")
class Part(BaseModule):
    def configure(self, **parts):
        pass


@register("export-test-system")
class System(BaseLift3DSystem):
    def test_step(self, batch, batch_idx):
        pass


YAML = """
name: shape
tag: run
use_timestamp: false
data_type: toy-data
system_type: export-test-system
system:
  geometry_type: export-test-geometry
  material_type: no-material
  background_type: solid-color-background
  renderer_type: export-test-part
  exporter: {texture_size: 64}
trainer: {max_steps: 1, enable_progress_bar: false}
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    load_extensions(Path(__file__).parents[2] / "toy_custom")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "shape.yaml").write_text(YAML)
    return tmp_path


def command(*overrides):
    return launch.main(["--config", "shape.yaml", "--export", *overrides])


@pytest.mark.parametrize("fmt, name", [("obj-mtl", "model.obj"), ("glb", "model.glb")])
def test_the_command_line_exports(workspace, fmt, name):
    assert not command("system.exporter_type=mesh-exporter", f"system.exporter.fmt={fmt}")
    mesh = load(workspace / "outputs/shape/run/save/it0-export" / name)
    assert np.allclose(mesh.bounds, BOX, atol=0.05) and picture(mesh).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "override, words",
    [
        ("system.geometry.isosurface_threshold=-5", ["no surface", "isosurface_threshold is -5", "field lies between"]),
        ("system.exporter.fmt=gltf", ["exporter.fmt", "obj-mtl, obj, glb"]),
        ("system.exporter.texture_format=gif", ["texture_format", "png"]),
        ("system.exporter.save_uv=false", ["save_uv=true", "save_texture=false"]),
        ("system.exporter.texture_size=0", ["texture_size"]),
        ("system.exporter.save_name=", ["save_name"]),
        ("system.exporter.xatlas_pack_options.pading=3", ["xatlas_pack_options.pading", "padding"]),
        ("system.exporter.textur_size=3", ["textur_size", "texture_size"]),
    ],
)
def test_mistakes_end_with_one_message(workspace, capsys, override, words):
    assert command(override) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and all(word in message for word in words), message


def test_a_geometry_without_a_surface_is_told_what_to_do():
    with pytest.raises(ConfigError, match=r"BaseExplicitGeometry has no isosurface.*exporter_type.*dummy-exporter"):
        exporter(geometry=BaseExplicitGeometry({}))


def test_the_config_has_upstreams_keys_and_defaults():
    fields = {
        "save_video": False,
        "fmt": "obj-mtl",
        "save_name": "model",
        "save_normal": False,
        "save_uv": True,
        "save_texture": True,
        "texture_size": 1024,
        "texture_format": "jpg",
        "xatlas_chart_options": {},
        "xatlas_pack_options": {},
        "context_type": "gl",
    }
    parts = {"geometry": Shape({}), "material": None, "background": None}
    made = find("mesh-exporter")({}, **parts)
    assert dict(made.cfg) == fields and isinstance(made, Exporter)
