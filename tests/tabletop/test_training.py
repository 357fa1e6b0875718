"""The training loop, the tokenizer and the measures, on miniature data."""
from __future__ import annotations

import random
import re

import pytest
import torch
from torch import nn

from tabletop.captions import captions, vocabulary
from tabletop.cameras import border_distance
from tabletop.make_data import plan_shards
from tabletop.tokenizer import PIECES, build_tokenizer, learn_merges
from tabletop.train_judge import accuracy, questions
from tabletop.train_text_to_image import noise_weights
from tabletop.train_vae import psnr
from tabletop.training import LoopSettings, Stage, cosine_with_warmup
from tabletop.world import COLORS, FAMILIES, PATTERNS, VIEWS, sample_labels


def linear_stage(folder, steps: int, *, stop_after: int | None = None) -> tuple[Stage, nn.Linear]:
    """A small regression; `stop_after` ends the run early, as a wall-clock limit does."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    settings = LoopSettings(steps, minutes=0.0 if stop_after else 10.0, learning_rate=0.05, warmup=3, report_every=stop_after or 1000)
    stage = Stage({"model": model}, settings, folder)
    data = torch.randn(steps, 8, 3, generator=torch.Generator().manual_seed(1))
    stage.run(lambda step: (model(data[step]) - data[step][:, :2]).square().mean())
    return stage, model


def test_a_stopped_stage_goes_on_as_if_never_stopped(tmp_path):
    whole, model = linear_stage(tmp_path / "whole", 20)
    linear_stage(tmp_path / "parts", 20, stop_after=7)
    resumed, other = linear_stage(tmp_path / "parts", 20)
    assert resumed.step == whole.step == 20
    for a, b in zip([*model.parameters(), *whole.average.average], [*other.parameters(), *resumed.average.average]):
        assert torch.equal(a, b)


def test_learning_rate_rises_then_falls_to_zero():
    rates = [cosine_with_warmup(step, step / 100, warmup=10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == max(rates[5:20])
    assert rates[100] == pytest.approx(0.0, abs=1e-9)


def test_every_word_of_the_world_is_one_token(tmp_path):
    words = vocabulary()
    tokenizer = build_tokenizer(words, tmp_path, length=32)
    for word in words:
        assert len(tokenizer(word).input_ids) == 2 + len(PIECES.findall(word)), word
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_captions_fit_the_prompt_length(tmp_path):
    tokenizer = build_tokenizer(vocabulary(), tmp_path, length=32)
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    labels = sample_labels(300, generator)
    texts = captions(labels, torch.randint(len(VIEWS), (300,), generator=generator), rng)
    assert max(len(tokenizer(text).input_ids) for text in texts) < 32


def test_merges_are_the_same_every_time_and_complete():
    pieces = ["chair", "char", "hair", "a"]
    merges = learn_merges(pieces)
    assert merges == learn_merges(list(reversed(pieces)))
    assert ("".join(merges[-1])) in {"chair</w>", "char</w>", "hair</w>"}


def test_questions_use_known_words_only_and_cover_every_class():
    known, asked = set(vocabulary()), questions()
    assert len(asked["family"][0]) == len(FAMILIES)
    for name, choices in (("color", COLORS), ("pattern", PATTERNS), ("view", VIEWS)):
        assert [len(row) for row in asked[name]] == [len(choices)] * len(FAMILIES)
    for text in (text for rows in asked.values() for row in rows for text in row):
        assert set(re.findall(r"[a-z0-9-]+", text)) <= known, text


def test_accuracy_leaves_unknown_labels_out():
    choices = {"color": torch.tensor([1, 2, 0, 3])}
    assert accuracy(choices, {"color": torch.tensor([1, 2, -1, 0])}) == {"color": pytest.approx(2 / 3)}


def test_psnr_of_a_known_error():
    images = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    others = images + torch.tensor([10, 25], dtype=torch.uint8).view(2, 1, 1, 1)
    assert psnr(images, others).tolist() == pytest.approx([28.1308, 20.1720], abs=1e-3)


def test_noise_weights_cap_the_signal_to_noise_ratio():
    alpha_bar = torch.tensor([0.99, 5 / 6, 0.5, 0.01])
    assert noise_weights(alpha_bar).tolist() == pytest.approx([5 / 99, 1.0, 1.0, 1.0], rel=1e-4)


def test_sets_never_share_a_seed_and_finished_shards_are_skipped(tmp_path):
    counts = {"train": 12_000, "judge": 12_000, "heldout": 6_000}
    plans = plan_shards(tmp_path, counts)
    assert len({plan.seed for plan in plans}) == len(plans)
    assert sum(plan.count for plan in plans) == sum(counts.values())
    plans[0].target.parent.mkdir(parents=True)
    plans[0].target.touch()
    assert plans[0].target not in [plan.target for plan in plan_shards(tmp_path, counts)]


def test_border_distance_by_hand():
    azimuth = torch.tensor([0.0, 44.0, 136.0, -90.0, 170.0, 10.0])
    elevation = torch.tensor([0.0, 0.0, 0.0, 0.0, 58.0, 75.0])
    assert border_distance(azimuth, elevation).tolist() == pytest.approx([45.0, 1.0, 1.0, 45.0, 2.0, 15.0])
