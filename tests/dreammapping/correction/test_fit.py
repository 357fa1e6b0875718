"""Pairs, fit and figures against a teacher whose answers are known in closed form."""

from __future__ import annotations

import pytest
import torch
from dreammapping.correction import build_corrector
from dreammapping.correction.fit import FitOptions, corrector_loss, fit
from dreammapping.correction.measure import as_text, band_errors
from dreammapping.correction.pairs import Pairs, make_pairs
from dreammapping.errors import ConfigError, DreamMappingError
from dreammapping.teachers import ClosedFormTeacher, GaussianMixture

SHAPE = (4, 8, 8)
CPU = torch.device("cpu")
VARIANCE = 0.05


def silent(line):
    pass


def mean():
    return torch.tensor([1.0, -0.5, 0.5, -1.0]).view(4, 1, 1).expand(SHAPE)


def teacher():
    return ClosedFormTeacher({"cond": GaussianMixture.single(mean(), VARIANCE)})


class Drawn:
    """Images of the teacher's distribution; counts who asked."""

    def __init__(self, count=24):
        self.captions, self.asked = [f"image {i}" for i in range(count)], []

    def latents(self, teacher, indices, text, generator, device):
        self.asked.append(list(indices))
        return mean() + VARIANCE**0.5 * torch.randn(len(indices), *SHAPE, generator=generator)


def pairs(folder, images=None, **changes):
    options = {"times": 3, "batch": 8, "seed": 0, "device": CPU, "report": silent} | changes
    return make_pairs(teacher(), images or Drawn(), lambda texts: torch.zeros(len(texts), 1, 1), folder, **options)


def same(a: Pairs, b: Pairs) -> bool:
    return all(torch.equal(getattr(a, key), getattr(b, key)) for key in ("clean", "t", "noisy", "estimate"))


def fitted(corrector, made, options, folder, say=silent, loss=corrector_loss):
    fit(corrector.network, lambda index: loss(corrector, made, index, teacher().schedule), len(made), options, folder, say)
    return corrector.state_dict()


def best(clean, alpha_bar):
    """E[estimate | x_0] for N(mean, VARIANCE I), by hand."""
    noise = 1 - alpha_bar
    return clean - noise * (clean - mean()) / (VARIANCE * alpha_bar + noise)


def test_pairs_are_the_teachers_estimates(tmp_path):
    made = pairs(tmp_path)
    assert made.clean.shape == (24, *SHAPE) and made.noisy.shape == (24, 3, 2, *SHAPE) and len(made) == 144
    alpha_bar = teacher().schedule.alpha_bar[made.t].float()[:, :, None, None, None, None]
    noise = (made.noisy.float() - alpha_bar.sqrt() * made.clean[:, None, None]) / (1 - alpha_bar).sqrt()
    late = made.t > 100  # float16 hides the noise of small t
    assert abs(noise[late].std() - 1) < 0.02 and abs(noise[late].mean()) < 0.02
    assert not torch.equal(noise[:, :, 0], noise[:, :, 1])
    x_t = made.noisy.double()
    spread = VARIANCE * alpha_bar + 1 - alpha_bar
    eps = (1 - alpha_bar).sqrt() * (x_t - alpha_bar.sqrt() * mean()) / spread
    expected = (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    torch.testing.assert_close(made.estimate.double(), expected, atol=4e-3, rtol=2e-2)


def test_rows_belong_together(tmp_path):
    made = pairs(tmp_path)
    clean, noisy, t, estimate = made.rows(torch.tensor([0, 1, 2, 6 * 5 + 3]))
    for row, (image, time, noise) in enumerate([(0, 0, 0), (0, 0, 1), (0, 1, 0), (5, 1, 1)]):
        assert torch.equal(clean[row], made.clean[image]) and t[row] == made.t[image, time]
        assert torch.equal(noisy[row], made.noisy[image, time, noise].float())
        assert torch.equal(estimate[row], made.estimate[image, time, noise].float())


def test_missing_parts_are_made_again_alike(tmp_path):
    images = Drawn()
    whole = pairs(tmp_path, images)
    assert images.asked == [list(range(8)), list(range(8, 16)), list(range(16, 24))]
    (tmp_path / "part-0001.safetensors").unlink()
    again = Drawn()
    assert same(pairs(tmp_path, again), whole) and again.asked == [list(range(8, 16))]
    assert not same(pairs(tmp_path / "other", seed=1), whole)


def test_every_eighth_image_is_held_out(tmp_path):
    made = pairs(tmp_path)
    shown, held = made.subset(held_out=False), made.subset(held_out=True)
    assert torch.equal(held.clean, made.clean[7::8]) and len(shown.clean) == 21 and len(held) == 18


@pytest.mark.parametrize("reads", ["clean", "noisy"])
def test_the_fit_finds_the_known_answer(tmp_path, reads):
    made = pairs(tmp_path, Drawn(64), times=8)
    schedule = teacher().schedule
    corrector = build_corrector(SHAPE, reads, (8,))
    fitted(corrector, made, FitOptions(steps=100, batch=16, lr=1e-2, warmup=10), tmp_path)
    t = torch.tensor([200, 500, 800])
    generator = torch.Generator().manual_seed(9)
    clean = mean() + VARIANCE**0.5 * torch.randn(3, *SHAPE, generator=generator)
    noisy = schedule.add_noise(clean, torch.randn(3, *SHAPE, generator=generator), t)
    alpha_bar = schedule.at(t, clean)
    known = best(clean if reads == "clean" else noisy / alpha_bar.sqrt(), alpha_bar)
    untrained = build_corrector(SHAPE, reads, (8,))
    with torch.no_grad():
        errors = [
            (c(clean, noisy, t, alpha_bar) - known).square().mean((1, 2, 3)).sqrt() for c in (corrector, untrained)
        ]
    assert (errors[0] < 0.8 * errors[1]).all() and errors[0].mean() < 0.5 * errors[1].mean(), errors


def test_a_killed_fit_goes_on_to_the_same_weights(tmp_path):
    made = pairs(tmp_path)
    options = FitOptions(steps=7, batch=4, save_every=3)
    build = lambda: build_corrector(SHAPE, "clean", (8,))  # noqa: E731
    whole = fitted(build(), made, options, tmp_path / "whole")

    calls = []

    def counted(*args):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return corrector_loss(*args)

    with pytest.raises(KeyboardInterrupt):
        fitted(build(), made, options, tmp_path / "killed", loss=counted)
    lines = []
    again = fitted(build(), made, options, tmp_path / "killed", lines.append, loss=counted)
    assert lines[0] == "going on at step 3" and len(calls) == 5 + 4
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    done = fitted(build(), made, options, tmp_path / "killed", loss=counted)
    assert len(calls) == 9 and all(torch.equal(whole[key], done[key]) for key in whole)


def test_the_loss_is_the_weighted_error(tmp_path):
    made = pairs(tmp_path)
    corrector, schedule = build_corrector(SHAPE, "clean", (8,)), teacher().schedule
    index = torch.tensor([3, 77])
    clean, _, t, estimate = made.rows(index)
    total = 0.0
    for i in range(2):
        alpha_bar = schedule.alpha_bar[t[i]].item()
        total += ((alpha_bar * clean[i] - estimate[i]) ** 2).mean().item() / (1 - alpha_bar)
    assert corrector_loss(corrector, made, index, schedule).item() == pytest.approx(total / 2, rel=1e-5)


def test_a_diverged_fit_says_so(tmp_path):
    made = pairs(tmp_path)
    made.estimate[:] = float("nan")
    with pytest.raises(DreamMappingError, match="loss is nan at step 2.*lower --lr"):
        options = FitOptions(steps=2, batch=4)
        fitted(build_corrector(SHAPE, "clean", (8,)), made, options, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_figures_per_band(tmp_path):
    made = pairs(tmp_path)
    schedule = teacher().schedule
    table = band_errors(build_corrector(SHAPE, "clean", (8,)), made, schedule, bands=2)
    assert [(row["t_from"], row["t_to"]) for row in table] == [(0, 499), (500, 999)]
    assert sum(row["pairs"] for row in table) == len(made)
    early = made.t < 500
    estimate, clean = made.estimate[early].double(), made.clean[:, None].expand(-1, 3, -1, -1, -1)[early].double()
    alpha_bar = schedule.alpha_bar[made.t[early]].view(-1, 1, 1, 1)
    expected = {
        "corrector": (alpha_bar * clean)[:, None] - estimate,
        "untrained": (alpha_bar * clean)[:, None] - estimate,
        "image": clean[:, None] - estimate,
        "zero": estimate,
        "noise": (estimate[:, 0] - estimate[:, 1]) / 2**0.5,
    }
    for name, error in expected.items():
        assert table[0][name] == pytest.approx(error.square().mean().item(), rel=1e-3, abs=2e-5), name
    assert len(as_text(table).splitlines()) == 3


def test_sizes_that_cannot_be():
    with pytest.raises(ConfigError, match="halve the latents 1 times, which 9 x 8"):
        build_corrector((4, 9, 8))
    with pytest.raises(ConfigError, match="multiple of 8"):
        build_corrector(SHAPE, widths=(12,))


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = build_corrector(SHAPE, seed=1), build_corrector(SHAPE, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
