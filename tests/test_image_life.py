"""A run of text to 2D by the command line: files, resumption, losses, mistakes. Miniature teacher, a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

import launch
import threestudio
from tests.helpers.corrector import corrector_for
from tests.helpers import small_run
from tests.helpers.tiny_teacher import make_tiny_teacher

CONFIGS = small_run.CONFIG.parent
CONFIG = CONFIGS / "vdm-2d.yaml"
STEPS, EVERY = 6, 3
PROMPTS = "system.prompts=[a red striped mug, a blue ball, a green cube]"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def overrides(teacher: Path, outputs: Path) -> list[str]:
    return [
        f"exp_root_dir={outputs}", "name=run", "tag=small", "use_timestamp=false", "seed=3",
        f"system.prompt_processor.pretrained_model_name_or_path={teacher}", "system.prompt_processor.spawn=false",
        "trainer.log_every_n_steps=2", f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={EVERY}", f"checkpoint.every_n_train_steps={EVERY}",
    ]  # fmt: skip


def run(teacher: Path, outputs: Path, *arguments: str, config: Path = CONFIG) -> int:
    given = [*overrides(teacher, outputs), *arguments]
    return launch.main(["--config", str(config), "--train", "--preset", "paper", *given])


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: three prompts, two particles, four of the six pictures in each step."""
    outputs = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    assert run(teacher, outputs, PROMPTS, "system.geometry.particles=2", "data.batch_size=4") == 0
    return outputs / "run" / "small"


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "save" / f"it{STEPS}-pictures").iterdir()}


def test_a_run_leaves_pictures_previews_video_and_a_card(whole: Path):
    save = whole / "save"
    names = [
        f"0{n}-{p}-{k}.png" for n, p in enumerate(["a_red_striped_mug", "a_blue_ball", "a_green_cube"]) for k in (0, 1)
    ]
    assert sorted(pictures(whole)) == names
    images = [imageio.imread(save / f"it{STEPS}-pictures" / name) for name in names]
    assert all(image.shape == (32, 32, 3) for image in images)
    assert len({image.tobytes() for image in images}) == 6
    sheet = imageio.imread(save / "pictures.png")
    assert sheet.shape == (104, 68, 3) and np.array_equal(sheet[36:68, 36:], images[3])
    previews = [imageio.imread(save / f"it{step}.png") for step in (0, EVERY, STEPS)]
    assert all(preview.shape == sheet.shape for preview in previews)
    assert (previews[0] != previews[1]).any() and np.array_equal(previews[2], sheet)
    assert imageio.imread(save / "progress.mp4").shape[:3] == (3, 104, 68)
    card = json.loads((save / "model_card.json").read_text(encoding="utf-8"))
    assert card["prompts"] == ["a red striped mug", "a blue ball", "a green cube"] and card["pictures"] == 6
    assert card["status"] == "trained" and card["steps"] == STEPS
    assert (card["unet_forwards"], card["unet_backwards"]) == (STEPS * 4 * 2, 0)  # 4 pictures a step, a guided pair for each
    assert card["training_seconds"] > 0 and card["peak_memory_bytes"] > 2**27
    assert {"pictures.png", "progress.mp4", f"it{STEPS}-pictures/{names[0]}"} <= set(card["files"])
    assert (save / "model_card.md").read_text(encoding="utf-8").startswith("# 3 prompts: a red striped mug; ")
    assert "train/loss" in next((whole / "csv_logs").rglob("metrics.csv")).read_text()


class PowerCut(Exception):
    """Nothing that anybody catches."""


def test_resumed_equals_uninterrupted(whole, teacher, tmp_path, monkeypatch):
    system = threestudio.find("dreammapping-image-system")
    train = system.training_step

    def interrupted(self, batch, batch_idx):
        if self.true_global_step == EVERY + 1:
            raise PowerCut
        return train(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(system, "training_step", interrupted)
        run(teacher, tmp_path, PROMPTS, "system.geometry.particles=2", "data.batch_size=4")
    folder = tmp_path / "run" / "small"
    config, last = folder / "configs" / "parsed.yaml", folder / "ckpts" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == EVERY
    assert launch.main(["--config", str(config), "--train", f"resume={last}"]) == 0
    assert small_run.differences(whole / "ckpts" / "last.ckpt", last) == []
    assert pictures(folder) == pictures(whole)
    assert (folder / "save" / "progress.mp4").read_bytes() == (whole / "save" / "progress.mp4").read_bytes()
    cards = [json.loads((each / "save" / "model_card.json").read_text(encoding="utf-8")) for each in (folder, whole)]
    assert cards[0]["unet_forwards"] == cards[1]["unet_forwards"]


@pytest.mark.parametrize("mode", ["--test", "--export"])
def test_pictures_from_a_checkpoint(whole: Path, tmp_path: Path, mode: str):
    given = [f"resume={whole / 'ckpts' / 'last.ckpt'}", f"exp_root_dir={tmp_path}"]
    assert launch.main(["--config", str(whole / "configs" / "parsed.yaml"), mode, *given]) == 0
    folder = tmp_path / "run" / "small"
    assert pictures(folder) == pictures(whole)
    assert (folder / "save" / "pictures.png").is_file() == (mode == "--test")


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*-2d.yaml")), ids=lambda path: path.name)
@pytest.mark.parametrize("batch", ["null", "3"])
def test_every_loss_trains_one_picture(teacher, tmp_path, config, batch):
    """A batch of one: VDM's batch statistics exist, and a loss that wants a camera gets one."""
    needed = corrector_for(teacher, tmp_path / "corrector") if config.name.startswith("lmc-sds") else []
    assert run(teacher, tmp_path, f"data.batch_size={batch}", "trainer.max_steps=2", *needed, config=config) == 0
    folder = tmp_path / "run" / "small"
    assert [path.name for path in (folder / "save" / "it2-pictures").iterdir()] == ["00-a_red_striped_mug.png"]
    state = torch.load(folder / "ckpts" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.isfinite(state["geometry.pictures.0"]).all() and "geometry.pictures.1" not in state


def test_vsd_gets_the_camera_it_asks_for(teacher, tmp_path):
    given = ["system.guidance.loss.camera_condition=extrinsics", "trainer.max_steps=2", PROMPTS]
    assert run(teacher, tmp_path, *given, config=CONFIGS / "vsd-2d.yaml") == 0


def test_pixels_train_through_the_encoder(teacher, tmp_path):
    assert run(teacher, tmp_path, "system.geometry.parameterization=pixel", "trainer.max_steps=2") == 0
    state = torch.load(tmp_path / "run" / "small" / "ckpts" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["geometry.pictures.0"].shape == (3, 32, 32)


def test_a_file_of_prompts_and_a_picture_to_start_from(whole, teacher, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\n# a comment\na blue cube\n")
    start = f"system.geometry.init={{type: image, path: {whole / 'save' / 'pictures.png'}}}"
    assert run(teacher, tmp_path, f"system.prompts={prompts}", start, "trainer.max_steps=1") == 0
    assert sorted(path.name for path in (tmp_path / "run" / "small" / "save" / "it1-pictures").iterdir()) == [
        "00-a_red_ball.png", "01-a_blue_cube.png"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("system.geometry.init.type=nomal", ["nomal", "normal"]),
        ("system.geometry.init={type: image, path: absent.png}", ["absent.png"]),
        ("system.geometry.parameterization=voxel", ["voxel", "latent", "pixel"]),
        ("system.geometry.particles=0", ["particles"]),
        ("system.geometry.size=[8]", ["size", "height, width"]),
        ("system.prompts=absent.txt", ["absent.txt"]),
        ("system.prompts=[]", ["system.prompts"]),
        ("system.prompt_processor.prompt=", ["prompt"]),
        ("system.prompt_processor.use_perp_neg=true", ["use_perp_neg"]),
        ("data.batch_size=0", ["batch_size"]),
        ("data.n_test_views=3", ["n_test_views"]),
        ("system.loss.lambda_depth_tv=1.0", ["lambda_depth_tv"]),
    ],
)
def test_mistakes_are_one_message(teacher, tmp_path, capsys, override, names):
    assert run(teacher, tmp_path, override) == 2
    text = capsys.readouterr().err
    assert text.count("error: ") == 1 and "Traceback" not in text
    assert all(name in text[text.index("error: ") :] for name in names), text


def test_the_system_wants_pictures(teacher, tmp_path, capsys):
    wrong = ["system_type=dreammapping-image-system", "system.geometry.init.type=sphere"]
    assert run(teacher, tmp_path, *wrong, config=CONFIGS / "vdm-gs.yaml") == 2
    assert "system.geometry_type=dreammapping-image" in capsys.readouterr().err


def test_another_number_of_prompts_cannot_go_on(whole, capsys):
    arguments = [f"resume={whole / 'ckpts' / 'last.ckpt'}", "system.prompts=[a red ball]"]
    assert launch.main(["--config", str(whole / "configs" / "parsed.yaml"), "--train", *arguments]) == 2
    assert "6 pictures" in capsys.readouterr().err
