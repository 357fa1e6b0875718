"""The shipped configs: loadable in the original threestudio, and different only where they mean to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "custom" / "dreammapping" / "configs"

# Keys of threestudio 0.2.3, by section. An unknown key is an error there.
UPSTREAM = {
    "": """
        name description tag seed use_timestamp timestamp exp_root_dir n_gpus resume data_type data system_type
        system trainer checkpoint
    """.split(),
    "data": """
        height width batch_size resolution_milestones eval_height eval_width eval_batch_size n_val_views
        n_test_views elevation_range azimuth_range camera_distance_range fovy_range camera_perturb
        center_perturb up_perturb light_position_perturb light_distance_range eval_elevation_deg
        eval_camera_distance eval_fovy_deg light_sample_strategy batch_uniform_azimuth progressive_until
        rays_d_normalize
    """.split(),
    "system": """
        loggers loss optimizer scheduler weights weights_ignore_modules cleanup_after_validation_step
        cleanup_after_test_step geometry_type geometry material_type material background_type background
        renderer_type renderer guidance_type guidance prompt_processor_type prompt_processor
        geometry_convert_from geometry_convert_inherit_texture geometry_convert_override exporter_type exporter
    """.split(),
    "system.prompt_processor": """
        prompt prompt_front prompt_side prompt_back prompt_overhead negative_prompt
        pretrained_model_name_or_path overhead_threshold front_threshold back_threshold
        view_dependent_prompt_front use_cache spawn use_perp_neg use_prompt_debiasing
    """.split(),
    "system.background": """
        weights n_output_dims color learned random_aug random_aug_prob color_activation
    """.split(),
    "system.material": """
        weights n_output_dims color_activation requires_normal
    """.split(),
}

ALL = sorted(CONFIGS.glob("*.yaml"))
OVERLAYS = sorted(CONFIGS.glob("presets/**/*.yaml"))


@pytest.mark.parametrize("path", ALL + OVERLAYS, ids=lambda p: p.relative_to(CONFIGS).as_posix())
def test_only_keys_of_the_original_threestudio(path):
    config = OmegaConf.load(path)
    for section, known in UPSTREAM.items():
        block = OmegaConf.select(config, section) if section else config
        assert set(block or {}) <= set(known), section


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.name)
def test_the_teacher_is_named_once(path):
    config = OmegaConf.load(path)
    assert path.read_text(encoding="utf-8").count("stabilityai/") == 1
    assert config.system.guidance.pretrained_model_name_or_path == "stabilityai/stable-diffusion-2-1-base"
    config.system.prompt_processor.pretrained_model_name_or_path = "other"
    assert config.system.guidance.pretrained_model_name_or_path == "other"


def test_the_paper_s_numbers():
    config = OmegaConf.load(CONFIGS / "vdm-gs.yaml")
    assert config.data.batch_size == 4 and config.data.height == config.data.width == 512
    assert config.trainer.max_steps == 5000 and config.system.geometry.init.num_points == 50000
    assert config.system.guidance.guidance_scale == 7.5 and config.system.guidance.cfg_convention == "seed"
    assert OmegaConf.to_container(config.system.guidance.loss) == {"type": "vdm", "dca_cutoff": 300, "psi_lr": 0.01}
    assert OmegaConf.to_container(config.system.geometry.position_lr, resolve=True) == [0, 0.00056, 0.0000056, 5000]


def rest(path: Path) -> dict:
    """What configs of one kind have in common."""
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    config["system"]["prompt_processor"].pop("negative_prompt", None)
    return {**config, "name": None, "system": {**config["system"], "guidance": None}}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*-gs.yaml")), ids=lambda p: p.name)
def test_losses_on_gaussians_differ_in_name_guidance_and_negative_prompt_only(path):
    config, loss = OmegaConf.load(path), path.name.removesuffix("-gs.yaml")
    assert rest(path) == rest(CONFIGS / "vdm-gs.yaml")
    assert (config.name, config.system.guidance.loss.type) == (f"dreammapping-{loss}-gs", loss)
    assert config.system.guidance.grad_reduction == "sum"  # as densification's threshold


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("sds", {"loss": {"type": "sds"}, "guidance_scale": 100}),
        ("vsd", {"loss": {"type": "vsd"}, "cfg_convention": "usual"}),
    ],
)
def test_the_baselines_differ_in_loss_and_scale_only(name, own):
    """`own` is all that the guidance has in another way than VDM's."""
    baseline, vdm = (OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{n}-gs.yaml"), resolve=False) for n in (name, "vdm"))
    assert baseline["system"]["guidance"] == vdm["system"]["guidance"] | own


@pytest.mark.parametrize("name", ["dreamflow-gs.yaml", "dreamflow-2d.yaml", "presets/embedded/dreamflow-gs.yaml"])
def test_dreamflow_goes_down_the_schedule_once(name):
    timesteps = OmegaConf.to_container(OmegaConf.load(CONFIGS / name), resolve=False)["system"]["guidance"]["timesteps"]
    assert (timesteps["type"], timesteps["start"], timesteps["end"]) == ("anneal", 980, 20)
    assert timesteps["anneal_steps"] == "${trainer.max_steps}" and timesteps["hold"] > 1


def test_every_loss_has_its_configs():
    from dreammapping.distillation import LOSSES

    for kind in ("gs", "2d"):
        assert {p.name.removesuffix(f"-{kind}.yaml") for p in CONFIGS.glob(f"*-{kind}.yaml")} == set(LOSSES.names())


def test_the_embedded_preset_has_a_corrector_for_its_teacher():
    from dreammapping.correction import load_corrector
    from dreammapping.correction.card import CorrectorCard, read_card
    from dreammapping.teachers import DiffusersTeacher

    preset = OmegaConf.load(CONFIGS / "presets" / "embedded" / "lmc-sds-gs.yaml")
    folder = ROOT / preset.system.guidance.loss.corrector
    embedded = OmegaConf.load(CONFIGS / "presets" / "embedded.yaml")
    teacher = DiffusersTeacher.load(str(ROOT / embedded.system.prompt_processor.pretrained_model_name_or_path))
    load_corrector(
        folder,
        teacher=teacher.name,
        fingerprint=teacher.fingerprint,
        latent_shape=teacher.latent_shape,
        steps=teacher.schedule.steps,
    )
    assert (folder / "corrector.safetensors").stat().st_size <= 2e6
    for row in read_card(folder, CorrectorCard, "corrector", "").training["validation"]:
        assert row["corrector"] < min(row["image"], row["zero"], row["untrained"]), row


def test_the_operator_trained_beforehand_is_the_embedded_teachers():
    from dreammapping.degradation import build_operator
    from dreammapping.degradation.pretrained import OperatorKind, start_operator
    from dreammapping.teachers import DiffusersTeacher

    teacher = DiffusersTeacher.load(str(ROOT / "load" / "embedded-teacher"))
    operator = build_operator("nonlinear", teacher.latent_shape, generator=torch.Generator())
    known = {"teacher": teacher.name, "fingerprint": teacher.fingerprint, "latent_shape": teacher.latent_shape}
    folder = ROOT / "load" / "embedded-operator"
    card = start_operator(operator, folder, OperatorKind(), steps=teacher.schedule.steps, **known)
    assert (folder / "operator.safetensors").stat().st_size <= 2e6
    for row in card.training["validation"]:
        assert row["operator"] < row["zero"], row


def test_the_field_is_prolificdreamers_with_another_loss():
    ours = OmegaConf.load(CONFIGS / "vdm-nerf.yaml")
    theirs = OmegaConf.load(CONFIGS.parents[2] / "configs" / "prolificdreamer.yaml")
    for part in ("geometry", "material", "background", "renderer"):
        assert ours.system[f"{part}_type"] == theirs.system[f"{part}_type"] and ours.system[part] == theirs.system[part]
    assert ours.system.guidance.guidance_scale == theirs.system.guidance.guidance_scale == 7.5
    assert ours.system.guidance.timesteps.max_step_percent == theirs.system.guidance.max_step_percent
    assert {**theirs.system.optimizer.params, "guidance": None} == {**ours.system.optimizer.params, "guidance": None}
    assert ours.trainer.max_steps == theirs.trainer.max_steps == 25000
    for key in ("lambda_sparsity", "lambda_opaque"):
        assert ours.system.loss[key] == theirs.system.loss[key]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*-2d.yaml")), ids=lambda p: p.name)
def test_pictures_of_all_losses_differ_in_name_guidance_and_negative_prompt_only(path):
    config = OmegaConf.load(path)
    assert rest(path) == rest(CONFIGS / "vdm-2d.yaml")
    loss = path.name.removesuffix("-2d.yaml")
    assert (config.name, config.system.guidance.loss.type) == (f"dreammapping-{loss}-2d", loss)
    assert config.system.guidance.view_dependent_prompting is False
    # Below the head, the same lines in the same order, comments included.
    lines = [body.read_text(encoding="utf-8").partition("\nname: ")[2].splitlines() for body in (path, CONFIGS / "vdm-2d.yaml")]
    blocks = [
        [line for line in part if line not in _guidance(part) and "negative_prompt:" not in line][1:] for part in lines
    ]
    assert blocks[0] == blocks[1]


def _guidance(lines: list[str]) -> list[str]:
    start = lines.index("  guidance:")
    return lines[start : lines.index("", start)]


def test_the_numbers_of_pictures():
    """The paper's where it has any, else ProlificDreamer's in two dimensions; sizes are the teacher's."""
    config = OmegaConf.load(CONFIGS / "vdm-2d.yaml")
    guidance = OmegaConf.to_container(config.system.guidance)
    assert guidance["loss"] == {"type": "vdm", "dca_cutoff": 300, "psi_lr": 0.01}
    assert (guidance["guidance_scale"], guidance["cfg_convention"], guidance["weighting_strategy"]) == (7.5, "seed", "sds")
    assert config.system.optimizer.name == "Adam" and config.system.optimizer.params.geometry.lr == 0.03
    assert "size" not in config.system.geometry and set(config.data) == {"batch_size"}


@pytest.mark.parametrize("name", ["vdm", "sds", "vsd"])
def test_losses_on_the_field_by_one_override(name):
    from dreammapping.distillation import LOSSES
    from dreammapping.settings import parse_settings

    config = OmegaConf.merge(
        OmegaConf.load(CONFIGS / "vdm-nerf.yaml"), OmegaConf.from_dotlist([f"system.guidance.loss.type={name}"])
    )
    loss = OmegaConf.to_container(config.system.guidance.loss)
    settings = parse_settings(LOSSES.get(loss.pop("type")).Settings, loss, "loss")
    if name == "vdm":
        assert (settings.dca_cutoff, settings.psi_lr) == (300, 0.01)  # the paper's


def test_a_radiance_field_with_a_start_gets_the_preset_of_those_without():
    pytest.importorskip("threestudio")
    import dreammapping  # noqa: F401  registers the geometry
    from threestudio.utils.presets import overlay_files

    path = CONFIGS / "vdm-nerf.yaml"
    config = OmegaConf.load(path)
    plain = overlay_files(path, "embedded", config)
    config.system.geometry_type = "dreammapping-implicit-volume"
    assert CONFIGS / "presets" / "embedded" / "implicit-volume.yaml" in plain
    own = CONFIGS / "presets" / "embedded" / "dreammapping-implicit-volume.yaml"
    assert overlay_files(path, "embedded", config) == [*plain, own]


@pytest.mark.parametrize(("steps", "every", "end", "grown"), [(500, 50, 400, 150), (250, 25, 200, 75), (1, 1, 1, 1)])
def test_the_embedded_preset_goes_with_the_length_of_the_run(steps, every, end, grown):
    pytest.importorskip("threestudio")
    import dreammapping  # noqa: F401  registers the geometry
    from threestudio.utils.presets import overlay_files

    path = CONFIGS / "ism-gs.yaml"
    config = OmegaConf.load(path)
    config = OmegaConf.merge(config, *map(OmegaConf.load, overlay_files(path, "embedded", config)), {"trainer": {"max_steps": steps}})
    settings = OmegaConf.to_container(config, resolve=True)["system"]
    densification = settings["geometry"]["densification"]
    assert (densification["refine_start_iter"], densification["refine_every"], densification["refine_stop_iter"]) == (every, every, 9 * every)
    assert settings["guidance"]["timesteps"]["max_step_percent"] == [0, 0.98, 0.5, end]
    assert settings["guidance"]["loss"]["interval"] == [0, 100, 80, grown]
