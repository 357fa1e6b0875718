"""VDM + DCA in the limits where the paper's formulas are known, for each of its options."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import LossContext, NoisyDraw, build_loss, draw_noise
from dreammapping.errors import ConfigError

from tests.helpers.score import SHAPE, gaussian_teacher, make_draw, prompted

S = 7.5
T = [20, 299, 300, 301, 900]


class Returns(torch.nn.Module):
    """An operator that answers what it was told to; its parameter lets L_op have a gradient."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def forward(self, eps, t=None):
        return (eps if self.answer is None else self.answer) + self.zero


@pytest.fixture
def case():
    teacher = gaussian_teacher(torch.float64)
    draw = make_draw(teacher, T, dtype=torch.float64)
    return teacher, draw, prompted(teacher, scale=S, batch=len(T))


def build(teacher, **options):
    context = LossContext(teacher, SHAPE, torch.Generator().manual_seed(0))
    return build_loss({"type": "vdm", "operator": "linear", "m_dtype": "float64", **options}, context)


def run(case, operator=None, **options):
    teacher, draw, asked = case
    loss = build(teacher, **options)
    if operator is not None:
        loss.operator = operator
    answers = loss.ask(draw, asked)
    return loss(draw, answers), answers, draw


def lam(draw, cutoff=300, inclusive=True):
    alpha_bar = draw.alpha_bar.flatten().tolist()
    values = [1 - ab if (t <= cutoff if inclusive else t < cutoff) else 1.0 for t, ab in zip(T, alpha_bar)]
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def test_the_residual_is_equation_19_inside_equation_10(case):
    result, a, draw = run(case)  # the linear operator starts as the identity
    expected = a.cond - lam(draw) * a.cond + S * (a.cond - a.uncond)
    torch.testing.assert_close(result.residual, expected)


def test_with_the_true_noise_it_is_sds(case):
    _, draw, _ = case
    result, a, _ = run(case, Returns(draw.noise), dca_cutoff=None)
    torch.testing.assert_close(result.residual, a.guided - draw.noise)
    assert result.auxiliary["op"].item() == 0


def test_with_the_identity_only_guidance_is_left(case):
    result, a, _ = run(case, dca_cutoff=None)
    torch.testing.assert_close(result.residual, S * (a.cond - a.uncond))


def test_with_nothing_it_is_the_guided_prediction_and_the_loss_is_that_of_the_noise(case):
    _, draw, _ = case
    result, a, _ = run(case, Returns(torch.zeros_like(draw.noise)))
    torch.testing.assert_close(result.residual, a.guided)
    torch.testing.assert_close(result.auxiliary["op"], draw.noise.square().mean())


@pytest.mark.parametrize(
    ("options", "cutoff", "inclusive"),
    [
        ({}, 300, True),
        ({"dca_inclusive": False}, 300, False),
        ({"dca_cutoff": None}, -1, True),
        ({"dca_cutoff": -1}, -1, True),
        ({"dca_cutoff": 999}, 999, True),
    ],
)
def test_annealing_coefficient(case, options, cutoff, inclusive):
    teacher, draw, _ = case
    torch.testing.assert_close(build(teacher, **options).coefficient(draw), lam(draw, cutoff, inclusive))


def test_where_guidance_enters(case):
    _, draw, _ = case
    coefficient = lam(draw)
    for options, expected in (
        ({"cfg_place": "none"}, lambda a, g: a.cond - coefficient * a.cond),
        ({"cfg_place": "inside"}, lambda a, g: a.cond - coefficient * g),
        ({"m_input": "cfg"}, lambda a, g: g - coefficient * g),
    ):
        result, a, _ = run(case, **options)
        torch.testing.assert_close(result.residual, expected(a, a.guided))


def test_without_guidance_the_network_runs_once_per_image(case):
    teacher, *_ = case
    run(case, cfg_place="none")
    assert teacher.calls.forwards == len(T)
    run(case)
    assert teacher.calls.forwards == 3 * len(T)


def test_operator_loss_options(case):
    _, draw, _ = case
    zero = Returns(torch.zeros_like(draw.noise))
    per_image = draw.noise.square().mean((1, 2, 3))
    weighted, _, _ = run(case, zero, op_weight="one_minus_alpha_bar")
    torch.testing.assert_close(weighted.auxiliary["op"], (per_image * (1 - draw.alpha_bar.flatten())).mean())
    late, _, _ = run(case, zero, op_tmin=301)
    torch.testing.assert_close(late.auxiliary["op"], per_image[3:].mean())
    never, _, _ = run(case, zero, op_tmin=950)
    assert "op" not in never.auxiliary


def test_jacobian_factor_and_warmup(case):
    plain, a, draw = run(case)
    scaled, *_ = run(case, jac_sqrt_ab=True)
    torch.testing.assert_close(scaled.residual, plain.residual * draw.alpha_bar.sqrt())
    warming, *_ = run(case, psi_warmup=1)
    torch.testing.assert_close(warming.residual, a.guided - lam(draw) * draw.noise)


def test_gradients_stay_where_they_belong(case):
    result, *_ = run(case)
    assert not result.residual.requires_grad
    assert result.auxiliary["op"].requires_grad
    assert all(not d.requires_grad for d in result.diagnostics.values())


def test_running_statistics_only_serve_the_residual():
    teacher = gaussian_teacher()
    draw = make_draw(teacher, T)
    loss = build(teacher, operator="nonlinear", m_dtype="float32", bn_mode="eval", dca_cutoff=None)
    answers = loss.ask(draw, prompted(teacher, batch=len(T)))
    mean_before = loss.operator.encoders[0].norm.running_mean.clone()
    result = loss(draw, answers)
    assert not torch.equal(mean_before, loss.operator.encoders[0].norm.running_mean)
    loss.operator.eval()
    with torch.no_grad():
        expected = answers.guided - loss.operator(answers.cond)
    torch.testing.assert_close(result.residual, expected)


def test_switching_the_system_to_eval_does_not_change_the_operator():
    teacher = gaussian_teacher()
    draw = make_draw(teacher, T)
    loss = build(teacher, operator="nonlinear", m_dtype="float32")
    answers = loss.ask(draw, prompted(teacher, batch=len(T)))
    expected = loss(draw, answers).residual
    torch.testing.assert_close(loss.eval()(draw, answers).residual, expected)


def test_time_conditioning_starts_without_effect_and_learns_t():
    teacher = gaussian_teacher(torch.float64)
    draw = make_draw(teacher, T, dtype=torch.float64)
    loss = build(teacher, m_time_cond=True)
    torch.testing.assert_close(loss.degrade(draw.noise, draw), draw.noise)
    torch.nn.init.normal_(loss.operator.network[-1].weight)
    out = loss.operator(draw.noise[:1].expand(5, -1, -1, -1), draw.t)
    assert not torch.allclose(out[0], out[4])


def test_with_t_one_operator_fits_every_step():
    """The best factor of e_c is another at every t: E|eps - f e_c|^2 has the minimum 1 - E<e_c, eps>^2 / E|e_c|^2."""
    teacher, t = gaussian_teacher(), torch.tensor([30, 900] * 4)
    clean = teacher.distributions["cond"].means + 2.0
    ab = teacher.schedule.alpha_bar[[30, 900]]
    least = 4 * ab / (4 * ab + 1 - ab)  # |x_0 - mu|^2 = 4
    errors = {}
    for conditioned in (False, True):
        loss = build(teacher, m_dtype="float32", m_time_cond=conditioned)
        optimizer, generator = torch.optim.Adam(loss.parameters(), lr=0.02), torch.Generator().manual_seed(2)
        for _ in range(300):
            draw = NoisyDraw.noised(clean.expand(8, *SHAPE), draw_noise(t.new_empty(8, *SHAPE).float(), generator), t, teacher.schedule)
            cond = teacher.predict(draw.noisy, t, {"cond": torch.zeros(1, 1, 1)})["cond"]
            mapped = loss.degrade(cond, draw)
            optimizer.zero_grad()
            loss.operator_loss(mapped, draw).backward()
            optimizer.step()
        errors[conditioned] = (mapped - draw.noise).square().mean((1, 2, 3)).view(4, 2).mean(0) / least
    assert (errors[True] < 1.1).all() and errors[False].max() > 1.3, errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutof": 1}, "loss.cutof is not a known key"),
        ({"operator": "nonlinaer"}, "did you mean 'nonlinear'"),
        ({"cfg_place": "none", "m_input": "cfg"}, "cfg_place inside"),
        ({"psi_steps": -1}, "must not be negative"),
        ({"bn_mode": "frozen"}, "must be one of 'train', 'eval', 'groupnorm'"),
        ({"operator": "nonlinear", "stages": 5}, "multiples of 2\\^5"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        build(gaussian_teacher(), **options)
