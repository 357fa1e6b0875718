"""The schedule against diffusers' own and against the table of published values."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import NoiseSchedule, draw_noise

SD = NoiseSchedule.scaled_linear()


@pytest.mark.parametrize(
    ("t", "alpha_bar"), [(1, 0.99830), (20, 0.98131), (300, 0.59050), (500, 0.27633), (999, 0.00466)]
)
def test_published_values(t, alpha_bar):
    assert SD.alpha_bar[t].item() == pytest.approx(alpha_bar, abs=6e-6)


@pytest.mark.parametrize(("start", "end", "steps"), [(0.00085, 0.012, 1000), (0.001, 0.02, 200)])
def test_equals_diffusers(start, end, steps):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=start, beta_end=end, num_train_timesteps=steps, beta_schedule="scaled_linear")
    ours = NoiseSchedule.scaled_linear(start, end, steps)
    torch.testing.assert_close(ours.alpha_bar.float(), theirs.alphas_cumprod, rtol=2e-5, atol=0)
    x, eps, t = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6), torch.tensor([0, steps // 2, steps - 1])
    exact = NoiseSchedule(theirs.alphas_cumprod)
    torch.testing.assert_close(exact.add_noise(x, eps, t), theirs.add_noise(x, eps, t))
    torch.testing.assert_close(
        exact.v_from_eps(exact.add_noise(x, eps, t), eps, t), theirs.get_velocity(x, eps, t), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_ddim_step_equals_diffusers(eta):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True
    )
    theirs.set_timesteps(50)
    x, eps, fresh = torch.randn(3, 2, 4, 5, 5).double().unbind(0)
    exact = NoiseSchedule(theirs.alphas_cumprod)
    for t in (500, 0):  # the second one steps to the clean image
        expected = theirs.step(eps, t, x, eta=eta, variance_noise=fresh).prev_sample
        at = torch.full((2,), t)
        torch.testing.assert_close(
            exact.ddim_step(x, eps, at, at - 20, eta=eta, noise=fresh), expected, rtol=1e-5, atol=1e-5
        )


def test_conversions_go_there_and_back():
    x0, eps = torch.randn(2, 5, 4, 3, 3, dtype=torch.float64).unbind(0)
    t = torch.tensor([0, 1, 300, 700, 999])
    xt = SD.add_noise(x0, eps, t)
    v = SD.v_from_eps(xt, eps, t)
    a, sig = SD.coefficients(t, xt)
    torch.testing.assert_close(v, a * eps - sig * x0)
    torch.testing.assert_close(SD.eps_from_v(xt, v, t), eps)
    torch.testing.assert_close(SD.x0_from_v(xt, v, t), x0)
    torch.testing.assert_close(SD.x0_from_eps(xt, eps, t), x0)
    torch.testing.assert_close(SD.eps_from_x0(xt, x0, t), eps)


FLOW = NoiseSchedule.from_flow(torch.tensor([1e-4, 0.003, 0.25, 0.5, 0.9, 0.9999]))


def test_flow_matching_is_the_same_noise_at_unit_length():
    """z_s = (1 - s) x_0 + s eps and u = eps - x_0 written out, against the schedule's x_t and its conversions."""
    x0, eps = torch.randn(2, 6, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    s = torch.tensor([1e-4, 0.003, 0.25, 0.5, 0.9, 0.9999]).double().view(-1, 1, 1, 1)
    t, z, u = torch.arange(6), (1 - s) * x0 + s * eps, eps - x0
    xt = FLOW.add_noise(x0, eps, t)
    exact = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(xt * ((1 - s) ** 2 + s**2).sqrt(), z, **exact)
    state, share = FLOW.flow_state(xt, t)
    torch.testing.assert_close(state, z, **exact)
    torch.testing.assert_close(share, s, **exact)
    torch.testing.assert_close(FLOW.target("flow_prediction", x0, eps, t), u)
    # The network's answer is all there is at run time: eps and x_0 follow from it and x_t.
    torch.testing.assert_close(FLOW.eps_from_output("flow_prediction", xt, u, t), eps, **exact)
    torch.testing.assert_close(z - s * u, x0, **exact)
    torch.testing.assert_close(FLOW.x0_from_eps(xt, FLOW.eps_from_flow(xt, u, t), t), x0, rtol=1e-7, atol=1e-7)
    a, sig = FLOW.coefficients(t, xt)
    torch.testing.assert_close(a**2 + sig**2, torch.ones_like(a), **exact)


def test_a_ddim_step_of_a_flow_model_is_eulers_step_along_its_line():
    """From s to r both keep x_0 and eps: z_r = z_s + (r - s) u."""
    x0, u = torch.randn(2, 1, 4, 3, 5, dtype=torch.float64).unbind(0)
    s, r = torch.tensor([4]), torch.tensor([2])
    xt = FLOW.add_noise(x0, x0 + u, s)
    z, share = FLOW.flow_state(xt, s)
    ahead, share_ahead = FLOW.flow_state(FLOW.ddim_step(xt, FLOW.eps_from_flow(xt, u, s), s, r), r)
    torch.testing.assert_close(ahead, z + (share_ahead - share) * u)


def test_small_noise_survives_single_precision():
    x = torch.zeros(6, 1, 1, 1)
    _, sig = FLOW.coefficients(torch.arange(6), x)
    _, exact = FLOW.coefficients(torch.arange(6), x.double())
    torch.testing.assert_close(sig.double(), exact, rtol=2e-7, atol=0)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="alpha_bar"):
        NoiseSchedule(torch.tensor([1.2, 0.5]))


def test_offset_noise_is_one_value_per_channel_for_the_whole_batch():
    like = torch.zeros(3, 4, 6, 6)
    plain = draw_noise(like, torch.Generator().manual_seed(0))
    shifted = draw_noise(like, torch.Generator().manual_seed(0), offset=0.1)
    difference = shifted - plain
    torch.testing.assert_close(difference, difference[:1, :, :1, :1].expand_as(difference), atol=1e-6, rtol=0)
    assert difference[0, :, 0, 0].unique().numel() == 4
    torch.testing.assert_close(draw_noise(like.double(), torch.Generator().manual_seed(0)), plain.double())
