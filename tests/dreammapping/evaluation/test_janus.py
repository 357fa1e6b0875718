"""Fronts and Janus objects, from answers written by hand."""

from __future__ import annotations

import pytest
import torch
from dreammapping.errors import DreamMappingError
from dreammapping.evaluation.janus import front_azimuths, is_janus, share_of_right_views

VIEWS = ["side", "front", "back", "overhead"]
AROUND = torch.arange(24) * 15.0
TRUE = "fffsssssssbbbbbsssssssff"
"""What the judge sees of a true object at 0, 15, ... degrees; 45 and 135 are borders and read as side."""


def odds(answers: str, sure: float = 0.9) -> torch.Tensor:
    """[V, 4] for one letter a view."""
    rows = torch.full((len(answers), len(VIEWS)), (1 - sure) / 3)
    for row, letter in zip(rows, answers):
        row["sfbo".index(letter)] = sure
    return rows


def test_a_true_object_has_one_front():
    assert front_azimuths(odds(TRUE), AROUND, VIEWS) == [0.0, 15.0, 30.0, 330.0, 345.0]
    assert not is_janus(odds(TRUE), AROUND, VIEWS)


@pytest.mark.parametrize("turn", [1, 5, 12, 18])
def test_a_turned_object_is_no_janus(turn):
    assert not is_janus(odds(TRUE[turn:] + TRUE[:turn]), AROUND, VIEWS)


@pytest.mark.parametrize(
    "answers",
    [
        "fffsssssssfffffsssssssff",  # a front for the back
        "fffsssssfffssssssssssfff",  # a second one at 120 degrees or more
        "ffffffffffsssssbbsssssff",  # all in one, wider than any front
        "ffffffffffffffffffffffff",
    ],
)
def test_two_distant_fronts_are_a_janus(answers):
    assert is_janus(odds(answers), AROUND, VIEWS)
    turned = torch.roll(odds(answers), 7, dims=0)
    assert is_janus(turned, AROUND, VIEWS)


def test_one_wrong_answer_makes_no_janus():
    once = TRUE[:12] + "f" + TRUE[13:]
    assert not is_janus(odds(once), AROUND, VIEWS)
    assert is_janus(odds(TRUE[:11] + "fff" + TRUE[14:]), AROUND, VIEWS)


def test_the_front_across_azimuth_zero_is_one_front():
    assert not is_janus(odds("fsssssss"), torch.arange(8) * 45.0, VIEWS)
    assert not is_janus(odds("ffsssssf"), torch.arange(8) * 45.0, VIEWS)
    assert is_janus(odds("fssffssf"), torch.arange(8) * 45.0, VIEWS)


def test_overhead_is_no_answer_to_a_camera_at_the_side():
    rows = odds(TRUE.replace("f", "o"))
    rows[[0, 1, 2, 22, 23]] = torch.tensor([0.01, 0.2, 0.01, 0.78])
    assert front_azimuths(rows, AROUND, VIEWS) == [0.0, 15.0, 30.0, 330.0, 345.0]


def test_the_order_of_views_and_answers_does_not_matter():
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    names, columns = ["back", "overhead", "front", "side"], [2, 3, 1, 0]
    answers = odds("fffsssssssfffffsssssssff")
    assert front_azimuths(answers[shuffled][:, columns], AROUND[shuffled] - 360, names) == front_azimuths(answers, AROUND, VIEWS)


def test_right_views_by_hand():
    assert share_of_right_views(odds(TRUE), AROUND, VIEWS) == 1.0
    # 20 views are clear: 5 fronts, 5 backs, 10 sides (all but 45, 135, 225 and 315 degrees)
    assert share_of_right_views(odds("s" * 24), AROUND, VIEWS) == pytest.approx(10 / 20)
    assert share_of_right_views(odds("f" * 24), AROUND, VIEWS) == pytest.approx(5 / 20)
    assert share_of_right_views(odds("b" * 24), AROUND, VIEWS) == pytest.approx(5 / 20)
    assert share_of_right_views(odds(TRUE[:12] + "f" + TRUE[13:]), AROUND, VIEWS) == pytest.approx(19 / 20)


@pytest.mark.parametrize("border", [3, 9, 15, 21])
def test_the_border_between_two_sides_counts_for_neither(border):
    for letter in "fsb":
        assert share_of_right_views(odds(TRUE[:border] + letter + TRUE[border + 1 :]), AROUND, VIEWS) == 1.0


@pytest.mark.parametrize(
    ("rows", "azimuth"), [(odds("fssbbssf")[:7], torch.arange(7.0)), (odds(TRUE), torch.arange(8.0)), (odds(TRUE)[:, :3], AROUND)]
)
def test_too_few_views_and_shapes_that_do_not_fit_are_refused(rows, azimuth):
    for question in (front_azimuths, is_janus, share_of_right_views):
        with pytest.raises(DreamMappingError, match="at least 8 views"):
            question(rows, azimuth, VIEWS)
