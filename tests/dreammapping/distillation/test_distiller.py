"""The step all losses share: injection, weighting, clipping, counting, updating, determinism."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from dreammapping.distillation import (
    CFGConvention,
    Distiller,
    DistillerSettings,
    LossContext,
    NoisyDraw,
    ScoreLoss,
    ScoreResult,
    build_loss,
    build_timesteps,
    inject,
)
from dreammapping.distillation.auxiliary import OPTIMIZERS, AuxiliaryOptimizer, AuxiliaryUpdate
from dreammapping.errors import ConfigError

from tests.helpers.score import SHAPE, embeddings, gaussian_teacher


def make(loss="sds", *, timesteps=None, seed=0, **settings):
    teacher = gaussian_teacher()
    generator = torch.Generator().manual_seed(seed)
    config = loss if isinstance(loss, dict) else {"type": loss}
    built = build_loss(config, LossContext(teacher, SHAPE, generator))
    return Distiller(built, teacher, DistillerSettings(**settings), generator, timesteps)


def latents(batch=3, seed=5):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_both_ways_to_inject_a_gradient_agree(reduction):
    class Injected(torch.autograd.Function):  # LucidDreamer's and ProlificDreamer's device
        @staticmethod
        def forward(ctx, x, g):
            ctx.save_for_backward(g)
            return x.new_ones(())

        @staticmethod
        def backward(ctx, scale):
            return scale * ctx.saved_tensors[0], None

    theta = torch.randn(*SHAPE, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, *SHAPE, dtype=torch.float64)

    def images():
        return torch.stack([theta, theta**2, theta.sin()])

    (expected,) = torch.autograd.grad(Injected.apply(images(), g), theta)
    loss = inject(images(), g, reduction)
    (got,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(got, expected / (3 if reduction == "mean" else 1))
    torch.testing.assert_close(loss.detach(), 0.5 * g.square().sum() / (3 if reduction == "mean" else 1))


def test_sds_step_equals_the_formula():
    distiller = make(guidance_scale=7.5, weighting_strategy="snr", grad_scale=0.1)
    x = latents()
    out = distiller(x, embeddings(3))
    d = out.draw
    eps = distiller.teacher.predict(d.noisy, d.t, embeddings(3))
    omega = 0.1 * ((1 - d.alpha_bar) / d.alpha_bar).sqrt()
    expected = omega * (eps["cond"] + 7.5 * (eps["cond"] - eps["empty"]) - d.noise)
    torch.testing.assert_close(out.gradient, expected)
    torch.testing.assert_close(d.noisy, d.alpha_bar.sqrt() * x.detach() + (1 - d.alpha_bar).sqrt() * d.noise)
    (got,) = torch.autograd.grad(out.loss, x)
    torch.testing.assert_close(got, expected / 3, atol=1e-6, rtol=1e-5)


def test_convention_and_anchor_reach_the_teacher():
    seed = make(guidance_scale=7.5)(latents(), embeddings(3)).gradient
    usual = make(guidance_scale=8.5, cfg_convention=CFGConvention.USUAL)(latents(), embeddings(3)).gradient
    negative = make(guidance_scale=7.5, anchor="negative")(latents(), embeddings(3)).gradient
    torch.testing.assert_close(seed, usual, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(seed, negative, atol=1e-2)


class Bad(ScoreLoss):
    def residual(self, draw, answers):
        r = torch.full_like(draw.clean, 5.0)
        r[0, 0, 0, 0], r[0, 0, 0, 1], r[0, 0, 0, 2] = float("nan"), float("inf"), -7.0
        return r


def test_gradients_are_cleaned_then_clipped():
    distiller = make(weighting_strategy="uniform", grad_clip=2.0)
    distiller.loss = Bad(None, distiller.loss.context)
    g = distiller(latents(), embeddings(3)).gradient
    assert g[0, 0, 0, :4].tolist() == [0.0, 2.0, -2.0, 2.0]


def test_calls_are_counted_per_image():
    assert {k: make(k)(latents(), embeddings(3)).diagnostics["unet_forwards"].item() for k in ("sds", "vdm")} == {
        "sds": 2,
        "vdm": 2,
    }


def test_diagnostics_are_finite_scalars_without_graph():
    for name, value in make("vdm")(latents(), embeddings(3)).diagnostics.items():
        assert value.numel() == 1 and bool(value.isfinite()) and not value.requires_grad, name
        assert not name.startswith("loss_"), "threestudio would ask for a weight"


@pytest.mark.parametrize("operator", ["nonlinear", "linear"])
def test_a_restored_distiller_takes_the_same_next_steps(operator):
    config = {"type": "vdm", "operator": operator}
    original = make(config)
    for step in range(3):
        original(latents(seed=step), embeddings(3), step=step)
    file = io.BytesIO()
    torch.save({"loss": original.loss.state_dict(), "distiller": original.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    restored = make(config, seed=99)
    restored.loss.load_state_dict(saved["loss"])
    restored.load_state_dict(saved["distiller"])
    # Saving before the first step of the restored one must not lose the optimizer.
    assert restored.state_dict()["optimizer"]["state"].keys() == original.state_dict()["optimizer"]["state"].keys()
    for step in range(3, 5):
        a = original(latents(seed=step), embeddings(3), step=step)
        b = restored(latents(seed=step), embeddings(3), step=step)
        assert torch.equal(a.gradient, b.gradient) and torch.equal(a.loss, b.loss)


def test_the_same_seed_gives_the_same_steps_whatever_the_global_generator_does():
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(results))
        distiller = make("vdm", seed=seed)
        results.append(distiller(latents(), embeddings(3)).gradient)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_building_an_operator_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    make("vdm")
    assert torch.equal(torch.rand(2), expected)


def updated(**options):
    """One step of VDM with a linear operator: the step's gradient and the operator before and after."""
    distiller = make({"type": "vdm", "operator": "linear", "dca_cutoff": None, **options}, weighting_strategy="uniform")
    before = copy.deepcopy(distiller.loss.operator)
    out = distiller(latents(), embeddings(3))
    return out, before, distiller.loss.operator


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("lookahead", [False, True])
def test_which_operator_the_residual_sees(steps, lookahead):
    out, before, after = updated(psi_steps=steps, psi_lookahead=lookahead)
    operator = after if lookahead else before
    torch.testing.assert_close(out.gradient, (out.answers.guided - operator(out.answers.cond)).detach())


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_operator_is_trained_like_plain_adam(steps):
    out, before, after = updated(psi_steps=steps)
    adam = torch.optim.Adam(before.parameters(), lr=0.01)
    for _ in range(steps):
        adam.zero_grad()
        (before(out.answers.cond) - out.draw.noise).square().mean().backward()
        adam.step()
    torch.testing.assert_close(after.weight, before.weight)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_auxiliary_optimizer_equals_torchs(name):
    target = torch.randn(5)
    ours, theirs = (torch.nn.Parameter(torch.zeros(5)) for _ in range(2))
    update = AuxiliaryUpdate(name, lr=0.1, weight_decay=0.01)
    optimizer = AuxiliaryOptimizer([ours], update)
    reference = {
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    }[name]([theirs])
    for _ in range(4):
        optimizer.step((ours - target).square().sum())
        reference.zero_grad()
        (theirs - target).square().sum().backward()
        reference.step()
    torch.testing.assert_close(ours, theirs)
    assert ours.grad is None  # nobody else's optimizer may see it


def test_auxiliary_gradients_have_the_layout_of_their_parameters(monkeypatch):
    """Fused optimizers on CUDA refuse the channels-last gradients that convolutions return there."""
    weight, seen = torch.nn.Parameter(torch.randn(2, 3, 4, 5)), []

    class Spy(torch.optim.Adam):
        def step(self, closure=None):
            seen.append((weight.grad.stride(), weight.grad.clone()))
            return super().step(closure)

    monkeypatch.setitem(OPTIMIZERS._entries, "spy", Spy)
    other = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    loss = (weight.to(memory_format=torch.channels_last) * other).sum()
    assert torch.autograd.grad(loss, weight, retain_graph=True)[0].stride() != weight.stride()
    AuxiliaryOptimizer([weight], AuxiliaryUpdate("spy", lr=0.1)).step(loss)
    assert seen[0][0] == weight.stride()
    torch.testing.assert_close(seen[0][1], other.contiguous())


def test_without_gradients_the_operator_still_learns():
    distiller = make({"type": "vdm", "operator": "linear"})
    before = distiller.loss.operator.weight.clone()
    with torch.no_grad():
        distiller(latents(), embeddings(3))
    assert not torch.equal(before, distiller.loss.operator.weight)


def test_the_draw_follows_the_step_and_the_context():
    seen = []

    class Spy(ScoreLoss):
        def forward(self, draw: NoisyDraw, answers):
            seen.append((draw.step, draw.t_host.tolist(), dict(draw.context)))
            return ScoreResult(torch.zeros_like(draw.clean))

    distiller = make(timesteps=build_timesteps({"type": "anneal", "anneal_steps": 10}))
    distiller.loss = Spy(None, distiller.loss.context)
    camera = torch.eye(4).expand(3, 4, 4)
    distiller(latents(), embeddings(3), step=5, context={"c2w": camera})
    assert seen[0][:2] == (5, [500] * 3) and seen[0][2]["c2w"] is camera


def test_a_loss_that_answers_in_the_wrong_shape_is_named():
    distiller = make()
    distiller.loss.residual = lambda draw, answers: torch.zeros(1)
    with pytest.raises(ConfigError, match="the residual has shape"):
        distiller(latents(), embeddings(3))


def test_small_operations_run_on_one_thread_and_the_number_comes_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        distiller = make("vdm")
        seen = []
        distiller.loss.operator.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
        distiller(latents(), embeddings(3))
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_unknown_names():
    with pytest.raises(ConfigError, match="weighting_strategy 'sdz'; did you mean 'sds'"):
        make(weighting_strategy="sdz")
    with pytest.raises(ConfigError, match="unknown loss.type 'vmd'"):
        make("vmd")
    with pytest.raises(ConfigError, match="no text embedding called 'empty'"):
        make()(latents(), {"cond": torch.zeros(3, 1, 1)})
