"""The coefficients against their closed forms, which a Gaussian teacher has (distillation/dca.py)."""

from __future__ import annotations

import copy

import pytest
import torch
from dreammapping.distillation import (
    COEFFICIENTS,
    CutOff,
    Distiller,
    DistillerSettings,
    LossContext,
    NoiseSchedule,
    NoisyDraw,
    build_coefficient,
    build_loss,
    draw_noise,
)
from dreammapping.errors import ConfigError
from dreammapping.teachers import ClosedFormTeacher, GaussianMixture

from tests.helpers.score import SHAPE, embeddings, gaussian_teacher, make_draw, prompted

SCHEDULE = NoiseSchedule.scaled_linear()
MEAN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
CUT_OFF = CutOff(300)
BINS, EDGE = 10, 50


def teacher(variance: float) -> ClosedFormTeacher:
    return ClosedFormTeacher({"cond": GaussianMixture.single(MEAN, variance)})


def draws(count: int, distance: float, generator: torch.Generator, t: int | None = None):
    """Draws of one picture that is `distance` (rms) from the teacher's mean; all t, or one."""
    away = torch.randn(SHAPE, generator=generator)
    clean = (MEAN + distance * away / away.square().mean().sqrt()).expand(8, *SHAPE)
    for _ in range(count):
        steps = torch.randint(0, 1000, (8,), generator=generator) if t is None else torch.full((8,), t)
        yield NoisyDraw.noised(clean, draw_noise(clean, generator), steps, SCHEDULE)


def best(rule: str, operator: str, t: int, variance: float, distance: float) -> float:
    """The coefficient from a, sig, v and |x_0 - mu| alone."""
    ab = SCHEDULE.alpha_bar[t].item()
    sig = (1 - ab) ** 0.5
    k = sig / (ab * variance + 1 - ab)
    cond_eps, cond_cond = k * sig, k**2 * (ab * distance**2 + 1 - ab)
    table = {
        ("decorrelate", "eps"): cond_eps,
        ("decorrelate", "identity"): 1.0,
        ("predict", "eps"): 1.0,
        ("predict", "identity"): cond_eps / cond_cond,
        ("correlation", "eps"): cond_eps / cond_cond**0.5,
        ("correlation", "identity"): cond_eps / cond_cond**0.5,
    }
    return table[rule, operator]


def measured(operator: str, variance: float, distance: float, t: int | None = None, count: int = 150, **options):
    made = build_coefficient({"type": "measured", "bins": BINS, "pull": 1e-6, "decay": 0.99, **options}, SCHEDULE, CUT_OFF)
    model = teacher(variance)
    for draw in draws(count, distance, torch.Generator().manual_seed(3), t):
        cond = model.predict(draw.noisy, draw.t, {"cond": None})["cond"]
        made.observe(draw, cond, draw.noise if operator == "eps" else cond)
    return made


@pytest.mark.parametrize("operator", ["eps", "identity"])
@pytest.mark.parametrize("rule", ["decorrelate", "predict", "correlation"])
def test_measured_is_the_known_optimum(rule, operator):
    for t in (150, 450, 950):
        made = measured(operator, 0.5, 2.0, t, rule=rule, largest=10.0)
        expected = best(rule, operator, t, 0.5, 2.0)
        assert made.values()[t * BINS // 1000].item() == pytest.approx(expected, rel=0.03)


def test_decorrelate_is_the_papers_annealing_for_unit_variance_and_goes_on_above_the_cut_off():
    for t in (150, 450):
        ab = SCHEDULE.alpha_bar[t].item()
        assert best("decorrelate", "eps", t, 1.0, 3.0) == pytest.approx(1 - ab)
        assert measured("eps", 1.0, 3.0, t).values()[t * BINS // 1000].item() == pytest.approx(1 - ab, abs=0.02)


def test_decorrelate_leaves_nothing_of_the_noise():
    made = measured("eps", 0.5, 2.0, 450)
    model, left, before = teacher(0.5), 0.0, 0.0
    for draw in draws(50, 2.0, torch.Generator().manual_seed(8), 450):
        cond = model.predict(draw.noisy, draw.t, {"cond": None})["cond"]
        left += ((cond - made(draw) * draw.noise) * draw.noise).mean().item() / 50
        before += ((cond - CUT_OFF.lam(draw.t, draw.alpha_bar.flatten()).view(-1, 1, 1, 1) * draw.noise) * draw.noise).mean().item() / 50
    assert abs(left) < 0.02 < 0.1 < abs(before)


def test_a_perfect_operator_needs_no_annealing_by_the_rule_predict():
    """Pictures of the teacher's own distribution: e_c = E[eps | x_t], and the identity is the best M."""
    options = {"rule": "predict", "bins": BINS, "decay": 0.99, "pull": 1e-6, "largest": 2.0}
    made = build_coefficient({"type": "measured", **options}, SCHEDULE, CUT_OFF)
    model, generator = teacher(0.5), torch.Generator().manual_seed(1)
    for _ in range(150):
        clean = MEAN + 0.5**0.5 * torch.randn(8, *SHAPE, generator=generator)
        draw = NoisyDraw.noised(clean, draw_noise(clean, generator), torch.full((8,), 250), SCHEDULE)
        cond = model.predict(draw.noisy, draw.t, {"cond": None})["cond"]
        made.observe(draw, cond, cond)
    assert made.values()[2].item() == pytest.approx(1.0, abs=0.03)


def test_it_starts_as_the_fixed_rule_and_bins_without_draws_stay_there():
    fixed = CUT_OFF.lam(torch.arange(EDGE, 1000, 100), SCHEDULE.alpha_bar[EDGE::100])
    made = build_coefficient({"type": "measured", "bins": BINS}, SCHEDULE, CUT_OFF)
    torch.testing.assert_close(made.values(), fixed.float())
    after = measured("eps", 0.5, 2.0, 450).values()
    assert torch.equal(after[[0, 9]], measured("eps", 0.5, 2.0, 450, count=0).values()[[0, 9]])
    assert after[4] != fixed[4]


def test_between_the_middles_of_the_bins_it_is_linear():
    made = build_coefficient({"type": "measured", "bins": BINS}, SCHEDULE, CUT_OFF)
    made.above.copy_(torch.linspace(0.1, 1, BINS))
    made.start.copy_(made.above)
    draw = make_draw(gaussian_teacher(), [0, 49, 100, 149, 999])
    expected = [0.1, 0.1 * (49.5 / 50 * 0.5 + 0.5 + 0.005), 0.1 + 0.1 * 0.505, 0.1995, 1.0]
    torch.testing.assert_close(made(draw).flatten(), torch.tensor(expected), atol=1e-3, rtol=0)


def test_vanishing_denominators_give_the_fixed_rule_and_overflows_are_left_out():
    made = build_coefficient({"type": "measured", "bins": BINS}, SCHEDULE, CUT_OFF)
    draw = make_draw(gaussian_teacher(), [250] * 4)
    nothing = torch.zeros_like(draw.noise)
    for _ in range(100):
        made.observe(draw, nothing, nothing)
    assert made.values()[2].item() == pytest.approx(made.start[2].item(), abs=0.01)
    before = made.values().clone()
    made.observe(draw, torch.full_like(draw.noise, torch.inf), draw.noise)
    assert torch.equal(made.values(), before)
    for _ in range(200):
        made.observe(draw, draw.noise, 0.1 * draw.noise)
    assert made.values()[2].item() == 1.0, "largest"
    for _ in range(200):
        made.observe(draw, -draw.noise, draw.noise)
    assert made.values()[2].item() == 0.0


def test_an_average_forgets_by_its_decay():
    made = build_coefficient({"type": "measured", "bins": BINS, "decay": 0.9, "pull": 1e-6}, SCHEDULE, CUT_OFF)
    draw = make_draw(gaussian_teacher(), [950] * 3)
    made.observe(draw, 0 * draw.noise, draw.noise)
    size = draw.noise.square().mean().item()
    left = 0.9**3
    assert made.values()[9].item() == pytest.approx(left / (left + (1 - left) * size), rel=1e-4)


def test_learned_is_monotone_and_ends_at_one_and_starts_as_one_minus_alpha_bar():
    made = build_coefficient({"type": "learned"}, SCHEDULE, CUT_OFF)
    at = torch.linspace(0, 999, 17).round().long()
    torch.testing.assert_close(made.values()[1:], 1 - SCHEDULE.alpha_bar[at][1:].float(), atol=0.01, rtol=0)
    with torch.no_grad():
        made.theta.copy_(3 * torch.randn(17, generator=torch.Generator().manual_seed(0)))
    draw = make_draw(gaussian_teacher(), list(range(0, 1000, 37)) + [999])
    lam = made(draw).flatten()
    assert (lam.diff() >= 0).all() and lam[0] >= 0 and lam[-1].item() == pytest.approx(1.0, abs=1e-6)
    assert not lam.requires_grad


def test_learned_comes_to_the_optimum_of_its_loss():
    """M = the identity, and the picture far from the teacher's mean: lam = E<e_c, eps> / E|e_c|^2, which rises with t."""
    made, model = build_coefficient({"type": "learned", "knots": 9}, SCHEDULE, CUT_OFF), teacher(0.5)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.03)
    wanted = [best("predict", "identity", t, 0.5, 2.0) for t in (125, 375, 750)]

    def off():
        values = made(make_draw(gaussian_teacher(), [125, 375, 750])).flatten().tolist()
        return max(abs(value - one) for value, one in zip(values, wanted))

    before = off()
    for draw in draws(500, 2.0, torch.Generator().manual_seed(4)):
        cond = model.predict(draw.noisy, draw.t, {"cond": None})["cond"]
        optimizer.zero_grad()
        made.loss(draw, cond).backward()
        optimizer.step()
    assert off() < 0.08 < 0.15 < before, (before, off())


def build(name: str, seed: int = 0, **options) -> Distiller:
    model, generator = gaussian_teacher(), torch.Generator().manual_seed(seed)
    config = {"type": "vdm", "stages": 1, "dca": {"type": name}, **options}
    return Distiller(build_loss(config, LossContext(model, SHAPE, generator)), model, DistillerSettings(), generator)


def step(made: Distiller, number: int):
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(number), requires_grad=True)
    return made(x, embeddings(), step=number)


@pytest.mark.parametrize("name", COEFFICIENTS.names())
def test_in_vdm_it_stands_before_the_operator_and_goes_on_after_a_restart(name):
    original, restored = build(name), build(name, seed=9)
    for number in range(3):
        step(original, number)
    restored.loss.load_state_dict(copy.deepcopy(original.loss.state_dict()))
    restored.load_state_dict(copy.deepcopy(original.state_dict()))
    for number in (3, 4):
        a, b = step(original, number), step(restored, number)
        assert torch.equal(a.gradient, b.gradient)
        torch.testing.assert_close(a.diagnostics["dca_coefficient"], b.diagnostics["dca_coefficient"])
    loss, draw = original.loss, make_draw(original.teacher, [20, 700])
    answers = loss.ask(draw, prompted(original.teacher))
    lam = loss.coefficient(draw).clone()
    result, mapped = loss(draw, answers), loss.degrade(answers.cond, draw).detach()
    torch.testing.assert_close(result.residual, answers.guided - lam * mapped)
    assert ("dca" in result.auxiliary) == (name == "learned")


@pytest.mark.parametrize("name", ["measured", "learned"])
def test_a_run_changes_it(name):
    made = build(name)
    before = made.loss.coefficient.values().detach().clone()
    for number in range(5):
        step(made, number)
    assert not torch.equal(made.loss.coefficient.values(), before)


def test_the_operator_is_trained_as_without_the_learned_coefficient():
    made, plain = build("learned"), build("fixed")
    for number in range(2):
        step(made, number), step(plain, number)
    for a, b in zip(made.loss.operator.parameters(), plain.loss.operator.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "mesured"}, "unknown loss.dca.type 'mesured'; did you mean 'measured'"),
        ({"type": "measured", "binz": 3}, "loss.dca.binz is not a known key; did you mean 'bins'"),
        ({"type": "measured", "rule": "best"}, "loss.dca.rule is 'best'; it must be one of 'decorrelate'"),
        ({"type": "measured", "bins": 1}, "bins must be at least 2"),
        ({"type": "measured", "decay": 1.0}, "decay at least 0 and below 1"),
        ({"type": "measured", "pull": 0}, "pull and largest must be above 0"),
        ({"type": "learned", "knots": 1}, "loss.dca.knots is 1"),
        ({"type": "fixed", "bins": 3}, "loss.dca.bins is not a known key"),
    ],
)
def test_mistakes(block, message):
    with pytest.raises(ConfigError, match=message):
        build_coefficient(block, SCHEDULE, CUT_OFF)
