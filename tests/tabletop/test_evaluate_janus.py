"""Made-up Janus objects, and what is said about them."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tabletop import evaluate_janus as janus
from tabletop.cameras import view_labels
from tabletop.world import FAMILIES, VIEWS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def judge():
    return janus.Judge(ROOT / "load" / "embedded-judge")


def true_odds(sure: float = 0.97) -> torch.Tensor:
    """[V, 4] of a judge that is right about every view."""
    labels = view_labels(janus.azimuths(), torch.full((janus.VIEWS_AROUND,), janus.CAMERA["elevation"]))
    return torch.nn.functional.one_hot(labels, len(VIEWS)) * sure + (1 - sure) / len(VIEWS)


def test_what_a_janus_shows_by_hand():
    azimuth = torch.tensor([0.0, 30.0, 100.0, 180.0, 200.0, 350.0])
    assert janus.mirrored(azimuth).tolist() == [0.0, 30.0, 80.0, 0.0, -20.0, -10.0]
    assert janus.fold(azimuth, 2).tolist() == [0.0, 30.0, -80.0, 0.0, 20.0, -10.0]
    assert janus.fold(azimuth, 3).tolist() == [0.0, 30.0, -20.0, -60.0, -40.0, -10.0]
    assert janus.fold(torch.tensor([200.0]), 1).tolist() == [-160.0]
    assert janus.pasted(azimuth, 15.0).tolist() == [0.0, 30.0, 100.0, 0.0, 200.0, 350.0]
    assert janus.pasted(azimuth, 20.0).tolist() == [0.0, 30.0, 100.0, 0.0, 20.0, 350.0]


def test_a_judge_that_is_always_right_leaves_no_errors(judge):
    assert judge.views == list(VIEWS)
    found = janus.verdicts(true_odds(), judge)
    assert {name: answer["janus"] for name, answer in found.items()} == {**dict.fromkeys(janus.TRUE, 0.0), **dict.fromkeys(janus.FALSE, 1.0)}
    assert found["as it is"]["views"] == 1.0 and found["turned by 180"]["views"] == pytest.approx(0.5)
    assert found["front mirrored to the back"]["views"] == found["two fronts"]["views"] == pytest.approx(0.75)


def test_errors_are_counted_by_kind_and_family(judge):
    """Of two objects, one is seen as it is; of the other, the judge sees nothing but fronts."""
    sides = [VIEWS[label] for label in true_odds().argmax(1).tolist()]
    family = torch.tensor([FAMILIES.index("duck"), FAMILIES.index("chair")])
    right = judge.embed_texts([f"a duck, {side} view" for side in sides])
    wrong = judge.embed_texts(["a chair, front view"] * janus.VIEWS_AROUND)
    report = janus.summarize(torch.stack([right, wrong]), family, judge)
    assert report["objects"] == 2 and report["false_positive_rate"] == 0.5 and report["false_negative_rate"] == 0.0
    assert report["wrong"] == {**dict.fromkeys(janus.TRUE, 0.5), **dict.fromkeys(janus.FALSE, 0.0)}
    assert report["wrong_families"] == dict.fromkeys(janus.TRUE, ["chair"])
    assert report["share_of_right_views"]["as it is"] == pytest.approx((1.0 + 0.25) / 2)


def test_there_are_so_many_objects_of_each_family():
    scenes = janus.scenes_of_all_families(2, seed=1)
    assert torch.bincount(scenes.family).tolist() == [2] * len(FAMILIES)
    assert torch.equal(scenes.rows, janus.scenes_of_all_families(2, seed=1).rows)
    assert (scenes.elevation == 20).all() and (scenes.background == 1).all() and (scenes.center == 0).all()


def test_the_judge_sees_the_sides_of_a_real_object(judge, monkeypatch):
    angles = torch.tensor([0.0, 90.0, 180.0])
    monkeypatch.setattr(janus, "azimuths", lambda: angles)
    scenes = janus.scenes_of_all_families(1, seed=1)
    duck = scenes[torch.tensor([FAMILIES.index("duck")])]
    seen = janus.look_around(duck, judge, torch.device("cpu"), supersample=1)
    assert seen.shape[:2] == (1, 3)
    answers = judge.odds_of(seen[0], FAMILIES.index("duck"))
    assert [VIEWS[i] for i in answers["view"].argmax(1).tolist()] == ["front", "side", "back"]
    assert (answers["family"].argmax(1) == FAMILIES.index("duck")).all()
