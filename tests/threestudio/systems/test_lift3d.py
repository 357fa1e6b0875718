from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from threestudio import register
from threestudio.errors import CheckpointError, ConfigError
from threestudio.systems.base import BaseLift3DSystem
from threestudio.utils.base import BaseModule, BaseObject
from threestudio.utils.config import dump_config, load_config


@register("lift3d-test-geometry")
class Geometry(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        size: int = 2
        level: float = 0.0

    def configure(self):
        self.weight = nn.Parameter(torch.full((self.cfg.size,), self.cfg.level))
        self.seen = []

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.seen.append((epoch, global_step, on_load_weights))

    @staticmethod
    def create_from(other, cfg, copy_net=False, **kwargs):
        assert other.seen == [(1, 30, True)]
        new = Geometry(cfg)
        new.weight.data = other.weight.detach() * 10
        new.copied = copy_net
        return new


@register("lift3d-test-part")
class Part(BaseModule):
    def configure(self, geometry=None, material=None, background=None):
        self.given = (geometry, material, background)


@dataclass
class Output:
    save_name: str
    save_type: str
    params: dict


@register("lift3d-test-exporter")
class Exporter(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        save_video: bool = False
        kind: str = "json"

    def configure(self, geometry, material, background):
        self.geometry = geometry

    def __call__(self):
        return [Output("model.json", self.cfg.kind, {"payload": self.geometry.weight.tolist()})]


class System(BaseLift3DSystem):
    @dataclass
    class Config(BaseLift3DSystem.Config):
        extra: dict = field(default_factory=dict)

    def test_step(self, batch, batch_idx):
        self.tested = True

    def on_test_epoch_end(self):
        self.test_ended = True


PARTS = {
    "geometry_type": "lift3d-test-geometry",
    "material_type": "lift3d-test-part",
    "background_type": "lift3d-test-part",
    "renderer_type": "lift3d-test-part",
    "exporter_type": "lift3d-test-exporter",
}


def build(resumed=False, **settings):
    return System({**PARTS, **settings}, resumed=resumed)


def trial(folder: Path, level: float) -> str:
    """A trial folder as a run leaves it; the checkpoint's path."""
    system = build(geometry={"level": level})
    config = load_config("tag: x\nsystem: {}", from_string=True)
    config.system = {**PARTS, "geometry": {"level": level}, "stage": "unknown to the next system"}
    dump_config(folder / "configs" / "parsed.yaml", config)
    (folder / "ckpts").mkdir(parents=True)
    path = folder / "ckpts" / "last.ckpt"
    torch.save({"state_dict": system.state_dict(), "epoch": 1, "global_step": 30}, path)
    return str(path)


def test_the_four_parts_are_built_and_handed_to_the_renderer():
    system = build(geometry={"size": 3})
    assert system.geometry.weight.shape == (3,)
    assert system.renderer.given == (system.geometry, system.material, system.background)


def test_the_step_of_a_schedule_is_the_checkpoints():
    system = build()
    assert system.C([0, 0.0, 1.0, 100]) == 0.0
    system.set_resume_status(2, 50)
    assert (system.true_current_epoch, system.true_global_step) == (2, 50)
    assert system.C([0, 0.0, 1.0, 100]) == 0.5 and system.C([0, 0.0, 1.0, 4.0]) == 0.5


def test_geometry_is_converted_from_the_newest_trial(tmp_path):
    trial(tmp_path / "a_cat@20240101-000000", 1.0)
    trial(tmp_path / "a_cat@20250101-000000", 2.0)
    source = str(tmp_path / "a cat@LAST" / "ckpts" / "last.ckpt")
    system = build(geometry_convert_from=source, geometry_convert_inherit_texture=True)
    assert system.geometry.weight.tolist() == [20.0, 20.0] and system.geometry.copied


def test_conversion_is_for_fresh_runs_without_weights(tmp_path):
    path = trial(tmp_path / "t", 2.0)
    assert build(resumed=True, geometry_convert_from=path).geometry.weight.tolist() == [0.0, 0.0]
    assert build(weights=path, geometry_convert_from=path).geometry.weight.tolist() == [2.0, 2.0]


def test_conversion_mistakes(tmp_path):
    path = trial(tmp_path / "t", 2.0)
    with pytest.raises(CheckpointError, match="does not fit its own config"):
        build(geometry_convert_from=path, geometry_convert_override={"size": 5})
    (tmp_path / "t" / "configs" / "parsed.yaml").unlink()
    with pytest.raises(CheckpointError, match="parsed.yaml"):
        build(geometry_convert_from=path)


def test_weights_ignore_modules_and_mismatches(tmp_path):
    path = trial(tmp_path / "t", 2.0)
    taken = build(weights=path)
    assert taken.geometry.weight.tolist() == [2.0, 2.0] and taken.geometry.seen == [(1, 30, True)]
    with pytest.raises(CheckpointError, match="no weight in common"):
        build(weights=path, weights_ignore_modules=["geometry"])
    with pytest.raises(CheckpointError, match="other shapes"):
        build(weights=path, geometry={"size": 5})


@pytest.mark.parametrize("video", [False, True])
def test_export(tmp_path, video):
    system = build(geometry={"level": 3.0}, exporter={"save_video": video})
    system.set_save_dir(str(tmp_path))
    system.set_resume_status(0, 12)
    system.on_predict_start()
    system.predict_step({}, 0)
    system.on_predict_epoch_end()
    assert (tmp_path / "it12-export" / "model.json").read_text().split() == ["[", "3.0,", "3.0", "]"]
    assert hasattr(system, "tested") == video and hasattr(system, "test_ended") == video


def test_an_unknown_save_type_is_named():
    system = build(exporter={"kind": "hologram"})
    system.on_predict_start()
    with pytest.raises(ValueError, match="save_hologram"):
        system.on_predict_epoch_end()


def test_guidance_evaluation_puts_the_stages_side_by_side(tmp_path):
    system = build()
    system.set_save_dir(str(tmp_path))
    system.guidance_evaluation_save(
        torch.zeros(2, 8, 16, 3), {"imgs_noisy": torch.ones(2, 4, 4, 3), "imgs_final": torch.zeros(2, 32, 32, 3)}
    )
    with Image.open(tmp_path / "it0-train.png") as image:
        assert image.size == (3 * 16, 2 * 8)
        assert image.getpixel((8, 8)) == (0, 0, 0) and image.getpixel((24, 8)) == (255, 255, 255)


def test_steps_a_system_lacks_are_named():
    with pytest.raises(NotImplementedError, match="System does not implement training_step"):
        build().training_step({}, 0)
    with pytest.raises(ConfigError, match="Known: Adam|needs a name"):
        build().configure_optimizers()
