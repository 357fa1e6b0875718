"""DDIM jumps against diffusers in float64, and walks of many jumps against the exact path and against images alone."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from dreammapping.distillation import CFGConvention, NoiseSchedule, PromptedTeacher
from dreammapping.distillation.ode import ladder, walk

from tests.helpers.score import SHAPE, TextTeacher, gaussian_teacher, prompted, random_texts

F64 = torch.float64
JUMP = 100
OPTIONS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def theirs(cls):
    scheduler = cls(**OPTIONS, set_alpha_to_one=True)
    scheduler.set_timesteps(1000 // JUMP)
    scheduler.alphas_cumprod = NoiseSchedule.scaled_linear().alpha_bar  # float64
    return scheduler, NoiseSchedule(scheduler.alphas_cumprod)


def noises(count):
    return torch.randn(count, 3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=F64).unbind(0)


def steps(t):
    return torch.full((3,), t)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", [999, 500, 100, 60])  # the last one ends at the clean image
def test_a_jump_down_is_diffusers_ddim_step(t, eta):
    scheduler, schedule = theirs(DDIMScheduler)
    x, eps, fresh = noises(3)
    expected = scheduler.step(eps, t, x, eta=eta, variance_noise=fresh).prev_sample
    got = schedule.ddim_step(x, eps, steps(t), steps(t - JUMP), eta=eta, noise=fresh)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [999, 500, 100, 1])  # the last one starts from the clean image
def test_a_jump_up_is_diffusers_inverse_step(t):
    scheduler, schedule = theirs(DDIMInverseScheduler)
    x, eps = noises(2)
    expected = scheduler.step(eps, t, x).prev_sample  # their t is where the jump ends
    got = schedule.ddim_step(x, eps, steps(t - JUMP), steps(t))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [999, 500, 60])
def test_the_noise_of_a_jump_is_diffusers(t):
    scheduler, schedule = theirs(DDIMScheduler)
    expected = scheduler._get_variance(t, t - JUMP) ** 0.5
    got = schedule.ddim_sigma(steps(t), steps(t - JUMP), torch.zeros(1, dtype=F64).expand(3, 1, 1, 1))
    torch.testing.assert_close(got.flatten(), expected.expand(3), rtol=1e-12, atol=0)


def test_a_jump_there_and_back_with_one_eps_is_no_jump():
    schedule, (x, eps) = NoiseSchedule.scaled_linear(), noises(2)
    t, up = torch.tensor([-1, 0, 500]), torch.tensor([0, 300, 999])
    back = schedule.ddim_step(schedule.ddim_step(x, eps, t, up), eps, up, t)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    assert torch.equal(schedule.ddim_step(x, eps, steps(-1), steps(-1)), x)


def test_the_ladder_waits_for_the_slowest():
    route = ladder(torch.tensor([1, 1, 0, 7]), torch.tensor([450, 100, 0, 8]), 200)
    assert route.tolist() == [[1, 1, 0, 7], [201, 100, 0, 8], [401, 100, 0, 8], [450, 100, 0, 8]]


@pytest.mark.parametrize("up", [True, False])
def test_small_jumps_follow_the_exact_path(up):
    """For p(x_0) = N(mu, v I) the ODE keeps (x - a mu) / sqrt(a^2 v + sig^2); the error shrinks with the jump."""
    teacher = gaussian_teacher(F64)
    mixture, schedule = teacher.distributions["cond"], teacher.schedule
    low, high = torch.tensor([10, 300, 60]), torch.tensor([900, 500, 61])
    start, end = (low, high) if up else (high, low)
    (x,) = noises(1)

    def scaled(t):
        a, sig = schedule.coefficients(t, x)
        return a * mixture.means, (a**2 * mixture.variances + sig**2).sqrt()

    (center, spread), (center_end, spread_end) = scaled(start), scaled(end)
    exact = center_end + (x - center) / spread * spread_end

    def error(jump):
        route = ladder(low, high, jump)
        ask = lambda noisy, t, part: part.predict(noisy, t, "cond")["cond"]  # noqa: E731
        return (walk(x, route if up else route.flip(0), ask, prompted(teacher, batch=3)) - exact).abs().max().item()

    assert error(1) < 0.02 and error(1) < error(10) / 5 < error(100) / 5


@pytest.mark.parametrize("perp_neg", [False, True])
def test_every_image_walks_its_own_route(perp_neg):
    teacher = TextTeacher()
    weights = torch.tensor([[-1.0, -0.2], [-0.3, 0.0], [-2.0, -0.7]], dtype=F64) if perp_neg else None
    asked = PromptedTeacher(
        teacher,
        random_texts(3, perp_neg),
        guidance_scale=2.0,
        convention=CFGConvention.USUAL,
        anchor="negative",
        perp_neg_weights=weights,
    )
    route = torch.tensor([[-1, 5, 900], [100, 5, 700], [100, 5, 700], [400, 6, 700]])
    (x,) = noises(1)

    def ask(noisy, t, part):
        return part.guided(noisy, t).guided

    together = walk(x, route, ask, asked)
    assert [sorted(t.tolist()) for t in teacher.asked] == [[0, 900], [5, 100]]  # clean is shown as the first step
    for i in range(3):
        alone, eps_at = x[i : i + 1], asked.rows(torch.tensor([i]))
        for now, ahead in zip(route[:-1, i : i + 1], route[1:, i : i + 1]):
            if now != ahead:
                eps = ask(alone, now.clamp(min=0), eps_at)
                alone = teacher.schedule.ddim_step(alone, eps, now, ahead)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_noise_comes_on_top_of_the_jumps_that_happen():
    teacher, (x,) = TextTeacher(), noises(1)
    asked = PromptedTeacher(teacher, random_texts(3), guidance_scale=2.0, convention=CFGConvention.USUAL)
    route = torch.tensor([[5, 5, 5], [105, 5, 5], [205, 5, 405]])
    ask = lambda noisy, t, part: torch.zeros_like(noisy)  # noqa: E731
    got = walk(x, route, ask, asked, eta=0.3, generator=torch.Generator().manual_seed(7))
    twin, schedule = torch.Generator().manual_seed(7), teacher.schedule
    first, second = (torch.randn(x.shape, generator=twin).double() for _ in range(2))
    ab = schedule.alpha_bar

    def level(low, high):
        return 0.3 * ((1 - ab[low]) / (1 - ab[high]) * (1 - ab[high] / ab[low])).sqrt()

    expected = x.clone()
    expected[0] = (ab[205] / ab[105]).sqrt() * ((ab[105] / ab[5]).sqrt() * x[0] + level(5, 105) * first[0])
    expected[0] += level(105, 205) * second[0]
    expected[2] = (ab[405] / ab[5]).sqrt() * x[2] + level(5, 405) * second[2]
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
