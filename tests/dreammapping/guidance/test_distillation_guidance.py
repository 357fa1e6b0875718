"""The registered guidance end to end on a miniature teacher: threestudio's contract, schedules, state, errors."""

from __future__ import annotations

import io
import shutil
from types import SimpleNamespace

import pytest
import threestudio
import torch
from dreammapping.guidance import DreamMappingGuidance
from dreammapping.guidance.embeddings import FurtherTexts, Views, named_embeddings
from omegaconf import OmegaConf

from tests.helpers.tiny_teacher import make_tiny_teacher

B, L, E = 2, 24, 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    return {kind: make_tiny_teacher(root / kind, prediction_type=kind) for kind in ("epsilon", "v_prediction")}


@pytest.fixture
def build(folders):
    def make(kind="epsilon", **config):
        config = {"pretrained_model_name_or_path": str(folders[kind]), "seed": 0, **config}
        return DreamMappingGuidance(OmegaConf.create(config))

    return make


class Prompts:
    """threestudio 0.2.3's prompt processor output: plain and Perp-Neg layouts, no empty prompt."""

    def __init__(self, perp_neg=False, empty=False):
        g = torch.Generator().manual_seed(0)
        self.use_perp_neg = perp_neg
        self.text_embeddings = torch.randn(1, L, E, generator=g)
        self.parts = {n: torch.randn(B, L, E, generator=g) for n in ("cond", "uncond", "first", "second")}
        self.weights = torch.tensor([[-1.0, -0.5], [0.0, -2.0]])
        if empty:
            self.empty_text_embeddings = torch.randn(1, L, E, generator=g)

    def get_text_embeddings(self, elevation, azimuth, camera_distances, view_dependent_prompting=True):
        return torch.cat([self.parts["cond"], self.parts["uncond"]])

    def get_text_embeddings_perp_neg(self, elevation, azimuth, camera_distances, view_dependent_prompting=True):
        negatives = torch.stack([self.parts["first"], self.parts["second"]], 1).flatten(0, 1)
        return torch.cat([self.parts["cond"], self.parts["uncond"], negatives]), self.weights


def rgb(seed=0, size=32):
    return torch.rand(B, size, size, 3, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def call(guidance, prompts=None, image=None, **options):
    views = {"elevation": torch.zeros(B), "azimuth": torch.tensor([0.0, 90.0]), "camera_distances": torch.ones(B)}
    return guidance(rgb() if image is None else image, prompts or Prompts(empty=True), **views, **options)


def test_it_is_registered():
    assert threestudio.find("dreammapping-guidance") is DreamMappingGuidance


@pytest.mark.parametrize("loss", ["sds", "vdm"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_contract(build, kind, loss):
    guidance = build(kind, loss={"type": loss})
    image = rgb(size=40)
    # A batch brings much more than guidance needs.
    out = call(guidance, image=image, mvp_mtx=torch.eye(4), c2w=torch.eye(4), height=40, rays_o=torch.zeros(1))
    assert [k for k in out if k.startswith("loss_")] == ["loss_distillation"]
    assert (out["min_step"], out["max_step"]) == (0, 999)
    assert all(torch.as_tensor(v).numel() == 1 and torch.isfinite(torch.as_tensor(v)) for v in out.values())
    out["loss_distillation"].backward()
    assert image.grad.shape == image.shape and image.grad.abs().sum() > 0
    assert all(p.grad is None for p in guidance.parameters())


def test_the_loss_equals_the_formula_by_hand(build):
    """SDS from the image to its gradient, with nothing but the teacher's own parts."""
    guidance = build(loss={"type": "sds"}, guidance_scale=3.0)
    prompts, image = Prompts(empty=True), rgb()
    generator = torch.Generator().manual_seed(0)
    generator.set_state(guidance.distiller.generator.get_state())
    out = call(guidance, prompts, image)
    (got,) = torch.autograd.grad(out["loss_distillation"], image)

    teacher = guidance.teacher
    latents = teacher.encode(image.permute(0, 3, 1, 2), generator)
    t = torch.randint(0, 1000, (B,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    alpha_bar = teacher.schedule.alpha_bar[t].float().view(-1, 1, 1, 1)
    x = (alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise).detach()
    with torch.no_grad():
        cond = teacher.network(x, t, prompts.parts["cond"]).sample
        empty = teacher.network(x, t, prompts.empty_text_embeddings.expand(B, -1, -1)).sample
    g = (1 - alpha_bar) * (cond + 3.0 * (cond - empty) - noise)
    (expected,) = torch.autograd.grad((latents * g).sum() / B, image)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-3)


def test_anchor_negative_uses_threestudios_uncond_slot(build):
    prompts = Prompts(empty=True)
    swapped = Prompts(empty=True)
    swapped.empty_text_embeddings = prompts.parts["uncond"]
    a = call(build(anchor="negative"), prompts)["loss_distillation"]
    b = call(build(anchor="empty"), swapped)["loss_distillation"]
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_perp_neg_layout_is_interleaved_per_image():
    prompts = Prompts(perp_neg=True)
    views = Views(torch.zeros(B), torch.zeros(B), torch.ones(B))
    named = named_embeddings(prompts, views, view_dependent=True, empty=None)
    for name, part in {"cond": "cond", "negative": "uncond", "perp_neg_0": "first", "perp_neg_1": "second"}.items():
        assert torch.equal(named.by_name[name], prompts.parts[part]), name
    assert named.perp_neg_weights is prompts.weights


def test_perp_neg_runs_and_without_weights_changes_nothing(build):
    out = call(build(anchor="negative"), Prompts(perp_neg=True))
    assert out["unet_forwards"].item() == 4
    prompts = Prompts(perp_neg=True)
    prompts.weights = torch.zeros(B, 2)
    with_zero = call(build(anchor="negative"), prompts)["loss_distillation"]
    plain = call(build(anchor="negative"), Prompts())["loss_distillation"]
    torch.testing.assert_close(with_zero, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(out["loss_distillation"], plain, rtol=1e-3)


def test_the_empty_prompt_is_made_where_the_processor_has_none(build):
    guidance = build()
    prompts = Prompts(empty=True)
    prompts.empty_text_embeddings = guidance.teacher.embed([""])
    a = call(guidance, Prompts(empty=False))["loss_distillation"]
    torch.testing.assert_close(a, call(build(), prompts)["loss_distillation"])


def test_without_text_encoder_the_message_says_what_to_do(build, folders, tmp_path):
    folder = shutil.copytree(folders["epsilon"], tmp_path / "bare")
    guidance = build(pretrained_model_name_or_path=str(folder))
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(ValueError, match="set system.guidance.anchor: negative"):
        call(guidance, Prompts(empty=False))


def test_schedules_follow_the_step(build):
    guidance = build(
        timesteps={"type": "percent", "max_step_percent": [0, 0.98, 0.5, 100]},
        guidance_scale=[0, 100.0, 50.0, 100],
        grad_clip=[0, 2.0, 8.0, 100],
    )
    for step, expected in (
        (0, (100.0, 2.0, 980)),
        (50, (75.0, 5.0, 740)),
        (100, (50.0, 8.0, 500)),
        (999, (50.0, 8.0, 500)),
    ):
        for _ in range(2):  # threestudio calls the hook more than once per step
            guidance.update_step(0, step)
        s = guidance.distiller.settings
        assert (s.guidance_scale, s.grad_clip) == pytest.approx(expected[:2])
        out = call(guidance)
        assert (out["min_step"], out["max_step"]) == (20, expected[2])


def test_latents_can_be_given_directly(build):
    guidance = build(loss={"type": "sds"})
    latents = torch.randn(B, 16, 16, 4, requires_grad=True)
    call(guidance, image=latents, rgb_as_latents=True)["loss_distillation"].backward()
    assert latents.grad.abs().sum() > 0
    exact = torch.randn(B, 8, 8, 4)
    torch.testing.assert_close(guidance.latents(exact, True), exact.permute(0, 3, 1, 2))


def test_evaluation_shows_and_changes_nothing(build):
    guidance, twin = build(max_items_eval=1), build()
    out = call(guidance, guidance_eval=True)
    call(twin)
    shown = out["eval"]
    assert shown["bs"] == 1 == len(shown["texts"]) == len(shown["noise_levels"])
    for name in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        assert shown[name].shape == (1, 32, 32, 3) and 0 <= shown[name].min() and shown[name].max() <= 1
    assert torch.equal(call(guidance)["loss_distillation"], call(twin)["loss_distillation"])


def test_a_restored_guidance_takes_the_same_next_step(build):
    config = {"loss": {"type": "vdm", "operator": "nonlinear_noise"}}
    original = build(**config)
    for seed in range(3):
        call(original, image=rgb(seed))
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    restored = build(**{**config, "seed": 77})
    restored.load_state_dict(torch.load(file, weights_only=True))
    for seed in (3, 4):
        a, b = (call(g, image=rgb(seed)) for g in (original, restored))
        assert torch.equal(a["loss_distillation"], b["loss_distillation"])
        assert torch.equal(a["auxiliary_op"], b["auxiliary_op"])


def test_the_state_holds_the_operator_and_not_the_teacher(build):
    guidance = build(loss={"type": "vdm", "operator": "linear"})
    assert sorted(guidance.state_dict()) == ["_extra_state", "loss.operator.weight"]
    teacher = {p.data_ptr() for part in (guidance.teacher.network, guidance.teacher.vae) for p in part.parameters()}
    assert not teacher & {p.data_ptr() for p in guidance.parameters()}
    guidance.half()
    assert guidance.teacher.network.dtype == torch.float32


def test_seeds(build):
    assert torch.equal(call(build(seed=3))["loss_distillation"], call(build(seed=3))["loss_distillation"])
    assert not torch.equal(call(build(seed=3))["loss_distillation"], call(build(seed=4))["loss_distillation"])
    torch.manual_seed(11)
    a = call(build(seed=None))["loss_distillation"]
    torch.manual_seed(11)
    assert torch.equal(a, call(build(seed=None))["loss_distillation"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": {"type": "vmd"}}, "unknown loss.type 'vmd'"),
        (
            {"loss": {"type": "vdm", "dca_cutof": 3}},
            "system.guidance.loss.dca_cutof is not a known key; did you mean 'dca_cutoff'",
        ),
        ({"timesteps": {"type": "percent", "min": 3}}, "system.guidance.timesteps.min is not a known key"),
        ({"cfg_convention": "imagen"}, "system.guidance.cfg_convention is 'imagen'; it must be one of 'seed', 'usual'"),
        ({"anchor": "null"}, "system.guidance.anchor is 'null'"),
        ({"weighting_strategy": "sdss"}, "did you mean 'sds'"),
        (
            {"guidance_scale": "high"},
            "system.guidance.guidance_scale is 'high'; it must be a number or a step schedule",
        ),
        ({"pretrained_model_name_or_path": ""}, "pretrained_model_name_or_path is empty"),
    ],
)
def test_mistakes_are_told_at_once(build, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**config)
    assert caught.value.is_user_error


def test_wrong_images_and_perp_neg_without_views_are_told(build):
    guidance = build(view_dependent_prompting=False)
    with pytest.raises(ValueError, match=r"\[B,H,W,3\] images, got \[2, 8, 8, 4\]"):
        call(guidance, image=torch.rand(B, 8, 8, 4))
    with pytest.raises(ValueError, match="Perp-Neg needs views: set system.guidance.view_dependent_prompting: true"):
        call(guidance, Prompts(perp_neg=True))


def test_with_the_cores_own_prompt_processor(build, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    processor = threestudio.find("stable-diffusion-prompt-processor")(
        OmegaConf.create(
            {
                "pretrained_model_name_or_path": str(folders["epsilon"]),
                "prompt": "a red mug",
                "negative_prompt": "ugly",
                "spawn": False,
            }
        )
    )
    out = call(build(), processor())
    assert torch.isfinite(out["loss_distillation"])


@pytest.fixture
def prompts_of(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(**config):
        given = {"pretrained_model_name_or_path": str(folders["epsilon"]), "prompt": "a red mug", "spawn": False}
        return threestudio.find("stable-diffusion-prompt-processor")(OmegaConf.create({**given, **config}))()

    return make


BRIDGE = {"type": "bridge-sds", "switch_step": 0, "target": "{prompt}, plain", "source": "blurry {prompt}"}


@pytest.mark.parametrize(
    ("view_dependent", "views"),
    [(True, ["a red mug, front view", "a red mug, side view"]), (False, ["a red mug", "a red mug"])],
)
def test_a_loss_gets_its_texts_by_view(build, prompts_of, view_dependent, views):
    guidance = build(loss=BRIDGE, view_dependent_prompting=view_dependent)
    where = Views(torch.zeros(B), torch.tensor([0.0, 90.0]), torch.ones(B))
    named = guidance._embeddings(prompts_of(), where).by_name
    torch.testing.assert_close(named["target"], guidance.teacher.embed([f"{view}, plain" for view in views]))
    torch.testing.assert_close(named["source"], guidance.teacher.embed([f"blurry {view}" for view in views]))
    torch.testing.assert_close(named["cond"], guidance.teacher.embed(views))


def test_texts_are_embedded_once_and_leave_the_prompts_alone(build, prompts_of, monkeypatch):
    guidance, prompts, calls = build(loss=BRIDGE), prompts_of(), []
    original, before = guidance._texts._encode, prompts.text_embeddings_vd.clone()
    monkeypatch.setattr(guidance._texts, "_encode", lambda texts: calls.append(texts) or original(texts))
    for _ in range(2):
        assert torch.isfinite(call(guidance, prompts)["loss_distillation"])
    assert len(calls) == 1 and torch.equal(prompts.text_embeddings_vd, before)


def test_a_loss_with_texts_runs_beside_perp_neg_and_shows_itself(build, prompts_of):
    out = call(build(loss=BRIDGE, anchor="negative"), prompts_of(use_perp_neg=True), guidance_eval=True)
    assert out["unet_forwards"].item() == 2 and out["eval"]["bs"] == B


def test_texts_without_prompts_or_encoder_are_told(build, folders, tmp_path, prompts_of):
    with pytest.raises(ValueError, match="texts made from the prompt .target, source., but Prompts does not tell"):
        call(build(loss=BRIDGE))
    prompts = prompts_of()
    folder = shutil.copytree(folders["epsilon"], tmp_path / "bare")
    guidance = build(loss=BRIDGE, pretrained_model_name_or_path=str(folder))
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(ValueError, match="loss.type bridge-sds needs .* .target, source., .* must hold tokenizer and"):
        call(guidance, prompts)
    with pytest.raises(ValueError, match="loss.type csd needs embeddings of its own .empty."):
        folder = shutil.copytree(folders["epsilon"], tmp_path / "bare2")
        guidance = build(loss={"type": "csd"}, anchor="negative", pretrained_model_name_or_path=str(folder))
        shutil.rmtree(folder / "text_encoder")
        call(guidance, Prompts(empty=False))


def test_cameras_reach_the_loss(build, monkeypatch):
    guidance = build(loss={"type": "sds"})
    seen = SimpleNamespace()
    original = guidance.loss.ask
    monkeypatch.setattr(
        guidance.loss, "ask", lambda draw, teacher: setattr(seen, "draw", draw) or original(draw, teacher)
    )
    guidance.update_step(0, 17)
    call(guidance, c2w=torch.eye(4).expand(B, 4, 4), height=3)
    assert sorted(seen.draw.context) == ["c2w"] and seen.draw.step == 17


def test_latents_are_distilled_as_they_are_and_decoded(build):
    guidance = build(loss={"type": "sds"}, view_dependent_prompting=False)
    channels, height, width = guidance.teacher.latent_shape
    latents = torch.randn(B, height, width, channels, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.equal(guidance.latents(latents, rgb_as_latents=True), latents.permute(0, 3, 1, 2))
    call(guidance, image=latents, rgb_as_latents=True)["loss_distillation"].backward()
    assert latents.grad.abs().sum() > 0
    rgb = guidance.decode_latents(latents.permute(0, 3, 1, 2))
    assert torch.equal(rgb, guidance.teacher.decode(latents.permute(0, 3, 1, 2)))
    assert rgb.shape == (B, 3, *guidance.teacher.image_size) and not rgb.requires_grad


def test_texts_made_from_the_prompt_follow_each_picture_s_own():
    asked = []

    def encode(texts):
        asked.append(list(texts))
        return torch.stack([torch.full((2, 3), float(len(text))) for text in texts])

    prompts = SimpleNamespace(image_prompts=("a mug", "a chair", "a mug"), text_embeddings=torch.zeros(3, 2, 3))
    further, views = FurtherTexts(encode), Views(torch.zeros(3), torch.zeros(3), torch.ones(3))
    for _ in range(2):
        named = further.of_views({"target": "{prompt}!"}, prompts, views, view_dependent=False)
        assert named["target"][:, 0, 0].tolist() == [6.0, 8.0, 6.0]
    assert asked == [["a mug!", "a chair!"]]  # each text once


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_slices_change_nothing(build, reduction):
    found = []
    for options in ({}, {"encode_slice": 1, "unet_slice": 3}):
        guidance, image = build(loss={"type": "vdm"}, grad_reduction=reduction, **options), rgb()
        # The second draws from where the first left the generator, and sees what the operator has learned.
        losses = [call(guidance, image=image)["loss_distillation"] for _ in range(2)]
        found.append([torch.autograd.grad(loss, image)[0] for loss in losses])
    assert guidance.teacher.options.unet_slice == 3
    assert not guidance.teacher.options.record_encoder and build().teacher.options.record_encoder
    for whole, sliced in zip(*found):
        torch.testing.assert_close(sliced, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("key", ["encode_slice", "unet_slice"])
def test_a_slice_has_no_negative_size(build, key):
    with pytest.raises(ValueError, match=f"system.guidance.{key} is -2"):
        build(**{key: -2})


def test_the_text_encoder_is_released(build):
    import gc

    from transformers import CLIPTextModel

    guidance = build()
    guidance.teacher.embed(["a mug"])
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is CLIPTextModel]
