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
