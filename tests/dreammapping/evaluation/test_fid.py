"""The Frechet distance, against other codes and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dreammapping.errors import DreamMappingError
from dreammapping.evaluation.fid import Distances, frechet_distance, same_source_distance
from scipy import linalg
from torchmetrics.image.fid import FrechetInceptionDistance


def features(count: int, width: int, seed: int, shift: float = 0.0, mix: bool = True) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, width)) @ (rng.normal(size=(width, width)) if mix else np.eye(width)) + shift
    return torch.from_numpy(values)


class Flat(torch.nn.Module):
    """An extractor for torchmetrics that takes the pixels themselves."""

    num_features = 48

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.double().flatten(1)


@pytest.mark.parametrize(("first", "second"), [(200, 150), (60, 500), (20, 30)])
def test_it_is_torchmetrics(first, second):
    """On the same pictures; with fewer pictures than features, too."""
    generator = torch.Generator().manual_seed(first)
    a, b = (torch.randint(0, high, (n, 3, 4, 4), dtype=torch.uint8, generator=generator) for n, high in ((first, 256), (second, 200)))
    metric = FrechetInceptionDistance(Flat(), input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert frechet_distance(Flat()(b), Flat()(a)) == pytest.approx(metric.compute().item(), rel=1e-5)


@pytest.mark.parametrize(("first", "second", "width"), [(90, 70, 16), (40, 300, 16)])
def test_it_is_the_formula_with_scipys_root(first, second, width):
    a, b = features(first, width, 1), features(second, width, 2, shift=0.4)
    covariance = [np.cov(x.numpy(), rowvar=False) for x in (a, b)]
    gap = (a.mean(0) - b.mean(0)).numpy()
    expected = gap @ gap + np.trace(covariance[0] + covariance[1] - 2 * linalg.sqrtm(covariance[0] @ covariance[1]).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_by_hand():
    line = torch.tensor([[-1.0], [1.0]])  # variance 2
    assert frechet_distance(line, 3 * line + 5) == pytest.approx(25 + 2 + 18 - 2 * 6)
    corners = torch.tensor([[0.0, 1], [0, -1], [1, 0], [-1, 0]])
    assert frechet_distance(corners, corners + torch.tensor([3.0, 4])) == pytest.approx(25.0)
    assert frechet_distance(corners, 2 * corners) == pytest.approx(2 * 2 / 3)  # two axes, (2 - 1)^2 x variance 2 / 3


def test_identities():
    a, b = features(30, 8, 3), features(50, 8, 4)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    turn = torch.linalg.qr(features(8, 8, 5)).Q
    assert frechet_distance(a @ turn + 2, b @ turn + 2) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(a[order], b) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_few_pictures_give_too_much_and_the_same_source_says_how_much():
    source = features(4000, 32, 6, mix=False)
    other = features(4000, 32, 7, mix=False)
    few, many = frechet_distance(other[:40], source), frechet_distance(other, source)
    assert few > 20 * many
    assert same_source_distance(source, 40) == pytest.approx(few, rel=0.15)
    halves = same_source_distance(source[:80], 40)
    assert halves == pytest.approx(frechet_distance(source[:40], other[:40]), rel=0.3)
    assert halves > 1.5 * frechet_distance(source[:40], source[:80])  # no picture stands on both sides


def test_the_interval_draws_prompts_with_their_references():
    """Prompts lie far apart; each picture is near its prompt's references. Drawn apart from each other, they would differ much more."""
    prompts = {f"prompt {i}": 30.0 * features(1, 3, 100 + i) for i in range(12)}
    reference = {p: center + features(20, 3, 200 + i, mix=False) for i, (p, center) in enumerate(prompts.items())}
    generated = {p: center + 0.5 + features(20, 3, 300 + i, mix=False) for i, (p, center) in enumerate(prompts.items())}
    found = Distances(reference).interval(generated, draws=50)
    assert found.value == pytest.approx(frechet_distance(torch.cat([*generated.values()]), torch.cat([*reference.values()])))
    assert found.low < found.value < found.high and found.high - found.low < 2.0
    worse = {p: f + 1.0 for p, f in generated.items()}
    gain = Distances(reference).interval(worse, minus=generated, draws=50)
    assert gain.value == pytest.approx(Distances(reference).interval(worse, draws=2).value - found.value)
    assert gain.excludes_zero and gain.value > 0


def test_a_prompt_without_references_is_named():
    one = {"a mug": features(4, 2, 0), "a duck": features(4, 2, 1)}
    with pytest.raises(DreamMappingError, match="no reference features of 'a duck'"):
        Distances({"a mug": one["a mug"]}).interval(one)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4, 3), "lengths 2 and 3"),
        (torch.zeros(1, 2), torch.zeros(4, 2), "at least 2 pictures"),
        (torch.zeros(4), torch.zeros(4, 2), r"\[4\]"),
        (torch.full((4, 2), torch.inf), torch.zeros(4, 2), "not finite"),
    ],
)
def test_mistakes_are_told(a, b, message):
    with pytest.raises(DreamMappingError, match=message):
        frechet_distance(a, b)


@pytest.mark.parametrize("count", [1, 9, 20])
def test_too_few_references_to_split_are_told(count):
    with pytest.raises(DreamMappingError, match="draw more of them"):
        same_source_distance(features(10, 2, 0), count)
