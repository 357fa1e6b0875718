from __future__ import annotations

import json

import pytest
import torch
from dreammapping.errors import ConfigError
from omegaconf import OmegaConf

threestudio = pytest.importorskip("threestudio")

from dreammapping.system.start import settled_start  # noqa: E402

INIT = {"type": "shap-e", "prompt": "a mug", "num_points": 7, "shap_e": {"steps": 3}}


def settled(resumed: bool = False, **changes):
    """The config as the geometry gets it."""
    values = {
        "geometry_type": "dreammapping-gaussians", "geometry": {"init": dict(INIT), "sh_degree": 1}, "geometry_convert_from": None,
        "weights": None, "weights_ignore_modules": None, "prompt_processor_type": "stable-diffusion-prompt-processor", **changes,
    }  # fmt: skip
    cfg = OmegaConf.create(values)
    before = OmegaConf.to_container(cfg)
    with settled_start(cfg, resumed):
        seen = OmegaConf.create(OmegaConf.to_container(cfg))
    assert OmegaConf.to_container(cfg) == before  # for whoever reports it
    return seen


def test_threestudio_s_conversion_key_becomes_an_init_block():
    cfg = settled(geometry_convert_from="shap-e: a red mug ", geometry={"init": {"num_points": 5, "radius": 0.3}, "sh_degree": 1})
    assert cfg.geometry == {"init": {"type": "shap-e", "prompt": "a red mug", "num_points": 5, "radius": 0.3}, "sh_degree": 1}
    assert cfg.geometry_convert_from is None
    assert settled(geometry_convert_from="shap-e:a", geometry={}).geometry == {"init": {"type": "shap-e", "prompt": "a"}}
    assert settled(geometry_convert_from="shap-e:a chair").geometry["init"] == {**INIT, "prompt": "a chair"}


def test_without_a_prompt_of_its_own_shap_e_gets_the_runs():
    for init in ({"type": "shap-e"}, {"type": "shap-e", "prompt": ""}, {"type": "shap-e", "prompt": None}):
        cfg = settled(geometry={"init": init}, prompt_processor={"prompt": "a blue chair"})
        assert cfg.geometry["init"]["prompt"] == "a blue chair"
    assert settled(prompt_processor={"prompt": "a blue chair"}).geometry["init"]["prompt"] == "a mug"


def test_other_starts_and_paths_are_left_alone():
    for changes in ({"geometry": {"init": {"type": "sphere"}}}, {"geometry": {}}, {"geometry": None}):
        cfg = settled(geometry_convert_from="outputs/a/ckpts/last.ckpt", resumed=True, **changes)
        assert cfg.geometry == changes["geometry"] and cfg.geometry_convert_from == "outputs/a/ckpts/last.ckpt"


@pytest.mark.parametrize("prompt", ["", "   "])
def test_a_conversion_without_a_prompt_is_refused(prompt):
    with pytest.raises(ConfigError, match="geometry_convert_from is 'shap-e:.*say what to make"):
        settled(geometry_convert_from=f"shap-e:{prompt}")


def test_a_geometry_that_knows_no_init_is_named():
    with pytest.raises(ConfigError, match="implicit-volume does not start from Shap-E.*dreammapping-gaussians"):
        settled(geometry_convert_from="shap-e:a mug", geometry_type="implicit-volume")


@pytest.mark.parametrize(
    "changes",
    [
        {"resumed": True}, {"weights": "last.ckpt"}, {"weights": "last.ckpt", "weights_ignore_modules": ["background"]},
        {"geometry": {"init": INIT, "weights": "last.ckpt:geometry"}}, {"resumed": True, "geometry_convert_from": "shap-e:a chair"},
    ],
)  # fmt: skip
def test_where_a_checkpoint_brings_the_geometry_shap_e_is_not_asked(changes):
    cfg = settled(**changes)
    assert cfg.geometry["init"]["type"] == "sphere" and cfg.geometry["init"]["num_points"] == 7
    assert cfg.geometry_convert_from is None


def test_weights_without_the_geometry_leave_it_to_shap_e():
    assert settled(weights="last.ckpt", weights_ignore_modules=["geometry"]).geometry["init"] == INIT


def test_a_failure_leaves_the_config_as_it_was():
    cfg = OmegaConf.create({"geometry": {"init": INIT}, "geometry_convert_from": "shap-e:", "geometry_type": "x"})
    with pytest.raises(ConfigError), settled_start(cfg, resumed=False):
        pass
    assert cfg.geometry_convert_from == "shap-e:"


def test_prompts_may_be_interpolations():
    root = OmegaConf.create({"prompt": "a mug", "system": {"geometry": {"init": {**INIT, "prompt": "${prompt}"}},
                             "geometry_convert_from": None, "weights": None}})  # fmt: skip
    with settled_start(root.system, resumed=False):
        assert root.system.geometry.init == INIT
    assert OmegaConf.to_container(root)["system"]["geometry"]["init"]["prompt"] == "${prompt}"


def test_names_of_the_library_are_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "load").mkdir()
    prompts = {"dreamfusion": ["a corgi taking a selfie", "a corgi on a bench"]}
    (tmp_path / "load" / "prompt_library.json").write_text(json.dumps(prompts))
    init = {**INIT, "prompt": "lib:corgi_selfie"}
    assert settled(geometry={"init": init}).geometry["init"]["prompt"] == "a corgi taking a selfie"
    for name in ("lib:corgi", "lib:cat"):
        with pytest.raises(ConfigError, match=f"{name}"):
            settled(geometry={"init": {**INIT, "prompt": name}})
    (tmp_path / "load" / "prompt_library.json").unlink()
    with pytest.raises(ConfigError, match="prompt is 'lib:corgi_selfie', which cannot be looked up"):
        settled(geometry={"init": init})


def test_the_geometry_gives_its_device_to_shap_e(monkeypatch):
    from dreammapping.initialization import ColoredMesh, settings

    asked = []
    mesh = ColoredMesh(torch.eye(3), torch.tensor([[0, 1, 2]]), torch.zeros(3, 3))
    monkeypatch.setattr(settings, "shap_e_mesh", lambda prompt, chosen, device: asked.append((prompt, chosen.steps, device)) or mesh)
    geometry = threestudio.find("dreammapping-gaussians")({"init": {**INIT, "num_points": 50}})
    assert geometry.count == 50 and asked == [("a mug", 3, torch.device(geometry.device))]
