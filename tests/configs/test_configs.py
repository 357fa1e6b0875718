"""Every shipped config, with and without its preset for the small teacher, fits the classes it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import threestudio
from threestudio.extensions import load_extensions
from threestudio.utils.config import finish_config, merge_config, missing_values_error
from threestudio.utils.presets import choose_preset
from threestudio.utils.validation import check_keywords, check_part, config_class

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [*sorted(ROOT.glob("configs/*.yaml")), *sorted(ROOT.glob("custom/dreammapping/configs/*.yaml"))]
PROMPT = "system.prompt_processor.prompt=a red mug"
PARTS = ("geometry", "material", "background", "renderer", "guidance", "prompt_processor", "exporter")


def load(path: Path, preset: str):
    merged = merge_config(path, cli_args=[PROMPT])
    files = choose_preset(preset, path, merged, cuda=False).files
    config = merge_config(path, *files, cli_args=[PROMPT, "use_timestamp=false"])
    assert missing_values_error(config) is None
    return finish_config(config, n_gpus=1), files


@pytest.mark.parametrize("preset", ["paper", "embedded"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_it_fits_the_classes_it_names(path, preset):
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import ModelCheckpoint

    load_extensions(ROOT / "custom")
    config, files = load(path, preset)
    assert bool(files) == (preset == "embedded")
    check_part(config.data_type, config.data, "data_type")
    fields = config_class(threestudio.find(config.system_type))
    assert set(config.system) <= set(fields.__dataclass_fields__)
    for part in PARTS:
        if f"{part}_type" in config.system:
            check_part(config.system[f"{part}_type"], config.system.get(part, {}), f"system.{part}_type")
    check_keywords(config.trainer, Trainer, "trainer", ())
    check_keywords(config.checkpoint, ModelCheckpoint, "checkpoint", ())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_the_preset_uses_the_small_teacher_everywhere(path):
    config, _ = load(path, "embedded")
    names = {
        str(value)
        for part in (config.system.guidance, config.system.prompt_processor)
        for key, value in part.items()
        if key.startswith("pretrained_model_name_or_path")
    }
    assert names == {"load/embedded-teacher"}


def test_the_values_of_the_baselines():
    dreamfusion = OmegaConf.load(ROOT / "configs/dreamfusion-sd.yaml")
    assert dreamfusion.trainer.max_steps == 10000 and dreamfusion.system.guidance.guidance_scale == 100
    assert dreamfusion.system.loss.lambda_orient == [0, 10.0, 1000.0, 5000]
    assert dreamfusion.system.geometry.pos_encoding_config.otype == "ProgressiveBandHashGrid"
    prolific = OmegaConf.load(ROOT / "configs/prolificdreamer.yaml")
    assert prolific.trainer.max_steps == 25000 and prolific.data.resolution_milestones == [5000]
    assert prolific.system.guidance.max_step_percent == [5000, 0.98, 0.5, 5001]
    assert prolific.system.optimizer.params.guidance.lr == 1e-4


@pytest.mark.parametrize("preset", ["paper", "embedded"])
@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if "dreammapping-guidance" in p.read_text("utf-8")], ids=lambda p: p.name
)
def test_the_blocks_of_the_guidance_fit_what_they_name(path, preset):
    load_extensions(ROOT / "custom")
    from dreammapping.distillation import LOSSES, build_timesteps
    from dreammapping.settings import parse_settings, to_plain

    guidance = to_plain(load(path, preset)[0].system.guidance)
    parse_settings(LOSSES.get(guidance["loss"].pop("type")).Settings, guidance["loss"], "system.guidance.loss")
    build_timesteps(guidance["timesteps"], "system.guidance.timesteps")
