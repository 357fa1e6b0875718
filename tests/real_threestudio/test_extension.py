"""The extension in the original threestudio. Runs only where THREESTUDIO_CHECKOUT names a checkout of it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import imageio.v3 as imageio
import pytest
from omegaconf import OmegaConf

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]
import checkout  # noqa: E402
import small_run  # noqa: E402

from tests.helpers.tiny_shap_e import make_tiny_shap_e  # noqa: E402

CONFIGS = checkout.ROOT / "custom" / "dreammapping" / "configs"
TEACHER = checkout.ROOT / "load" / "embedded-teacher"
STEPS = 20
PAGE = checkout.ROOT / "docs" / "threestudio.md"

pytestmark = pytest.mark.skipif(checkout.missing() is not None, reason=str(checkout.missing()))


@pytest.fixture(scope="module")
def threestudio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout.copy_to(tmp_path_factory.mktemp("threestudio") / "checkout")


def small(outputs: Path, config: Path, name: str) -> list[str]:
    """Overrides for few, small steps; those of keys that the config has."""
    radiance_field = [
        "data.batch_size=1", "data.height=16", "data.width=16", "data.eval_height=16", "data.eval_width=16",
        "data.n_test_views=4",  # three crash in threestudio, where torch.cross takes the wrong dimension
        "trainer.precision=32-true",
        "system.renderer.num_samples_per_ray=24", "system.geometry.pos_encoding_config.log2_hashmap_size=10",
        "system.geometry.pos_encoding_config.n_levels=6", "system.geometry.pos_encoding_config.start_level=4",
    ]  # fmt: skip
    common = small_run.overrides(TEACHER, outputs, STEPS, STEPS // 2, name)
    given = OmegaConf.load(config)
    if OmegaConf.select(given, "system.geometry_type") != "dreammapping-gaussians":
        common = [o for o in common if not o.startswith("system.geometry.")]
        common += [o for o in radiance_field if o.startswith("data.") or _has(given, o.split("=")[0])]
    return [*common, "trainer.log_every_n_steps=1"]


def _has(config: object, key: str) -> bool:
    return OmegaConf.select(config, key, throw_on_missing=False, default="absent") != "absent"


def test_every_config_loads_without_overrides(threestudio_folder: Path):
    configs = sorted(CONFIGS.glob("*.yaml"))
    paths = [f"custom/dreammapping/configs/{config.name}" for config in configs]
    output = checkout.run(threestudio_folder, HERE / "check_config.py", *paths)
    assert "IMPORT FAILED" not in output
    for config in configs:
        assert f"{OmegaConf.load(config).name}: 9 blocks parsed" in output


@pytest.fixture(scope="module")
def gaussians(threestudio_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of vdm-gs.yaml."""
    outputs, config = tmp_path_factory.mktemp("gaussians"), CONFIGS / "vdm-gs.yaml"
    checkout.train(threestudio_folder, f"custom/dreammapping/configs/{config.name}", *small(outputs, config, "gs"))
    return outputs / "gs" / "small"


def test_gaussians_train_and_leave_their_files(gaussians: Path):
    losses = checkout.losses(gaussians)
    assert {"train/loss", "train/loss_distillation", "train/loss_tv", "train/loss_scale"} <= set(losses)
    assert checkout.all_finite(losses) and len(losses["train/loss"]) == STEPS
    count = checkout.logged(gaussians, "train/gaussians")
    assert count[-1] > count[0] >= 60  # they were densified
    save = gaussians / "save"
    written = {file.name for file in (save / f"it{STEPS}-export").iterdir()}
    assert written == {"gaussians.ply", "gaussians.compressed.ply", "gaussians.splat"}
    assert imageio.imread(save / f"it{STEPS // 2}-0.png").shape == (32, 96, 3)
    assert imageio.imread(save / f"it{STEPS}-test.mp4").shape[0] == 9
    card = json.loads((save / "model_card.json").read_text(encoding="utf-8"))
    assert card["status"] == "trained" and card["steps"] == STEPS and card["preset"] is None
    assert len(card["teacher"]["fingerprint"]) == 64  # known without the core's resolver


def test_gaussians_go_on_from_a_checkpoint_and_are_exported(threestudio_folder: Path, gaussians: Path):
    again = ["--config", str(gaussians / "configs" / "parsed.yaml"), f"resume={gaussians}/ckpts/last.ckpt"]
    checkout.run(threestudio_folder, "launch.py", "--gpu", "", "--train", *again, f"trainer.max_steps={STEPS + 2}")
    assert len(checkout.logged(gaussians, "train/loss", version=1)) == 2  # only the new steps were taken
    splat = gaussians / "save" / f"it{STEPS}-export" / "gaussians.ply"
    whole = splat.read_bytes()
    splat.unlink()
    checkpoint = next((gaussians / "ckpts").glob(f"*step={STEPS}.ckpt"))
    checkout.run(threestudio_folder, "launch.py", "--gpu", "", "--export", *again[:2], f"resume={checkpoint}")
    assert splat.read_bytes() == whole


def test_shap_e_by_threestudio_s_conversion_key_and_on_from_the_checkpoint_without_it(threestudio_folder: Path, tmp_path: Path):
    config, model = CONFIGS / "vdm-gs.yaml", make_tiny_shap_e(tmp_path / "shap-e")
    start = ["system.geometry_convert_from=shap-e:a red mug", f"system.geometry.init.shap_e.model={model}", "system.geometry.init.shap_e.steps=2",
             "system.geometry.init.shap_e.grid_size=16", f"system.geometry.init.shap_e.cache_dir={tmp_path / 'cache'}"]  # fmt: skip
    said = checkout.train(threestudio_folder, f"custom/dreammapping/configs/{config.name}", *small(tmp_path, config, "shap"), *start)
    assert "Shap-E: 'a red mug'" in said and len(list((tmp_path / "cache").iterdir())) == 1
    folder = tmp_path / "shap" / "small"
    assert checkout.all_finite(checkout.losses(folder))
    model.rename(tmp_path / "gone")
    again = ["--config", str(folder / "configs" / "parsed.yaml"), f"resume={folder}/ckpts/last.ckpt", f"trainer.max_steps={STEPS + 2}"]
    said = checkout.run(threestudio_folder, "launch.py", "--gpu", "", "--train", *again)
    assert "Shap-E" not in said and len(checkout.logged(folder, "train/loss", version=1)) == 2


@pytest.mark.parametrize("name", ["csd", "bridge-sds"])
def test_losses_with_texts_that_the_prompt_processor_does_not_have(threestudio_folder: Path, tmp_path: Path, name: str):
    """The empty prompt of the one, the target and the source of the other; its second stage begins at step 16."""
    config = CONFIGS / f"{name}-gs.yaml"
    checkout.train(threestudio_folder, f"custom/dreammapping/configs/{config.name}", *small(tmp_path, config, name))
    losses = checkout.losses(tmp_path / name / "small")
    assert checkout.all_finite(losses) and len(losses["train/loss_distillation"]) == STEPS


@pytest.mark.skipif(not (CONFIGS / "vdm-nerf.yaml").is_file(), reason="there is no vdm-nerf.yaml yet")
def test_the_radiance_field_trains(threestudio_folder: Path, tmp_path: Path):
    config, given = tmp_path / "vdm-nerf.yaml", OmegaConf.load(CONFIGS / "vdm-nerf.yaml")
    given.system.exporter_type = "dummy-exporter"  # threestudio's mesh exporter needs nvdiffrast, thus CUDA
    given.system.pop("exporter", None)
    OmegaConf.save(given, config)
    checkout.train(threestudio_folder, str(config), *small(tmp_path, config, "nerf"))
    folder = tmp_path / "nerf" / "small"
    losses = checkout.losses(folder)
    assert "train/loss_distillation" in losses and checkout.all_finite(losses)
    assert len(losses["train/loss"]) == STEPS
    assert (folder / "save" / f"it{STEPS}-test.mp4").is_file()


def test_the_radiance_field_starts_from_a_mesh(threestudio_folder: Path, tmp_path: Path):
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.box((1, 1, 1)).export(tmp_path / "box.ply")
    config, given = tmp_path / "vdm-nerf.yaml", OmegaConf.load(CONFIGS / "vdm-nerf.yaml")
    given.system.exporter_type = "dummy-exporter"
    given.system.geometry_type = "dreammapping-implicit-volume"
    given.system.geometry.init = {"type": "mesh", "path": str(tmp_path / "box.ply")}
    given.system.geometry.fit = {"steps": 150, "batch_size": 2048}
    OmegaConf.save(given, config)
    output = checkout.train(threestudio_folder, str(config), *small(tmp_path, config, "nerf"))
    assert output.count("Fitting the field to its first shape (mesh)") == 1
    assert float(re.search(r"overlaps its first shape by (\d+\.\d)%", output)[1]) > 70
    folder = tmp_path / "nerf" / "small"
    assert checkout.all_finite(checkout.losses(folder))
    again = ["--config", str(folder / "configs" / "parsed.yaml"), f"resume={folder}/ckpts/last.ckpt"]
    resumed = checkout.run(threestudio_folder, "launch.py", "--gpu", "", "--train", *again, f"trainer.max_steps={STEPS + 1}")
    assert "Fitting the field" not in resumed


def test_pictures_train_for_one_prompt_and_for_several(threestudio_folder: Path, tmp_path: Path):
    given = [o for o in small_run.overrides(TEACHER, tmp_path, STEPS, STEPS // 2, "2d") if not o.startswith("data.")]
    given = [o for o in given if not o.startswith("system.geometry.")]
    for tag, prompts in (("one", []), ("two", ["system.prompts=[a red mug, a blue chair]", "data.batch_size=1"])):
        checkout.train(threestudio_folder, "custom/dreammapping/configs/vdm-2d.yaml", *given, *prompts, f"tag={tag}")
        save = tmp_path / "2d" / tag / "save"
        assert len(list((save / f"it{STEPS}-pictures").glob("*.png"))) == 1 + len(prompts) // 2
        assert (save / "progress.mp4").is_file() and (save / "pictures.png").is_file()
        assert checkout.all_finite(checkout.losses(save.parent))
        sheet = (save / "pictures.png").read_bytes()
        again = ["--config", str(save.parent / "configs" / "parsed.yaml"), f"resume={save.parent}/ckpts/last.ckpt"]
        checkout.run(threestudio_folder, "launch.py", "--gpu", "", "--test", *again)
        assert (save / "pictures.png").read_bytes() == sheet


def test_the_guidance_in_threestudio_s_own_prolificdreamer(threestudio_folder: Path, tmp_path: Path):
    """As docs/threestudio.md says: its config with another guidance block and another weight."""
    changes = OmegaConf.create(re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1])
    mixed = OmegaConf.load(threestudio_folder / "configs" / "prolificdreamer.yaml")
    mixed.system.guidance = {}
    for block, key in (("loss", "lambda_vsd"), ("loss", "lambda_lora"), ("optimizer.params", "guidance")):
        del OmegaConf.select(mixed.system, block)[key]
    config = tmp_path / "prolificdreamer-vdm.yaml"
    OmegaConf.save(OmegaConf.merge(mixed, changes), config)
    checkout.train(threestudio_folder, str(config), *small(tmp_path, config, "mixed"))
    folder = tmp_path / "mixed" / "small"
    losses = checkout.losses(folder)
    assert {"train/loss_distillation", "train/loss_sparsity"} <= set(losses) and checkout.all_finite(losses)
    video = folder / "save" / f"it{STEPS}-test.mp4"
    assert len(losses["train/loss_distillation"]) == STEPS and video.is_file()
    video.unlink()
    again = ["--config", str(folder / "configs" / "parsed.yaml"), f"resume={folder}/ckpts/last.ckpt"]
    checkout.run(threestudio_folder, "launch.py", "--gpu", "", "--test", *again)  # the guidance's state loads too
    assert video.is_file()
