"""The closed-form teachers against the score by automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import AdapterOptions
from dreammapping.errors import TeacherError
from dreammapping.teachers import ClosedFormTeacher, GaussianMixture

SHAPE = (2, 3, 3)
T = torch.tensor([1, 250, 700, 999])


def generator():
    return torch.Generator().manual_seed(0)


def mixture(components):
    g = generator()
    return GaussianMixture(
        means=torch.randn(components, *SHAPE, generator=g, dtype=torch.float64),
        variances=torch.rand(components, generator=g, dtype=torch.float64) + 0.1,
        weights=torch.rand(components, generator=g, dtype=torch.float64) + 0.1,
    )


@pytest.mark.parametrize("components", [1, 3])
def test_eps_is_minus_sigma_times_the_score(components):
    teacher = ClosedFormTeacher({"cond": mixture(components)})
    x = torch.randn(4, *SHAPE, generator=generator(), dtype=torch.float64, requires_grad=True)
    a, sig = teacher.schedule.coefficients(T, x)
    (score,) = torch.autograd.grad(teacher.distributions["cond"].log_density(x, a, sig).sum(), x)
    eps = teacher.predict(x, T, {"cond": None})["cond"]
    torch.testing.assert_close(eps, -sig * score)
    assert not eps.requires_grad and teacher.predict(x, T, {"cond": None}, differentiable=True)["cond"].requires_grad


def test_log_density_of_a_gaussian_equals_torchs():
    mean = torch.randn(SHAPE, dtype=torch.float64)
    gaussian = GaussianMixture.single(mean, 0.3)
    teacher = ClosedFormTeacher({"cond": gaussian})
    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    a, sig = teacher.schedule.coefficients(T, x)
    spread = (a**2 * 0.3 + sig**2).sqrt()
    expected = torch.distributions.Normal(a * mean, spread.expand_as(x)).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(gaussian.log_density(x, a, sig), expected)


def test_eps_is_the_mean_of_the_noise_given_the_noisy_image():
    """E[eps] over the joint of (x_0, eps) equals E[eps(x_t)]: checked by the best linear predictor of eps from x_t."""
    variance, t = 0.5, torch.tensor([400])
    teacher = ClosedFormTeacher({"cond": GaussianMixture.single(torch.zeros(1, 1, 1, dtype=torch.float64), variance)})
    g = generator()
    x0 = variance**0.5 * torch.randn(20000, 1, 1, 1, generator=g, dtype=torch.float64)
    eps = torch.randn(20000, 1, 1, 1, generator=g, dtype=torch.float64)
    xt = teacher.schedule.add_noise(x0, eps, t)
    slope = (xt * eps).mean() / (xt * xt).mean()
    predicted = teacher.predict(xt, t, {"cond": None})["cond"]
    torch.testing.assert_close(predicted / xt, slope.expand_as(xt), rtol=0.03, atol=0)


def test_calls_are_counted_and_unknown_names_are_told():
    teacher = ClosedFormTeacher({"cond": mixture(1), "empty": mixture(2)})
    x = torch.randn(4, *SHAPE)
    teacher.predict(x, T, {"cond": None, "empty": None})
    assert (teacher.calls.forwards, teacher.calls.backwards) == (8, 0)
    with pytest.raises(TeacherError, match="'emtpy'; did you mean 'empty'"):
        teacher.predict(x, T, {"emtpy": None})


def test_images_are_latents():
    teacher = ClosedFormTeacher({"cond": mixture(1)})
    rgb = torch.rand(2, *SHAPE)
    torch.testing.assert_close(teacher.decode(teacher.encode(rgb, generator())), rgb)


def test_an_embedding_moves_its_distribution_where_the_teacher_reads_them():
    directions = torch.randn(5, *SHAPE, generator=generator(), dtype=torch.float64)
    plain, reading = mixture(2), torch.rand(1, 3, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    teacher = ClosedFormTeacher({"cond": plain, "empty": plain}, by_text=directions)
    x = torch.randn(4, *SHAPE, generator=generator(), dtype=torch.float64)
    moved = (reading.sum((0, 1)).view(5, 1, 1, 1) * directions).sum(0)
    there = ClosedFormTeacher({"cond": GaussianMixture(plain.means + moved, plain.variances, plain.weights)})
    got = teacher.predict(x, T, {"cond": reading, "empty": torch.zeros(4, 3, 5)}, differentiable=True)
    expected = there.predict(x, T, {"cond": None}, differentiable=True)["cond"]
    torch.testing.assert_close(got["cond"], expected)
    torch.testing.assert_close(got["empty"], ClosedFormTeacher({"c": plain}).predict(x, T, {"c": None})["c"])
    (gradient,) = torch.autograd.grad(got["cond"].square().sum(), reading, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), reading)[0])
    assert gradient.abs().min() > 0 and teacher.calls.backwards == 8, "one call of four images under two names"
    assert not teacher.predict(x, T, {"cond": reading})["cond"].requires_grad


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_scale_of_a_copy_is_how_far_its_training_moves_it(scale):
    start = mixture(1)
    teacher = ClosedFormTeacher({"cond": start})
    copy = teacher.trainable_copy(AdapterOptions(camera=False, scale=scale), generator())
    x = torch.randn(4, *SHAPE, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(copy.predict(x, T, None, None), teacher.predict(x, T, {"cond": None})["cond"])
    with torch.no_grad():
        copy.adapter["means"].add_(3.0)
        copy.adapter["log_variances"].add_(0.4)
    variances = start.variances * torch.tensor(0.4 * scale, dtype=torch.float64).exp()
    there = ClosedFormTeacher({"cond": GaussianMixture(start.means + 3 * scale, variances, start.weights)})
    torch.testing.assert_close(copy.predict(x, T, None, None), there.predict(x, T, {"cond": None})["cond"])
