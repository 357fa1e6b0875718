"""A radiance field that learned a known shape, exported, read back and compared with its volume rendering."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import trimesh
from omegaconf import OmegaConf
from PIL import Image

from threestudio import find
from threestudio.utils.saving import SaverMixin

pytest.importorskip("xatlas")

ROOT = Path(__file__).resolve().parents[2]
BALLS = torch.tensor([[0.0, 0.0, -0.1, 0.35], [0.4, 0.1, 0.0, 0.2], [0.0, -0.2, 0.4, 0.2]])
"""Center, radius. No symmetry, so that a wrong axis or sign shows from some side."""
CONFIG = {
    "tag": "balls",
    "data_type": "random-camera-datamodule",
    "data": {"eval_camera_distance": 2.3, "eval_fovy_deg": 40.0, "eval_elevation_deg": 20.0},
    "system": {
        "geometry_type": "implicit-volume",
        "geometry": {
            "normal_type": None,
            "isosurface_threshold": 8.0,
            "isosurface_resolution": 32,
            "pos_encoding_config": {
                "otype": "HashGrid",
                "n_levels": 4,
                "n_features_per_level": 2,
                "log2_hashmap_size": 14,
                "base_resolution": 8,
                "per_level_scale": 1.5,
            },
        },
        "material_type": "no-material",
        "material": {"n_output_dims": 3, "color_activation": "sigmoid"},
        "background_type": "solid-color-background",
        "background": {"color": [0.5, 0.5, 0.5]},
        "renderer_type": "nerf-volume-renderer",
        "renderer": {"num_samples_per_ray": 96},
        "prompt_processor": {"prompt": "balls"},
    },
}


def load_benchmark():
    spec = importlib.util.spec_from_file_location("mesh_silhouette", ROOT / "benchmarks" / "mesh_silhouette.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks its annotations up there
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()


def train(geometry, steps=200):
    """Density 40 in the balls and 0 around them, and a color that changes with the place."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(geometry.parameters(), lr=0.02)
    for _ in range(steps):
        points = torch.rand(4096, 3, generator=generator) * 2 - 1
        inside = ((points[:, None] - BALLS[:, :3]).norm(dim=-1) < BALLS[:, 3]).any(-1, keepdim=True)
        out = geometry(points)
        loss = (out["density"] - 40.0 * inside).square().mean() / 100 + (out["features"] - 3 * points).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """A trial folder as launch.py leaves it, with the exported mesh's path."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trial")
    system = CONFIG["system"]
    parts = {name: find(system[f"{name}_type"])(system[name]) for name in ("geometry", "material", "background")}
    train(parts["geometry"])
    renderer = find(system["renderer_type"])(system["renderer"], **parts)
    for step in range(0, 96, 16):  # marks the occupied cells
        renderer.do_update_step(0, step)
    state = {f"{n}.{k}": v for n, p in {**parts, "renderer": renderer}.items() for k, v in p.state_dict().items()}
    for name in ("configs", "ckpts"):
        (folder / name).mkdir()
    OmegaConf.save(OmegaConf.create(CONFIG), folder / "configs" / "parsed.yaml")
    torch.save({"state_dict": state, "epoch": 0, "global_step": 1}, folder / "ckpts" / "last.ckpt")
    saver = SaverMixin()
    saver.set_save_dir(str(folder / "save"))
    (output,) = find("mesh-exporter")({"texture_size": 256}, **parts)()
    saver.save_obj(f"it1-export/{output.save_name}", **output.params)
    return folder


@pytest.fixture(scope="module")
def views(trial):
    return benchmark.render_views(trial, 96)


@pytest.fixture
def mesh(trial):
    return trimesh.load(trial / "save" / "it1-export" / "model.obj", process=False)


def test_the_exported_mesh_looks_like_the_field(mesh, views):
    numbers, picture = benchmark.compare(mesh, views)
    assert numbers["has_uv"] and numbers["texture"] == [256, 256] and numbers["watertight"] and numbers["faces"] > 1000
    assert len(numbers["iou"]) == 8 and numbers["iou_min"] >= 0.9
    field, drawn = picture[:96], picture[96:]
    object_pixels = (drawn - 0.5).abs().amax(-1) > 0.02
    assert (field - drawn)[object_pixels].abs().mean() < 0.06


@pytest.mark.parametrize("wrong", ["mirrored", "y up", "too large"])
def test_another_shape_is_noticed(mesh, views, wrong):
    change = {"mirrored": [1, -1, 1], "y up": [1, 1, 1], "too large": [1.15] * 3}[wrong]
    mesh.vertices = (mesh.vertices[:, [0, 2, 1]] if wrong == "y up" else mesh.vertices) * change
    assert benchmark.compare(mesh, views)[0]["iou_mean"] < 0.9


def test_a_texture_upside_down_is_noticed(mesh, views):
    right = benchmark.compare(mesh, views)[1]
    mesh.visual.material.image = mesh.visual.material.image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    wrong = benchmark.compare(mesh, views)[1]
    error = [(picture[:96] - picture[96:]).abs().mean() for picture in (right, wrong)]
    assert error[1] > 2 * error[0]


def test_two_empty_pictures_do_not_agree():
    empty, full = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    assert benchmark.intersection_over_union(empty, empty) == 0.0
    assert benchmark.intersection_over_union(full, full) == 1.0
