"""Configs that name parts of the original threestudio which are not here: one message, before anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import launch
import threestudio
from threestudio.coverage import UPSTREAM, check_coverage, covered
from threestudio.errors import RegistryError
from threestudio.extensions import load_extensions

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
data_type: random-camera-datamodule
system_type: magic3d-system
system:
  geometry_type: tetrahedra-sdf-grid
  material_type: no-material
  renderer_type: patch-renderer
  renderer: {base_renderer_type: "neus-volume-renderer:some-mixin"}
  prompt_processor: {prompt: "???"}
  guidance_type: ${system.somewhere}
  guidance: {guidance_type: sds}
"""


def test_all_of_them_are_named_with_what_there_is_instead():
    load_extensions(ROOT / "custom")
    with pytest.raises(RegistryError) as caught:
        check_coverage(OmegaConf.create(CONFIG))
    first, *rest = str(caught.value).splitlines()
    assert first.endswith(
        "not covered here: system_type: magic3d-system, system.geometry_type: tetrahedra-sdf-grid, "
        "system.renderer.base_renderer_type: neus-volume-renderer."
    )
    assert [line.split(":")[0] for line in rest] == [f"Covered as {k}" for k in ("system", "geometry", "renderer")]
    assert "implicit-volume, volume-grid" in rest[1] and "dreammapping-gaussians" in rest[1]
    assert "-renderer" not in rest[1] and {"patch-renderer", "dreammapping-gaussian-renderer"} <= set(
        rest[2].split(": ")[1].rstrip(".").split(", ")
    )


def test_the_lists_hold_only_what_can_be_found():
    load_extensions(ROOT / "custom")
    for kind in UPSTREAM:
        assert covered(kind), kind
        for name in covered(kind):
            assert threestudio.find(name)


def test_nothing_is_said_of_names_that_nobody_knows():
    check_coverage(OmegaConf.create({"data_type": "random-camera-datamodule", "system_type": "my-own-system"}))


def test_the_command_line_says_it_before_it_asks_for_a_prompt(tmp_path, capsys):
    path = tmp_path / "magic3d.yaml"
    path.write_text(CONFIG)
    assert launch.main(["--config", str(path), "--train", f"exp_root_dir={tmp_path}/out"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "magic3d-system" in message and "prompt" not in message
    assert not (tmp_path / "out").exists()
