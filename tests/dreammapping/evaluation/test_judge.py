"""The embedded judge, asked with pictures and with what it remembers of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dreammapping.errors import DreamMappingError
from dreammapping.evaluation.judge import Judge

FOLDER = Path(__file__).resolve().parents[3] / "load" / "embedded-judge"


@pytest.fixture(scope="module")
def judge():
    return Judge(FOLDER)


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(3, 48, 48, 3, generator=torch.Generator().manual_seed(0))


def test_remembered_pictures_get_the_same_answers(judge, pictures):
    seen = judge.embed_images(pictures)
    assert torch.allclose(seen.norm(dim=1), torch.ones(3))
    for family in (0, 5):
        now, then = judge.odds(pictures, family), judge.odds_of(seen, family)
        assert now.keys() == then.keys() == {"family", "color", "pattern", "view"}
        assert all(torch.equal(now[name], then[name]) for name in now)
    assert torch.equal(judge.clip_score(pictures, "a duck"), judge.clip_score_of(seen, "a duck"))


def test_odds_are_those_of_clip(judge, pictures):
    family = judge.families.index("duck")
    texts = [f"a duck, {view} view" for view in judge.views]
    cosines = judge.embed_images(pictures) @ judge.embed_texts(texts).T
    expected = (cosines * judge.model.logit_scale.exp()).softmax(dim=1)
    assert torch.allclose(judge.odds(pictures, family)["view"], expected, atol=1e-6)
    assert torch.allclose(judge.clip_score(pictures, texts[1]), 100 * cosines[:, 1], atol=1e-4)


def test_half_precision_is_enough_to_remember(judge, pictures):
    seen = judge.embed_images(pictures)
    for name, odds in judge.odds_of(seen.half(), 3).items():
        assert torch.allclose(odds, judge.odds_of(seen, 3)[name], atol=5e-3)


def test_a_folder_without_questions_is_refused(tmp_path):
    with pytest.raises(DreamMappingError, match="questions.json is missing"):
        Judge(tmp_path)
