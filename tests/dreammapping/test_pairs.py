"""Every loss trains every geometry by the shipped configs: 20 steps of the embedded teacher by launch.py on the CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import pytest
import torch
import trimesh

import launch
from tests.helpers import small_run

CONFIGS = small_run.CONFIG.parent
STEPS, HALF = 20, 10
SMALL = [
    "use_timestamp=false", "tag=small", "seed=3", "system.prompt_processor.prompt=a red striped mug",
    "data.batch_size=1", "data.height=32", "data.width=32", "data.eval_height=32", "data.eval_width=32",
    "data.n_val_views=1", "data.n_test_views=1", "trainer.enable_progress_bar=false",
    f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}",
    f"checkpoint.every_n_train_steps={HALF}", "checkpoint.save_top_k=-1",
]  # fmt: skip
GAUSSIANS = ["system.geometry.init.num_points=200", "system.geometry.densification.refine_start_iter=1000"]  # never
FIELD = [
    "system.renderer.num_samples_per_ray=16", "system.geometry.isosurface_resolution=16",
    "system.geometry.isosurface_threshold=auto",  # after 20 steps nothing is as dense as a finished asset
    "system.exporter.texture_size=32",
]  # fmt: skip


def field_overrides(loss: str) -> list[str]:
    """What the head of vdm-nerf.yaml says to add for this loss."""
    text = (CONFIGS / "vdm-nerf.yaml").read_text(encoding="utf-8")
    return [] if loss == "vdm" else re.search(rf"^#   {loss.upper()} +(.*)$", text, re.MULTILINE)[1].split()


PAIRS = {(loss, "gs"): (f"{loss}-gs.yaml", GAUSSIANS) for loss in ("vdm", "sds", "vsd")}
PAIRS |= {(loss, "nerf"): ("vdm-nerf.yaml", [*FIELD, *field_overrides(loss)]) for loss in ("vdm", "sds", "vsd")}


# Beginnings of the names of all trained parameters in a checkpoint.
TRAINED = {
    "gs": ("geometry.gaussians.params.",),
    "nerf": ("geometry.encoding.", "geometry.density_network.", "geometry.feature_network.", "background.network."),
    "vdm": ("guidance.loss.operator.",),
    "sds": (),
    "vsd": ("guidance.loss.lora.",),
}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(("loss", "geometry"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_it_trains_and_exports(loss: str, geometry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, overrides = PAIRS[loss, geometry]
    monkeypatch.chdir(small_run.ROOT)  # where load/ is
    arguments = ["--config", str(CONFIGS / config), "--train", "--preset", "embedded", *SMALL, *overrides]
    assert launch.main([*arguments, f"exp_root_dir={tmp_path}", "name=run"]) == 0

    folder = tmp_path / "run" / "small"
    card = json.loads((folder / "save" / "model_card.json").read_text(encoding="utf-8"))
    assert (card["status"], card["steps"], card["preset"]) == ("trained", STEPS, "embedded")
    assert card["system"]["guidance"]["loss"]["type"] == loss
    assert card["teacher"]["name"] == "load/embedded-teacher"
    assert imageio.imread(folder / "save" / f"it{STEPS}-test" / "0.png").shape[0] == 32
    everything_moved(folder, (*TRAINED[geometry], *TRAINED[loss]))
    if loss == "vsd":
        the_lora_learned(folder)
    it_was_exported(folder / "save" / f"it{STEPS}-export", geometry)


def everything_moved(folder: Path, prefixes: tuple[str, ...]) -> None:
    """Between the two checkpoints, all parameters with these beginnings of names, and all are finite."""
    earlier, later = (saved_state(folder, step) for step in (HALF, STEPS))
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in later), prefix
    trained = [name for name in later if name.startswith(prefixes) and not name.endswith(STATISTICS)]
    trained = [name for name in trained if later[name].numel() > 0]  # no colors that depend on the view
    assert all(later[name].isfinite().all() for name in trained)
    assert [name for name in trained if torch.equal(earlier[name], later[name])] == [], "these stood still"


def the_lora_learned(folder: Path) -> None:
    saved = saved_state(folder, STEPS)
    lora = {name: value for name, value in saved.items() if name.startswith("guidance.loss.lora")}
    assert any("lora_B" in name and value.abs().sum() > 0 for name, value in lora.items()), "it starts at zero"
    optimizer = saved["guidance._extra_state"]["optimizer"]
    assert len(optimizer["state"]) == len(lora) and float(optimizer["state"][0]["step"]) == STEPS
    assert not any("unet" in name for name in saved), "the frozen teacher is no part of the checkpoint"


def it_was_exported(folder: Path, geometry: str) -> None:
    from dreammapping.gaussians import load_gaussians

    if geometry == "gs":
        assert len(load_gaussians(folder / "gaussians.ply").get_means) == 200
        assert {"gaussians.splat", "gaussians.compressed.ply"} < {file.name for file in folder.iterdir()}
    else:
        assert len(trimesh.load_mesh(folder / "model.obj").faces) > 100


def saved_state(folder: Path, step: int) -> dict[str, Any]:
    path = next((folder / "ckpts").glob(f"*step={step}.ckpt"))
    return torch.load(path, weights_only=True)["state_dict"]
