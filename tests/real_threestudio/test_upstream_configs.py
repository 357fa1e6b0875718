"""threestudio's own configs on our core: they run, or are told what is not covered. As docs/upstream-configs.md says.

Runs only where THREESTUDIO_CHECKOUT names a checkout of threestudio; only its configs/ are read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import imageio.v3 as imageio
import pytest
import torch
import trimesh
from omegaconf import OmegaConf

import launch
from threestudio.utils.config import merge_config, missing_values_error

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path(os.environ.get("THREESTUDIO_CHECKOUT") or "absent", "configs")
FILES = sorted(CONFIGS.rglob("*.yaml")) or [Path("absent")]
ROW = re.compile(r"^\| (`.+`) \| (.+) \|$", re.MULTILINE)
STEPS = 3

pytestmark = pytest.mark.skipif(not CONFIGS.is_dir(), reason=f"THREESTUDIO_CHECKOUT names no checkout: no {CONFIGS}")


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix() if path.is_relative_to(CONFIGS) else path.name


def documented() -> dict[str, str]:
    """Config -> what the page says about it."""
    rows = ROW.findall((ROOT / "docs" / "upstream-configs.md").read_text(encoding="utf-8"))
    return {name: says for names, says in rows for name in re.findall(r"`([^`]+)`", names)}


def overrides(path: Path, outputs: Path) -> list[str]:
    """The embedded teacher, a prompt and small sizes; only keys that the config has, or that all of them take."""
    teacher = ROOT / "load" / "embedded-teacher"
    given = [
        f"exp_root_dir={outputs}", "name=run", "tag=small", "use_timestamp=false",
        "data.batch_size=1", "data.height=32", "data.width=32", "data.eval_height=32", "data.eval_width=32",
        "data.resolution_milestones=[]", "data.n_val_views=1", "data.n_test_views=2",
        f"system.prompt_processor.pretrained_model_name_or_path={teacher}", "system.prompt_processor.spawn=false",
        f"system.guidance.pretrained_model_name_or_path={teacher}",
        "system.prompt_processor.prompt=a red striped mug", "system.geometry.isosurface_resolution=16",
        "system.geometry.isosurface_threshold=auto", "system.exporter.texture_size=32",
        f"checkpoint.every_n_train_steps={STEPS}", "checkpoint.save_last=true",  # those for gradio save none
        f"trainer.max_steps={STEPS}", "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    if_there = [
        f"system.guidance.pretrained_model_name_or_path_lora={teacher}",
        "system.geometry.pos_encoding_config.log2_hashmap_size=10",
        "system.renderer.num_samples_per_ray=16", "system.renderer.num_samples_per_ray_importance=16",
        "system.renderer.num_samples_per_ray_proposal=16", "system.renderer.base_renderer.num_samples_per_ray=16",
        "system.renderer.patch_size=16",
    ]  # fmt: skip
    config = OmegaConf.load(path)
    return given + [o for o in if_there if OmegaConf.select(config, o.split("=")[0]) is not None]


def train(path: Path, outputs: Path, *more: str) -> int:
    return launch.main(["--config", str(path), "--train", *overrides(path, outputs), *more])


def check_run(folder: Path) -> None:
    """Trained, finite, looked at from both test views, and exported from its checkpoint."""
    last = folder / "ckpts" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == STEPS
    tensors = [value for value in saved["state_dict"].values() if isinstance(value, torch.Tensor)]
    assert tensors and all(value.isfinite().all() for value in tensors)
    assert len(list((folder / "save" / f"it{STEPS}-test").glob("*.png"))) == 2
    assert imageio.imread(folder / "save" / f"it{STEPS}-test.mp4").shape[0] == 2
    resume = ["--config", str(folder / "configs" / "parsed.yaml"), "--export", f"resume={last}"]
    assert launch.main([*resume, "system.exporter.save_video=false"]) == 0
    assert len(trimesh.load_mesh(folder / "save" / f"it{STEPS}-export" / "model.obj").faces) > 0


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_page_speaks_of_every_config():
    assert set(documented()) == {name_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_it_runs_or_says_what_is_not_covered(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    says = documented()[name_of(path)]
    if says == "runs":
        assert train(path, tmp_path) == 0
        check_run(tmp_path / "run" / "small")
        return
    assert train(path, tmp_path) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    absent = re.findall(r"`([^`]+)`", says)
    assert absent and all(name in message for name in absent), message
    if "option" in says:  # one that can be switched off
        assert f"{absent[0]} is not covered" in message and "Set it to false" in message
        assert train(path, tmp_path, f"system.guidance.{absent[0]}=false") == 0
        check_run(tmp_path / "run" / "small")
    elif "no run" not in says:
        named = re.search(r"not covered here: (.*)\.$", message, re.MULTILINE)[1]
        assert [part.split(": ")[1] for part in named.split(", ")] == absent
        assert "Covered as " in message


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_missing_is_asked_for_only_where_it_helps(path: Path, capsys: pytest.CaptureFixture):
    """Without a prompt: a config that is covered asks for it, another says what is not covered."""
    says = documented()[name_of(path)]
    if missing_values_error(merge_config(path)) is None:
        return
    assert launch.main(["--config", str(path), "--train"]) == 2
    asked = "not set" in capsys.readouterr().err
    assert asked == (says == "runs" or "option" in says)
