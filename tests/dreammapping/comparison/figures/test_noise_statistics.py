"""Figure 11: against the closed form, against numpy, and the command on a miniature Stable Diffusion."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from dreammapping.comparison.figures import noise_statistics
from dreammapping.comparison.figures.noise_moments import KINDS, NoiseMoments, measure
from dreammapping.distillation import CFGConvention, PromptedTeacher
from dreammapping.teachers import ClosedFormTeacher, GaussianMixture
from PIL import Image

from tests.helpers.tiny_teacher import make_tiny_teacher

SHAPE = (4, 8, 8)
VARIANCE, DISTANCE, S = 0.5, 2.0, 3.0
SMALL = "--count 4 --times 3 --noises 2 --batch 3 --sample-steps 2 --device cpu".split()


def prompted(pictures: int) -> PromptedTeacher:
    """cond N(0, VARIANCE I), empty N(0, I)."""
    zero = torch.zeros(SHAPE)
    teacher = ClosedFormTeacher(
        {"cond": GaussianMixture.single(zero, VARIANCE), "empty": GaussianMixture.single(zero, 1.0)}
    )
    texts = {"cond": torch.zeros(pictures, 1, 1), "empty": torch.zeros(1, 1, 1)}
    return PromptedTeacher(teacher, texts, guidance_scale=S, convention=CFGConvention.SEED)


@pytest.mark.parametrize("t", [100, 500, 900])
def test_the_closed_form(t):
    """e = k (a x_0 + sig eps), k_c = sig / (a^2 v + sig^2), k_u = sig; guided k = k_c + s (k_c - k_u)."""
    teacher = prompted(32)
    generator = torch.Generator().manual_seed(0)
    clean = DISTANCE * torch.randn(32, *SHAPE, generator=generator)
    found = measure(clean, teacher, t, 6, generator, batch=10)
    ab = teacher.schedule.alpha_bar[t].item()
    a, sig = math.sqrt(ab), math.sqrt(1 - ab)
    plain = sig / (ab * VARIANCE + 1 - ab)
    size = clean.square().mean().item()
    for kind, k in {"conditional": plain, "guided": plain + S * (plain - sig)}.items():
        got, both = found[kind], ab * size + 1 - ab
        assert got.variance == pytest.approx(k**2 * both, rel=0.03)
        assert got.variance_over_noise == pytest.approx((k * sig) ** 2, rel=0.03)
        assert got.correlation == pytest.approx(sig / math.sqrt(both), abs=0.02)
        assert got.mse == pytest.approx((k * sig - 1) ** 2 + (k * a) ** 2 * size, rel=0.05, abs=0.01)
        assert got.noise_on_prediction == pytest.approx(sig / (k * both), rel=0.05, abs=0.01)
        assert got.prediction_on_noise == pytest.approx(k * sig, rel=0.05, abs=0.02)
        assert 0 < got.correlation_error < 0.02


def test_the_moments_are_numpys():
    generator = torch.Generator().manual_seed(1)
    e, n = (torch.randn(3, 5, *SHAPE, generator=generator) + 0.3 for _ in range(2))  # 3 noises of 5 pictures
    n = n + 0.5 * e
    moments = NoiseMoments()
    for predictions, noise in zip(e, n):
        moments.add_round(predictions, noise)
    got, x, y = moments.statistics(), e.double().numpy(), n.double().numpy()
    assert got.variance == pytest.approx(x.var())
    assert got.variance_over_noise == pytest.approx(x.var(0, ddof=1).mean())
    assert got.correlation == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1])
    each = [np.corrcoef(x[:, i].ravel(), y[:, i].ravel())[0, 1] for i in range(5)]
    assert got.correlation_error == pytest.approx(np.std(each, ddof=1) / math.sqrt(5))
    assert got.mse == pytest.approx(((x - y) ** 2).mean())
    assert got.noise_on_prediction == pytest.approx(np.linalg.lstsq(x.reshape(-1, 1), y.ravel(), rcond=None)[0][0])
    assert got.prediction_on_noise == pytest.approx(np.linalg.lstsq(y.reshape(-1, 1), x.ravel(), rcond=None)[0][0])


def test_the_batch_does_not_matter():
    clean = torch.randn(5, *SHAPE)
    a, b = (measure(clean, prompted(5), 300, 2, torch.Generator().manual_seed(0), batch) for batch in (2, 5))
    for kind in KINDS:
        assert a[kind].as_dict() == pytest.approx(b[kind].as_dict())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


def test_the_command_writes_figures_and_picture(folder, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(2):
        Image.new("RGB", (32, 32), (90 * i, 100, 50)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text("a red mug")
    arguments = ["--teacher", str(folder), "--images", str(pictures), *SMALL]
    noise_statistics.main([*arguments, "--output", str(tmp_path / "a")])
    record = json.loads((tmp_path / "a" / "noise_statistics.json").read_text())
    rows = record["rows"]
    assert [(r["source"], r["kind"], r["t"]) for r in rows] == [
        (s, k, t) for s in ("samples", "noise", "pictures") for t in (0, 500, 999) for k in KINDS
    ]
    assert all(math.isfinite(value) for r in rows for value in r.values() if isinstance(value, float))
    assert len(record["alpha_bar"]) == 3 and record["fingerprint"] and "pictures: 2 pictures" in capsys.readouterr().out
    with Image.open(tmp_path / "a" / "noise_statistics.png") as picture:
        assert picture.size == (1500, 850)
    noise_statistics.main([*arguments, "--output", str(tmp_path / "b")])
    assert (tmp_path / "a" / "noise_statistics.json").read_bytes() == (tmp_path / "b" / "noise_statistics.json").read_bytes()


def test_mistakes_are_one_message(folder, tmp_path):
    def message(*more):
        with pytest.raises(SystemExit) as caught:
            noise_statistics.main(["--teacher", str(folder), "--output", str(tmp_path), *more])
        return str(caught.value)

    assert message("--noises", "1") == "Error: --noises is 1; it must be at least 2"
    assert message("--times", "1") == "Error: --times is 1; it must be at least 2"
    assert "there are no pictures" in message(*SMALL, "--images", str(tmp_path / "none"))
