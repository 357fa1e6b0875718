"""threestudio's guidances by their own names: the same code as ours, their keys, conventions and trainable parts."""

from __future__ import annotations

import copy

import pytest
import threestudio
import torch
from dreammapping.guidance import DreamMappingGuidance, StableDiffusionGuidance, StableDiffusionVSDGuidance
from dreammapping.guidance.stable_diffusion import register_if_free
from omegaconf import OmegaConf
from threestudio.systems.utils import check_all_trained, parse_optimizer

from tests.dreammapping.guidance.test_distillation_guidance import B, Prompts, call, rgb
from tests.helpers.tiny_teacher import make_tiny_teacher

CAMERA = {"c2w": torch.eye(4).expand(B, 4, 4), "mvp_mtx": torch.eye(4).expand(B, 4, 4)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    return {
        "epsilon": make_tiny_teacher(root / "epsilon"),
        "v": make_tiny_teacher(root / "v", prediction_type="v_prediction", seed=1),
        "wide": make_tiny_teacher(root / "wide", text_width=32),
    }


@pytest.fixture
def build(folders):
    def make(cls, seed=0, lora="epsilon", **config):
        torch.manual_seed(seed)
        config = {"pretrained_model_name_or_path": str(folders["epsilon"]), **config}
        if cls is StableDiffusionVSDGuidance:
            config = {"pretrained_model_name_or_path_lora": str(folders[lora]), **config}
        return cls(OmegaConf.create(config))

    return make


def test_they_are_registered_unless_the_names_are_taken():
    assert threestudio.find("stable-diffusion-guidance") is StableDiffusionGuidance
    assert threestudio.find("stable-diffusion-vsd-guidance") is StableDiffusionVSDGuidance

    @register_if_free("stable-diffusion-guidance")
    class Other:
        pass

    assert threestudio.find("stable-diffusion-guidance") is StableDiffusionGuidance and Other is not None


@pytest.mark.parametrize("perp_neg", [False, True])
def test_sds_is_the_other_guidances_sds_to_the_bit(build, perp_neg):
    theirs = build(
        StableDiffusionGuidance,
        guidance_scale=[0, 100.0, 50.0, 10],
        max_step_percent=[0, 0.98, 0.5, 10],
        weighting_strategy="fantasia3d",
        grad_clip=0.5,
    )
    ours = build(
        DreamMappingGuidance,
        loss={"type": "sds"},
        guidance_scale=[0, 100.0, 50.0, 10],
        cfg_convention="usual" if perp_neg else "seed",
        anchor="negative",
        timesteps={"type": "percent", "max_step_percent": [0, 0.98, 0.5, 10]},
        weighting_strategy="fantasia3d",
        grad_clip=0.5,
    )
    for step in (0, 7):
        results = []
        for guidance, key in ((theirs, "loss_sds"), (ours, "loss_distillation")):
            guidance.update_step(0, step)
            image = rgb(step)
            out = call(guidance, Prompts(perp_neg), image)
            assert [k for k in out if k.startswith("loss_")] == [key]
            out[key].backward()
            results.append((out[key], image.grad, out["min_step"], out["max_step"]))
        assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
        assert results[0][2:] == results[1][2:] == (20, {0: 980, 7: 644}[step])


def test_sqrt_anneal_goes_from_the_first_value_of_the_schedule(build):
    guidance = build(
        StableDiffusionGuidance, sqrt_anneal=True, trainer_max_steps=100, max_step_percent=[50, 0.98, 0.5, 51]
    )
    for step, expected in ((0, 980), (25, 500), (100, 20)):
        guidance.update_step(0, step)
        out = call(guidance, Prompts())
        assert out["min_step"] == out["max_step"] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("lora", ["epsilon", "v"])
def test_vsd_trains_the_lora_and_the_camera_and_nothing_of_the_teacher(build, lora):
    guidance = build(StableDiffusionVSDGuidance, lora=lora)
    image = rgb()
    out = call(guidance, Prompts(), image, **CAMERA)
    assert [k for k in out if k.startswith("loss_")] == ["loss_vsd", "loss_lora"]
    assert out["unet_forwards"].item() == 4
    (out["loss_vsd"] + out["loss_lora"]).backward()
    assert guidance.teacher.calls.backwards == B
    assert image.grad.abs().sum() > 0
    named = dict(guidance.named_parameters())
    assert any("class_embedding" in name for name in named) and any("lora_A" in name for name in named)
    # B starts at zero, so A gets no gradient in the first step.
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in named.items() if "lora_A" not in name)
    assert all(p.grad is None and not p.requires_grad for p in guidance.teacher.network.parameters())
    assert not {p.data_ptr() for p in guidance.teacher.network.parameters()} & {p.data_ptr() for p in named.values()}


def test_one_set_of_weights_serves_teacher_and_copy(build, folders):
    single, double = build(StableDiffusionVSDGuidance), build(StableDiffusionVSDGuidance, lora="v")
    for guidance, shared in ((single, True), (double, False)):
        frozen = {p.data_ptr() for p in guidance.loss.copy.network.parameters() if not p.requires_grad}
        assert (frozen == {p.data_ptr() for p in guidance.teacher.network.parameters()}) == shared
        assert guidance.teacher.network.class_embedding is None
    assert (single.loss.copy.prediction_type, double.loss.copy.prediction_type) == ("epsilon", "v_prediction")


@pytest.mark.parametrize("lora", ["epsilon", "v"])
def test_an_untrained_copy_without_camera_answers_as_its_model_does(build, folders, lora):
    from diffusers import UNet2DConditionModel

    loss = {"type": "vsd", "camera_condition": "none", "lora_model": str(folders[lora])}
    guidance = build(DreamMappingGuidance, loss=loss)
    x, t, text = torch.randn(B, 4, 8, 8), torch.tensor([5, 800]), torch.randn(1, 24, 16)
    unet = UNet2DConditionModel.from_pretrained(folders[lora], subfolder="unet").eval()
    with torch.no_grad():
        expected = unet(x, t, text.expand(B, -1, -1)).sample
    assert torch.equal(guidance.loss.copy.predict(x, t, text, None), expected)


def test_training_the_copy_leaves_the_teacher_alone(build):
    guidance = build(
        DreamMappingGuidance, loss={"type": "vsd", "lora_lr": 0.1, "camera_dropout": 0.0}, anchor="negative"
    )
    x, t, text = torch.randn(B, 4, 8, 8), torch.tensor([5, 800]), torch.randn(1, 24, 16)
    camera = torch.zeros(B, 16)
    before = guidance.teacher.predict(x, t, {"cond": text})["cond"]
    copied = guidance.loss.copy.predict(x, t, text, camera)
    for _ in range(2):
        call(guidance, Prompts(), **CAMERA)
    assert torch.equal(before, guidance.teacher.predict(x, t, {"cond": text})["cond"])
    assert not torch.allclose(copied, guidance.loss.copy.predict(x, t, text, camera), atol=1e-3)
    assert not torch.equal(
        guidance.loss.copy.predict(x, t, text, camera), guidance.loss.copy.predict(x, t, text, camera + 1)
    )


def test_a_restored_vsd_takes_the_same_next_steps(build):
    config = {"loss": {"type": "vsd", "lora_lr": 0.01}, "anchor": "negative"}
    original = build(DreamMappingGuidance, **config)
    for seed in range(2):
        call(original, Prompts(), rgb(seed), **CAMERA)
    restored = build(DreamMappingGuidance, seed=77, **config)
    restored.load_state_dict(copy.deepcopy(original.state_dict()))  # as a file would: nothing shared
    for seed in (2, 3):
        a, b = (call(g, Prompts(), rgb(seed), **CAMERA) for g in (original, restored))
        assert torch.equal(a["loss_distillation"], b["loss_distillation"])
        assert torch.equal(a["auxiliary_lora"], b["auxiliary_lora"])
    assert not any("unet" in name or "vae" in name for name in original.state_dict())


def test_samples_of_teacher_and_lora(build):
    guidance = build(StableDiffusionVSDGuidance)
    views = {"elevation": torch.zeros(B), "azimuth": torch.zeros(B), "camera_distances": torch.ones(B)}
    for draw in (guidance.sample, guidance.sample_lora):
        first, again = (draw(prompt_utils=Prompts(), **views, **CAMERA) for _ in range(2))
        assert first.shape == (B, 32, 32, 3) and torch.equal(first, again) and first.std() > 0


def test_the_lora_must_be_in_the_systems_optimizer(build):
    """An error before the first step, instead of a run whose LoRA stays as it began."""
    system = torch.nn.Module()
    system.geometry = torch.nn.Linear(2, 2)
    system.guidance = build(StableDiffusionVSDGuidance)
    optimizer = {"name": "AdamW", "params": {"geometry": {"lr": 0.01}}}
    with pytest.raises(ValueError, match=r"params has no entry for guidance.*Add guidance: \{lr: 0.0001\}") as caught:
        check_all_trained(system, [parse_optimizer(optimizer, system)])
    assert caught.value.is_user_error
    check_all_trained(system, [parse_optimizer({**optimizer, "params": {"guidance": {"lr": 1e-4}}}, system)])
    check_all_trained(system, [parse_optimizer({"name": "AdamW"}, system)])  # without params everything is trained


@pytest.mark.parametrize(
    ("loss", "expected"),
    [({"type": "sds"}, 0), ({"type": "vdm"}, 0), ({"type": "vsd"}, 0), ({"type": "vsd", "lora_opt": None}, None)],
)
def test_what_a_loss_trains_itself_is_not_asked_of_the_system(build, loss, expected):
    guidance = build(DreamMappingGuidance, loss=loss, anchor="negative")
    every = list(guidance.loss.parameters())
    assert len(guidance.trained_by_system) == (len(every) if expected is None else expected)
    assert expected == 0 or len(every) > 0


@pytest.mark.parametrize(
    ("cls", "config", "message"),
    [
        (StableDiffusionGuidance, {"use_sjc": True}, "use_sjc is not covered by StableDiffusionGuidance: SDS is"),
        (StableDiffusionGuidance, {"use_img_loss": True}, "use_img_loss is not covered"),
        (StableDiffusionGuidance, {"token_merging": True}, "token_merging is not covered"),
        (StableDiffusionGuidance, {"weighting_strategy": "fantasia"}, "did you mean 'fantasia3d'"),
        (StableDiffusionGuidance, {"max_step_percent": "all"}, "system.guidance.max_step_percent is 'all'"),
        (StableDiffusionGuidance, {"loss": {}}, "loss"),
        (StableDiffusionVSDGuidance, {"use_img_loss": True}, "use_img_loss is not covered by StableDiffusionVSD"),
        (StableDiffusionVSDGuidance, {"camera_condition_type": "pose"}, "must be 'extrinsics' or 'mvp'"),
        (StableDiffusionVSDGuidance, {"lora": "wide"}, "texts of width 32, the teacher 4 and 16"),
        (
            StableDiffusionVSDGuidance,
            {"enable_sequential_cpu_offload": True},
            "enable_sequential_cpu_offload: false",
        ),
    ],
)
def test_what_is_not_covered_is_told(build, cls, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(cls, **config)
    assert caught.value.is_user_error
