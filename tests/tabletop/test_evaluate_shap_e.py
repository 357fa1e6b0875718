"""What an embedded Shap-E is measured by."""
from __future__ import annotations

import pytest
import torch

from tabletop.sdf import scene_distance
from tabletop.shap_e import evaluate
from tabletop.world import Labels, is_heldout, sample_scenes

CPU = torch.device("cpu")


def cloud(points: torch.Tensor, color: float = 0.0) -> evaluate.ColoredPoints:
    return evaluate.ColoredPoints(points, torch.full_like(points, color))


def test_prompts_are_all_different_and_unseen():
    labels = evaluate.different_labels(50, seed=2)
    assert len({(int(f), int(c), int(p)) for f, c, p in zip(labels.family, labels.color, labels.pattern)}) == 50
    assert is_heldout(labels.family, labels.color, labels.pattern).all()
    with pytest.raises(ValueError, match="only .* combinations"):
        evaluate.different_labels(5_000, seed=2)  # of about 240


def test_differences_are_those_of_all_pairs():
    generator = torch.Generator().manual_seed(0)
    a = evaluate.ColoredPoints(torch.rand(40, 3, generator=generator), torch.rand(40, 3, generator=generator))
    b = evaluate.ColoredPoints(torch.rand(30, 3, generator=generator), torch.rand(30, 3, generator=generator))
    pairs = torch.cdist(a.points.double(), b.points.double())
    found = evaluate.difference(a, b)
    assert found["chamfer"] == pytest.approx((pairs.amin(1).mean() + pairs.amin(0).mean()).item() / 2, rel=1e-5)
    colors = (a.colors - b.colors[pairs.argmin(1)]).abs().mean() + (b.colors - a.colors[pairs.argmin(0)]).abs().mean()
    assert found["color"] == pytest.approx(colors.item() / 2, rel=1e-5)
    assert found["mean_color"] == pytest.approx((a.colors.mean(0) - b.colors.mean(0)).abs().mean().item(), rel=1e-5)
    shifted = evaluate.ColoredPoints(a.points + 0.001, a.colors)
    assert evaluate.to_nearest(a, [b, shifted, b])["chamfer"] == pytest.approx(0.001 * 3**0.5, rel=1e-2)


def test_true_points_lie_on_their_surfaces(monkeypatch):
    """Before they are scaled: their distances to the surface are a hair's breadth, and they reach around it."""
    monkeypatch.setattr(evaluate, "COMPARED", 300)
    monkeypatch.setattr(evaluate, "TRUE_OBJECTS", 2)
    monkeypatch.setattr(evaluate, "normalize", lambda points, radius: points)
    labels = Labels(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    clouds = evaluate.true_clouds(labels, 4, CPU)
    scenes = sample_scenes(Labels(*(v.expand(2) for v in (labels.family, labels.color, labels.pattern))), torch.Generator().manual_seed(4))
    for rows, found in zip(scenes.rows, clouds):
        assert scene_distance(rows.expand(300, -1, -1), found.points).abs().median() < 1e-3
        octants = ((found.points - found.points.mean(0)) > 0).long() @ torch.tensor([1, 2, 4])
        assert len(octants.unique()) == 8


def test_pictures_show_the_sides_they_say():
    """A red dot in front (+x) and a blue one at azimuth 90 (+y), around a white middle: who is nearer hides the other side."""
    fill = torch.nn.functional.normalize(torch.randn(3_000, 3, generator=torch.Generator().manual_seed(0)), dim=-1) * 0.4
    colors = torch.ones_like(fill)
    colors[fill[:, 0] > 0.3] = torch.tensor([1.0, 0.0, 0.0])
    colors[fill[:, 1] > 0.3] = torch.tensor([0.0, 0.0, 1.0])
    shown = evaluate.pictures(evaluate.ColoredPoints(fill, colors))
    assert shown.shape == (4, evaluate.SIZE, evaluate.SIZE, 3)
    red, blue = ((shown[..., i] - shown[..., 1]).mean(dim=(1, 2)) for i in (0, 2))
    assert red.argmax() == 0 and red[2] < 0.01 < red[0]
    assert blue.argmax() == 1 and blue[3] < 0.01 < blue[1]
    right_half = shown[0, :, evaluate.SIZE // 2 :]
    assert (right_half[..., 2] - right_half[..., 1]).mean() > 0.005  # from the front, +y is at the right
