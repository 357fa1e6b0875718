"""Does the mesh that a trained radiance field exports look like the field?

    python benchmarks/mesh_silhouette.py outputs/nerf/*/*/* --output outputs/benchmarks/mesh

Each argument is a trial folder with configs/parsed.yaml and ckpts/last.ckpt. It is exported through launch.py as a user would do it,
opened in trimesh, and drawn from eight sides beside the volume rendering of the same cameras. An intersection over union compares the
mesh's silhouette with the pixels whose opacity is above one half. One JSON file and a picture a trial are written; exports that are there
already are kept. Arguments behind `--` go to launch.py, such as system.geometry.isosurface_threshold=8 for a trial whose config names none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import threestudio
from threestudio.launcher import load_all_extensions
from threestudio.utils.config import load_config_file
from threestudio.utils.misc import load_module_weights, set_device
from threestudio.utils.texels import surface_points

VIEWS = 8
TARGET = 0.9
"""Mean intersection over union that a mesh should reach."""


# ---- the field ----


def load_field(trial: Path) -> tuple[Any, Any]:
    """The trial's config and its renderer with trained weights, on the CPU. No teacher is loaded."""
    config = load_config_file(trial / "configs" / "parsed.yaml")
    system, checkpoint = config.system, trial / "ckpts" / "last.ckpt"
    parts = {
        name: threestudio.find(system[f"{name}_type"])(system.get(name))
        for name in ("geometry", "material", "background")
    }
    renderer = threestudio.find(system.renderer_type)(system.renderer, **parts)
    for name, part in {**parts, "renderer": renderer}.items():
        if part.state_dict():
            state, epoch, step = load_module_weights(checkpoint, module_name=name, map_location="cpu")
            part.load_state_dict(state)
            part.do_update_step(epoch, step, on_load_weights=True)
        part.eval()
    return config, renderer


@dataclass(frozen=True)
class View:
    """One volume rendering of H x W pixels."""

    batch: dict[str, Any]  # the camera, as a data module gives it
    opacity: Tensor  # [H, W]
    image: Tensor  # [H, W, 3] in [0, 1]
    background: Tensor  # [H, W, 3], alone


@torch.no_grad()
def render_views(trial: Path, size: int) -> list[View]:
    """VIEWS pictures of size x size pixels from all around, at the elevation of the trial's evaluation."""
    config, renderer = load_field(trial)
    data = {**config.data, "n_val_views": VIEWS, "eval_height": size, "eval_width": size}
    module = threestudio.find(config.data_type)(data)
    module.setup("validate")
    views = []
    for batch in module.val_dataloader():
        out = renderer(**batch)
        views.append(View(batch, out["opacity"][0, ..., 0], out["comp_rgb"][0], out["comp_rgb_bg"][0]))
    return views


# ---- the mesh ----


def export(trial: Path, folder: Path, extra: list[str]) -> tuple[Path, float]:
    """The .obj file below `folder` and the wall-clock seconds launch.py took (0 if the file was there already)."""
    found = sorted(folder.glob("**/*-export/model.obj"))
    if found:
        return found[-1], 0.0
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "launch.py", "--config", str(trial / "configs" / "parsed.yaml"), "--export"]
    command += [f"resume={trial / 'ckpts' / 'last.ckpt'}", f"exp_root_dir={folder}", "use_timestamp=false", *extra]
    started = time.monotonic()
    with open(folder / "export.log", "w", encoding="utf-8") as log:
        code = subprocess.call(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    found = sorted(folder.glob("**/*-export/model.obj"))
    if code != 0 or not found:
        raise SystemExit(f"The export of {trial} failed with exit code {code}; see {folder / 'export.log'}")
    return found[-1], time.monotonic() - started


def describe(mesh: trimesh.Trimesh) -> dict[str, Any]:
    """What a viewer would find in the file. Seams of the texture are joined before watertightness is asked for."""
    uv, image = getattr(mesh.visual, "uv", None), getattr(getattr(mesh.visual, "material", None), "image", None)
    joined = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    joined.merge_vertices()
    return {
        "vertices": len(joined.vertices),
        "faces": len(mesh.faces),
        "parts": int(joined.body_count),
        "has_uv": uv is not None and len(uv) == len(mesh.vertices) and bool(((uv >= 0) & (uv <= 1)).all()),
        "texture": list(image.size) if image is not None else None,
        "watertight": bool(joined.is_watertight),
    }


def project(vertices: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """World points [N, 3] -> picture coordinates [N, 2], (0, 0) at the upper left and (1, 1) at the lower right, and depths [N]."""
    clip = torch.cat([vertices, torch.ones_like(vertices[:, :1])], dim=-1) @ batch["mvp_mtx"][0].T
    return clip[:, :2] / clip[:, 3:] / 2 + 0.5, clip[:, 3]


def silhouette(vertices: Tensor, faces: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Pixels [H, W] whose center lies behind a face: vertices [Nv, 3] in the world, faces [Nf, 3], a batch of one camera."""
    return surface_points(project(vertices, batch)[0], faces, batch["height"], batch["width"], margin=0.0).covered


def draw(mesh: trimesh.Trimesh, batch: Mapping[str, Any], background: Tensor) -> Tensor:
    """The textured mesh without shading over `background` [H, W, 3], in [0, 1].

    The nearest face is that with the nearest centroid, and texture coordinates are interpolated in the picture; both are right to a pixel
    for faces as small as an isosurface has.
    """
    vertices, faces = torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(np.array(mesh.faces))
    picture, depth = project(vertices, batch)
    # From far to near, as surface_points lets the last of overlapping faces win.
    faces = faces[depth[faces].mean(-1).argsort(descending=True)]
    points = surface_points(picture, faces, batch["height"], batch["width"], margin=0.0)
    uv = points.interpolate(torch.tensor(np.array(mesh.visual.uv), dtype=torch.float32), faces)
    texture = torch.tensor(np.asarray(mesh.visual.material.image.convert("RGB"))).permute(2, 0, 1).float() / 255
    at = uv * torch.tensor([2.0, -2.0]) + torch.tensor([-1.0, 1.0])  # files count v from the bottom
    colors = torch.nn.functional.grid_sample(texture[None], at[None, None], padding_mode="border", align_corners=False)
    image = background.clone()
    image[points.covered] = colors[0, :, 0].T
    return image


def intersection_over_union(first: Tensor, second: Tensor) -> float:
    """Of two masks of one shape; 0 where both are empty, since a picture of nothing shows no agreement."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0


# ---- together ----


def compare(mesh: trimesh.Trimesh, views: list[View]) -> tuple[dict[str, Any], Tensor]:
    """Numbers, and a picture [2 H, V W, 3]: the volume rendering above the mesh."""
    vertices, faces = torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(np.array(mesh.faces))
    overlaps = [intersection_over_union(silhouette(vertices, faces, view.batch), view.opacity > 0.5) for view in views]
    columns = [torch.cat([view.image, draw(mesh, view.batch, view.background)]) for view in views]
    mean = float(np.mean(overlaps))
    rounded = {
        "iou": [round(value, 4) for value in overlaps],
        "iou_min": round(min(overlaps), 4),
        "iou_mean": round(mean, 4),
    }
    return {**describe(mesh), **rounded}, torch.cat(columns, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="+", type=Path, help="trial folders")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/mesh"))
    parser.add_argument("--size", type=int, default=256, help="height and width of the compared pictures, pixels")
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    args, extra = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    set_device("cpu")
    load_all_extensions()
    results = []
    for trial in args.trials:
        config = load_config_file(trial / "configs" / "parsed.yaml")
        name, prompt = config.tag, config.system.prompt_processor.prompt
        path, seconds = export(trial.resolve(), (args.output / name).resolve(), extra)
        numbers, picture = compare(trimesh.load(path, process=False), render_views(trial, args.size))
        results.append(
            {"prompt": prompt, **numbers, "export_seconds": round(seconds, 1), "obj_bytes": path.stat().st_size}
        )
        Image.fromarray((picture.clamp(0, 1) * 255).round().byte().numpy()).save(args.output / f"{name}.png")
        missed = "" if numbers["iou_mean"] >= TARGET else "  MISSED"
        line = "faces {faces:7d}  IoU min {iou_min:.3f} mean {iou_mean:.3f}  of each view {iou}".format(**numbers)
        print(f"{prompt:28s} {line}{missed}", flush=True)
        record = {"size": args.size, "arguments": extra, "target": TARGET, "trials": results}
        (args.output / "mesh-silhouette.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
