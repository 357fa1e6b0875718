"""A run's life: by the command line, interrupted and resumed, repeated, tested and exported from its checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
import small_run  # noqa: E402
from tiny_teacher import make_tiny_teacher  # noqa: E402

import launch  # noqa: E402
import threestudio  # noqa: E402

STEPS, EVERY = 8, 4


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in a process of its own that nobody disturbed."""
    outputs = tmp_path_factory.mktemp("whole")
    done = small_run.launch("--train", small_run.CONFIG, *small_run.overrides(teacher, outputs, STEPS, EVERY))
    assert done.returncode == 0, done.stderr[-3000:]
    return outputs / "run" / "small"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the run in its own process: sums depend on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_here(mode: str, config: Path, *arguments: str) -> int:
    return launch.main(["--config", str(config), mode, "--preset", "paper", *arguments])


def splats(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "save" / f"it{STEPS}-export").iterdir())}


def test_a_run_leaves_pictures_video_splats_and_a_card(whole: Path):
    save = whole / "save"
    frames = sorted((save / f"it{STEPS}-test").glob("*.png"))
    assert len(frames) == 9 and all(imageio.imread(frame).shape == (32, 32, 3) for frame in frames)
    assert imageio.imread(save / f"it{STEPS}-test.mp4").shape[0] == 9
    assert imageio.imread(save / "contact_sheet.png").shape == (68, 140, 3)
    assert imageio.imread(save / f"it{EVERY}-0.png").shape == (32, 96, 3)  # color, opacity, depth
    assert set(splats(whole)) == {"gaussians.ply", "gaussians.compressed.ply", "gaussians.splat"}
    assert (whole / "configs" / "parsed.yaml").is_file() and (whole / "cmd.txt").is_file()


def test_the_splat_file_holds_the_trained_gaussians(whole: Path):
    from dreammapping.gaussians import load_gaussians

    trained = torch.load(whole / "ckpts" / "last.ckpt", weights_only=True)["state_dict"]
    means = load_gaussians(whole / "save" / f"it{STEPS}-export" / "gaussians.ply").get_means
    # The exporter may reorder them.
    assert torch.equal(means.sort(dim=0).values, trained["geometry.gaussians.params.means"].sort(dim=0).values)
    assert 60 < len(means) <= 150


def test_the_card_tells_what_is_needed_to_repeat_the_run(whole: Path, teacher: Path):
    card = json.loads((whole / "save" / "model_card.json").read_text(encoding="utf-8"))
    assert card["prompt"] == "a red striped mug" and card["seed"] == 3 and card["preset"] == "paper"
    assert card["status"] == "trained" and card["steps"] == card["max_steps"] == STEPS
    assert card["teacher"]["name"] == str(teacher) and len(card["teacher"]["fingerprint"]) == 64
    assert card["training_seconds"] > 0 and card["peak_memory_bytes"] > 2**27
    assert card["system"]["guidance"]["loss"]["type"] == "vdm" and card["versions"]["torch"] == torch.__version__
    assert "contact_sheet.png" in card["files"] and f"it{STEPS}-export/gaussians.ply" in card["files"]
    text = (whole / "save" / "model_card.md").read_text(encoding="utf-8")
    assert text.startswith("# a red striped mug\n") and card["teacher"]["fingerprint"] in text


def test_the_same_seed_gives_the_same_files(whole: Path, teacher: Path, tmp_path: Path):
    assert run_here("--train", small_run.CONFIG, *small_run.overrides(teacher, tmp_path, STEPS, EVERY)) == 0
    again = tmp_path / "run" / "small"
    assert small_run.differences(whole / "ckpts" / "last.ckpt", again / "ckpts" / "last.ckpt") == []
    assert splats(again) == splats(whole)
    for name in ("contact_sheet.png", f"it{STEPS}-test/3.png"):
        assert (again / "save" / name).read_bytes() == (whole / "save" / name).read_bytes()


def test_another_seed_gives_another_asset(whole: Path, teacher: Path, tmp_path: Path):
    arguments = small_run.overrides(teacher, tmp_path, STEPS, EVERY)
    assert run_here("--train", small_run.CONFIG, *arguments, "seed=4", "data.n_test_views=2") == 0
    assert splats(tmp_path / "run" / "small")["gaussians.ply"] != splats(whole)["gaussians.ply"]


class PowerCut(Exception):
    """Nothing that anybody catches."""


@pytest.mark.parametrize("stop_at", [4, 6, 7])
def test_resumed_equals_uninterrupted(whole, teacher, tmp_path, monkeypatch, stop_at):
    """Interrupted at a step; the last checkpoint is from step 4. Gaussians were added before and are added after it."""
    system = threestudio.find("dreammapping-system")
    train = system.training_step

    def interrupted(self, batch, batch_idx):
        if self.true_global_step == stop_at:
            raise PowerCut
        return train(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(system, "training_step", interrupted)
        run_here("--train", small_run.CONFIG, *small_run.overrides(teacher, tmp_path, STEPS, EVERY))
    folder = tmp_path / "run" / "small"
    last = folder / "ckpts" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == EVERY
    assert launch.main(["--config", str(folder / "configs" / "parsed.yaml"), "--train", f"resume={last}"]) == 0
    assert small_run.differences(whole / "ckpts" / "last.ckpt", last) == []
    assert splats(folder) == splats(whole)
    assert (folder / "save" / "contact_sheet.png").read_bytes() == (whole / "save" / "contact_sheet.png").read_bytes()


def test_test_and_export_from_a_checkpoint(whole: Path, tmp_path: Path):
    config, last = whole / "configs" / "parsed.yaml", whole / "ckpts" / "last.ckpt"
    elsewhere = [f"resume={last}", f"exp_root_dir={tmp_path}"]
    assert launch.main(["--config", str(config), "--test", *elsewhere]) == 0
    assert launch.main(["--config", str(config), "--export", *elsewhere]) == 0
    folder = tmp_path / "run" / "small"
    assert splats(folder) == splats(whole)
    first, second = (imageio.imread(f / "save" / f"it{STEPS}-test" / "3.png") for f in (folder, whole))
    assert np.array_equal(first, second)


def test_a_run_killed_after_its_last_step_still_exports(whole: Path, teacher: Path, tmp_path: Path):
    config, last = whole / "configs" / "parsed.yaml", whole / "ckpts" / "last.ckpt"
    assert launch.main(["--config", str(config), "--train", f"resume={last}", f"exp_root_dir={tmp_path}"]) == 0
    assert splats(tmp_path / "run" / "small") == splats(whole)


def test_a_learned_background_joins_the_one_optimizer(teacher: Path, tmp_path: Path):
    """Its groups stand beside the geometry's, train, and come back with the checkpoint."""
    learned = [
        "system.background_type=neural-environment-map-background",
        "system.optimizer={name: Adam, args: {betas: [0.9, 0.99], eps: 1e-15}, params: {background: {lr: 0.01}}}",
        "data.n_test_views=1",
    ]
    arguments = [*small_run.overrides(teacher, tmp_path, STEPS, EVERY), *learned]
    assert run_here("--train", small_run.CONFIG, *arguments) == 0
    checkpoint = torch.load(tmp_path / "run" / "small" / "ckpts" / "last.ckpt", weights_only=True)
    (optimizer,) = checkpoint["optimizer_states"]
    groups = {group["name"]: group for group in optimizer["param_groups"]}
    assert {"background", "gaussians.means"} <= groups.keys() and groups["background"]["betas"] == (0.9, 0.99)
    steps = [int(optimizer["state"][index]["step"]) for index in groups["background"]["params"]]
    assert steps == [STEPS] * len(steps) != []
