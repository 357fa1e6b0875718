"""VSD where its formulas are known: closed-form teachers, whose trainable copies are closed-form too."""

from __future__ import annotations

import io

import pytest
import torch
from dreammapping.distillation import CFGConvention, Distiller, DistillerSettings, LossContext, build_loss
from dreammapping.errors import ConfigError, TeacherError

from tests.helpers.score import SHAPE, cameras, embeddings, gaussian_teacher, make_draw, prompted

S = 7.5
T = [20, 300, 900]
F64 = torch.float64


def build(teacher, seed=0, **options):
    context = LossContext(teacher, SHAPE, torch.Generator().manual_seed(seed))
    return build_loss({"type": "vsd", **options}, context)


def distiller(teacher=None, seed=0, guidance_scale=1.0, **options):
    teacher = teacher or gaussian_teacher()
    loss = build(teacher, seed, **options)
    settings = DistillerSettings(guidance_scale, CFGConvention.USUAL)
    return Distiller(loss, teacher, settings, loss.context.generator)


def latents(batch=3, seed=5):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def draw_with_cameras(teacher, seed=3):
    draw = make_draw(teacher, T, dtype=F64)
    draw.context["c2w"] = torch.randn(len(T), 4, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return draw


@pytest.fixture
def exact():
    teacher = gaussian_teacher(F64)
    return teacher, draw_with_cameras(teacher), prompted(teacher, scale=S, batch=len(T))


def test_where_the_copy_equals_the_teacher_only_guidance_is_left(exact):
    teacher, draw, asked = exact
    loss = build(teacher)
    answers = loss.ask(draw, asked)
    a = answers.guided
    torch.testing.assert_close(loss(draw, answers).residual, S * (a.cond - a.uncond))
    asked.guidance_scale = 0.0
    assert loss(draw, loss.ask(draw, asked)).residual.abs().max() < 1e-12


def test_the_copy_reads_the_prompt_without_its_view(exact):
    teacher, draw, asked = exact
    asked.embeddings = {name: text.clone() for name, text in asked.embeddings.items()}
    assert build(teacher).ask(draw, asked).text is asked.embeddings["cond_no_view"]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_residual_is_equation_10_whatever_the_copy_predicts(exact, kind):
    teacher, draw, asked = exact
    teacher.copy_prediction_type = kind
    loss = build(teacher)
    with torch.no_grad():
        loss.lora["means"].mul_(-2).add_(1)
        loss.lora["log_variances"].add_(0.7)
        loss.lora["by_camera"].normal_(generator=torch.Generator().manual_seed(8))
    answers = loss.ask(draw, asked)
    mean = loss.lora["means"][0] + torch.einsum("bn,nchw->bchw", draw.context["c2w"].flatten(1), loss.lora["by_camera"])
    variance = 0.05 * torch.tensor(0.7, dtype=F64).exp()
    ab = draw.alpha_bar
    learned = (1 - ab).sqrt() * (draw.noisy - ab.sqrt() * mean) / (ab * variance + 1 - ab)
    torch.testing.assert_close(loss(draw, answers).residual, (answers.guided.guided - learned).detach())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_copys_loss_and_gradient_equal_those_by_hand(exact, kind):
    teacher, draw, asked = exact
    teacher.copy_prediction_type = kind
    loss = build(teacher, camera_condition="none", lora_timesteps=2)
    answers = loss.ask(draw, asked)
    twin = torch.Generator()
    twin.set_state(loss.context.generator.get_state())
    got = loss(draw, answers).auxiliary["lora"]

    clean = torch.cat([draw.clean, draw.clean])
    t = torch.randint(0, 1000, (6,), generator=twin)
    noise = torch.randn(clean.shape, generator=twin).double()
    mean, variance = loss.lora["means"].detach()[0].requires_grad_(), loss.lora["log_variances"].detach().exp()
    ab = teacher.schedule.alpha_bar[t].view(-1, 1, 1, 1)
    a, sig = ab.sqrt(), (1 - ab).sqrt()
    x = a * clean + sig * noise
    eps = sig * (x - a * mean) / (a**2 * variance + sig**2)
    error = {
        "epsilon": eps - noise,
        "v_prediction": (a * eps - sig * (x - sig * eps) / a) - (a * noise - sig * clean),
        "sample": (x - sig * eps) / a - clean,
    }[kind]
    expected = error.square().mean()
    torch.testing.assert_close(got, expected)
    (gradient,) = torch.autograd.grad(got, loss.lora["means"])
    torch.testing.assert_close(gradient[0], torch.autograd.grad(expected, mean)[0])


def test_camera_guidance(exact):
    teacher, draw, asked = exact
    loss = build(teacher, lora_guidance_scale=3.0)
    with torch.no_grad():
        loss.lora["by_camera"].normal_(generator=torch.Generator().manual_seed(8))
    camera = draw.context["c2w"].flatten(1)
    with_camera, without = (loss.copy.predict(draw.noisy, draw.t, None, c) for c in (camera, torch.zeros_like(camera)))
    torch.testing.assert_close(loss.ask(draw, asked).learned, without + 3 * (with_camera - without))


@pytest.mark.parametrize(
    ("options", "forwards"), [({}, 4), ({"lora_guidance_scale": 2.0}, 5), ({"lora_timesteps": 3}, 6)]
)
def test_calls_are_those_of_the_cost_table(options, forwards):
    """ProlificDreamer 4 forwards and 1 backward per image; threestudio, with two passes of the copy, 5 and 1."""
    made = distiller(**options)
    diagnostics = made(latents(), embeddings(3), context=cameras(3)).diagnostics
    assert diagnostics["unet_forwards"].item() == forwards
    assert diagnostics["unet_backwards"].item() == options.get("lora_timesteps", 1)


def test_cameras_are_hidden_with_the_given_chance(monkeypatch):
    def hidden(chance):
        made = distiller(camera_dropout=chance, lora_opt=None)
        seen = []
        predict = made.loss.copy.predict
        monkeypatch.setattr(
            made.loss.copy,
            "predict",
            lambda x, t, text, camera, **k: seen.append((camera == 0).all(1)) or predict(x, t, text, camera, **k),
        )
        made(latents(200), embeddings(200), context=cameras(200))
        asked, trained = seen
        assert not asked.any(), "the residual always knows the camera"
        return trained.float().mean().item()

    assert hidden(0.0) == 0 and hidden(1.0) == 1
    assert hidden(0.1) == pytest.approx(0.1, abs=0.05)


def test_the_copy_learns_the_images_and_the_residual_then_vanishes():
    """With e_lora fitted to images drawn from the teacher's own distribution R is zero, from another it is not."""
    residuals = {}
    for name, sign in (("same", 1), ("other", -1)):
        teacher = gaussian_teacher()
        made = distiller(teacher, camera_condition="none", lora_lr=0.1)
        mean = sign * teacher.distributions["cond"].means[0]
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            made.loss.lora["means"].zero_()
        for _ in range(60):
            x = mean + 0.05**0.5 * torch.randn(8, *SHAPE, generator=generator)
            out = made(x, embeddings(8))
        residuals[name] = out.diagnostics["residual_norm"].item()
        assert (made.loss.lora["means"][0] - mean).square().mean().sqrt() < 0.3
    assert residuals["same"] < 0.2 < 0.5 < residuals["other"]


def test_gradients_stay_where_they_belong(exact):
    teacher, draw, asked = exact
    loss = build(teacher, lora_opt=None)
    result = loss(draw, loss.ask(draw, asked))
    assert not result.residual.requires_grad and all(not d.requires_grad for d in result.diagnostics.values())
    result.auxiliary["lora"].backward()
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
    assert not any(d.means.requires_grad for d in teacher.distributions.values())


def test_without_an_optimizer_of_its_own_the_loss_is_handed_out():
    own, left = distiller(), distiller(lora_opt=None)
    before = left.loss.lora["means"].clone()
    assert own(latents(), embeddings(3), context=cameras(3)).auxiliary == {}
    out = left(latents(), embeddings(3), context=cameras(3))
    assert out.auxiliary["lora"].requires_grad and torch.equal(before, left.loss.lora["means"])
    assert not torch.equal(own.loss.lora["means"], before)


def test_a_restored_distiller_takes_the_same_next_steps():
    original = distiller()
    for step in range(3):
        original(latents(seed=step), embeddings(3), step=step, context=cameras(3))
    file = io.BytesIO()
    torch.save({"loss": original.loss.state_dict(), "distiller": original.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    restored = distiller(seed=99)
    restored.loss.load_state_dict(saved["loss"])
    restored.load_state_dict(saved["distiller"])
    for step in range(3, 6):
        a, b = (d(latents(seed=step), embeddings(3), step=step, context=cameras(3)) for d in (original, restored))
        assert torch.equal(a.gradient, b.gradient)
        assert all(torch.equal(x, y) for x, y in zip(original.loss.parameters(), restored.loss.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_scale": 1}, "loss.lora_scale is not a known key"),
        ({"camera_condition": "none", "lora_guidance_scale": 2.0}, "with camera_condition none it is 1"),
        ({"camera_condition": "pose"}, "must be one of 'extrinsics', 'mvp', 'none'"),
        ({"camera_dropout": 2}, "between 0 and 1"),
        ({"lora_rank": 0}, "at least 1"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        build(gaussian_teacher(), **options)


def test_missing_cameras_and_unsuitable_teachers_are_told():
    with pytest.raises(ConfigError, match=r"needs c2w \[3,4,4\] with the images, but there is nothing"):
        distiller()(latents(), embeddings(3))
    with pytest.raises(ConfigError, match=r"there is a tensor of shape \[3, 3, 4\]"):
        distiller()(latents(), embeddings(3), context={"c2w": torch.zeros(3, 3, 4)})
    with pytest.raises(ConfigError, match="needs mvp_mtx"):
        distiller(camera_condition="mvp")(latents(), embeddings(3), context=cameras(3))
    with pytest.raises(TeacherError, match="no second model"):
        build(gaussian_teacher(), lora_model="other")
    with pytest.raises(ConfigError, match="trains a copy of its teacher, which object cannot make"):
        build(object())
