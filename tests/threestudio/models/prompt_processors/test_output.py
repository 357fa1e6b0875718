"""Directions and Perp-Neg weights against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from threestudio.errors import ConfigError
from threestudio.models.prompt_processors.base import PromptProcessorOutput, make_directions, shift_azimuth_deg

SIDE, FRONT, BACK, OVERHEAD = range(4)


def output(**changes):
    directions = make_directions(60.0, 45.0, 45.0, prompt_front=False)
    values = dict(
        text_embeddings=torch.full((1, 2, 3), 9.0),
        uncond_text_embeddings=torch.full((1, 2, 3), -9.0),
        text_embeddings_vd=torch.eye(4)[:, None].expand(4, 2, 4).clone(),  # one-hot: mixtures can be read off
        uncond_text_embeddings_vd=-torch.arange(1.0, 5.0)[:, None, None].expand(4, 2, 4),
        directions=directions,
        direction2idx={d.name: i for i, d in enumerate(directions)},
        use_perp_neg=True,
        perp_neg_f_sb=(1, 0.5, -0.606),
        perp_neg_f_fsb=(1, 0.5, +0.967),
        perp_neg_f_fs=(4, 0.5, -2.426),
        perp_neg_f_sf=(4, 0.5, -2.426),
        prompt="p",
        prompts_vd=["p"] * 4,
    )
    return PromptProcessorOutput(**{**values, **changes})


def views(*pairs):
    elevation, azimuth = torch.tensor(pairs, dtype=torch.float32).unbind(-1)
    return elevation, azimuth, torch.ones(len(pairs))


def test_azimuths_wrap_into_half_open_interval():
    angles = torch.tensor([-540.0, -180.0, 0.0, 179.0, 180.0, 190.0, 720.0])
    assert shift_azimuth_deg(angles).tolist() == [-180, -180, 0, 179, -180, -170, 0]


@pytest.mark.parametrize(
    "elevation, azimuth, name",
    [
        (0, 0, FRONT), (0, 44.9, FRONT), (0, -44.9, FRONT), (0, 45, SIDE), (0, 90, SIDE), (0, -90, SIDE), (0, 135, SIDE),
        (0, 135.1, BACK), (0, -135.1, BACK), (0, 180, BACK), (0, 270, SIDE), (0, 330, FRONT), (60, 0, FRONT),
        (60.1, 0, OVERHEAD), (80, 180, OVERHEAD),
    ],
)  # fmt: skip
def test_direction_of_a_view(elevation, azimuth, name):
    assert output().direction_indices(*views((elevation, azimuth))).tolist() == [name]


def test_thresholds_and_texts():
    directions = make_directions(30.0, 10.0, 20.0, prompt_front=True)
    assert [d.prompt("a cup") for d in directions] == [
        "side view of a cup",
        "front view of a cup",
        "backside view of a cup",
        "overhead view of a cup",
    ]
    assert [d.prompt("a cup") for d in make_directions(60, 45, 45, False)] == [
        "a cup, side view",
        "a cup, front view",
        "a cup, back view",
        "a cup, overhead view",
    ]
    assert output(directions=directions).direction_indices(
        *views((0, 9), (0, 11), (0, 159), (0, 161), (31, 0))
    ).tolist() == [1, 0, 0, 2, 3]


def test_embeddings_are_conditional_first_then_negative():
    embeddings = output().get_text_embeddings(*views((0, 0), (0, 90), (70, 0)))
    assert embeddings.shape == (6, 2, 4)
    assert embeddings[:3, 0].argmax(-1).tolist() == [FRONT, SIDE, OVERHEAD] and embeddings[3:, 0, 0].tolist() == [
        -2,
        -1,
        -4,
    ]
    plain = output().get_text_embeddings(*views((0, 0), (0, 90)), view_dependent_prompting=False)
    assert plain[:, 0, 0].tolist() == [9, 9, -9, -9]


def f(a, b, c, r):
    return a * math.exp(-b * r) + c


@pytest.mark.parametrize("sign", [1, -1])
def test_perp_neg_by_hand(sign):
    angles = (0.0, 30.0, 90.0, 135.0, 180.0)
    embeddings, weights = output().get_text_embeddings_perp_neg(*views(*((0.0, sign * a) for a in angles)))
    assert embeddings.shape == (20, 2, 4) and weights.shape == (5, 2)
    positive, negatives = embeddings[:5, 0], embeddings[10:, 0]
    # one-hot order: side, front, back, overhead
    expected = [(0, 1, 0, 0), (1 / 3, 2 / 3, 0, 0), (1, 0, 0, 0), (0.5, 0, 0.5, 0), (0, 0, 1, 0)]
    assert torch.allclose(positive, torch.tensor(expected), atol=1e-6)
    assert embeddings[5:10, 0, 0].tolist() == [-2, -2, -1, -1, -3]
    assert negatives[0::2].argmax(-1).tolist() == [FRONT, FRONT, SIDE, SIDE, SIDE]
    assert negatives[1::2].argmax(-1).tolist() == [SIDE, SIDE, FRONT, FRONT, FRONT]
    fs, sb, fsb = (4, 0.5, -2.426), (1, 0.5, -0.606), (1, 0.5, 0.967)
    by_hand = [
        (-f(*fs, 1), -f(*fs, 0)),
        (-f(*fs, 2 / 3), -f(*fs, 1 / 3)),
        (-f(*sb, 1), -f(*fsb, 1)),
        (-f(*sb, 0.5), -f(*fsb, 0.5)),
        (-f(*sb, 0), -f(*fsb, 0)),
    ]
    assert torch.allclose(weights, torch.tensor(by_hand), atol=1e-5)
    assert weights[0].tolist() == pytest.approx([-0.000123, -1.574], abs=1e-4)


def test_perp_neg_overhead_has_no_negatives_and_keeps_its_prompt():
    embeddings, weights = output().get_text_embeddings_perp_neg(*views((70.0, 10.0), (0.0, 10.0)))
    assert embeddings[0, 0].tolist() == [0, 0, 0, 1] and weights[0].tolist() == [0, 0] and weights[1].abs().sum() > 0
    assert embeddings[4:6, 0, 0].tolist() == [-4, -4]
    with pytest.raises(ConfigError, match="view_dependent_prompting"):
        output().get_text_embeddings_perp_neg(*views((0, 0)), view_dependent_prompting=False)
