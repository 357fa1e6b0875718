"""The Shap-E in load/: it is small, it loads, and what it makes is what was asked for."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dreammapping.evaluation.judge import Judge
from dreammapping.gaussians import GaussianModel
from dreammapping.initialization import InitSettings, initial_points
from dreammapping.rasterization import rasterize
from dreammapping.renderer.cameras import intrinsics, world_to_camera

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "load" / "embedded-shap-e"


def start(prompt: str, cache: Path, **changes) -> InitSettings:
    shap_e = {"model": str(MODEL), "steps": 6, "guidance_scale": 3.0, "grid_size": 48, "seed": 0, "cache_dir": str(cache), **changes}
    return InitSettings(type="shap-e", prompt=prompt, num_points=8_000, radius=0.5, shap_e=shap_e)


def front_left(cloud) -> torch.Tensor:
    """The cloud as opaque dots, seen from azimuth 45 and elevation 0: [1, 128, 128, 3]."""
    c2w = torch.eye(4)[None].clone()
    diagonal = 0.5**0.5
    c2w[0, :3] = torch.tensor([[-diagonal, 0, diagonal, 2 * diagonal], [diagonal, 0, diagonal, 2 * diagonal], [0, 1, 0, 0]])
    Ks, dots = intrinsics(torch.tensor([0.7]), 128, 128), GaussianModel.from_points(cloud, opacity=0.99).rasterizer_inputs()
    with torch.no_grad():
        return rasterize(**dots, viewmats=world_to_camera(c2w), Ks=Ks, width=128, height=128, background=torch.ones(1, 3)).rgb.clamp(0, 1)


def test_it_is_small_and_names_no_folder_of_the_machine_that_made_it():
    files = [file for file in MODEL.rglob("*") if file.is_file()]
    assert 1e6 < sum(file.stat().st_size for file in files) < 10e6
    for config in MODEL.rglob("config.json"):
        assert "_name_or_path" not in json.loads(config.read_text())


@pytest.mark.parametrize(("prompt", "family", "color"), [("a red mug", "mug", "red"), ("a yellow duck", "duck", "yellow")])
def test_the_judge_sees_what_was_asked_for_before_the_first_step(prompt, family, color, tmp_path):
    cloud = initial_points(start(prompt, tmp_path), torch.Generator().manual_seed(0), 10_000)
    assert cloud.count == 8_000 and cloud.points.norm(dim=-1).max() <= 0.5 + 1e-5
    judge = Judge(ROOT / "load" / "embedded-judge")
    answers = judge.ask(front_left(cloud), judge.families.index(family))
    assert judge.families[answers.choices["family"][0]] == family
    assert judge.colors[answers.choices["color"][0]] == color


def test_the_embedded_preset_starts_from_it():
    from omegaconf import OmegaConf

    for name in ("dreammapping-gaussians", "dreammapping-implicit-volume"):
        overlay = OmegaConf.load(ROOT / "custom/dreammapping/configs/presets/embedded" / f"{name}.yaml")
        assert ROOT / overlay.system.geometry.init.shap_e.model == MODEL
