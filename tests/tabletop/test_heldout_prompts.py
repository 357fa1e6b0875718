"""The list of prompts that plans take."""

from __future__ import annotations

from tabletop.heldout_prompts import heldout_prompts
from tabletop.world import FAMILIES, all_labels, is_heldout
from tests.helpers.small_run import ROOT


def test_the_list_is_what_the_command_writes():
    file = ROOT / "custom" / "dreammapping" / "comparison" / "plans" / "heldout.txt"
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines == heldout_prompts(0) != heldout_prompts(1)


def test_all_heldout_combinations_are_there_once_and_the_families_mixed():
    labels, prompts = all_labels(), heldout_prompts(0)
    assert len(prompts) == len(set(prompts)) == int(is_heldout(labels.family, labels.color, labels.pattern).sum())
    last_words = [prompt.split()[-1] for prompt in prompts[: len(FAMILIES) - 2]]
    assert len(set(last_words)) >= len(last_words) - 1  # "ice cream cone" and the like end as no other family does
