"""The search's bookkeeping, and that every choice of its space is a setting the system takes."""
from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import preset_search as search  # noqa: E402


def finished(score: float, rung: int = 0) -> search.Trial:
    return search.Trial({}, rung, [score] * search.RUNGS[rung])


def test_the_best_third_of_a_rung_goes_up_and_only_once():
    trials = [finished(score) for score in (0.1, 0.9, 0.5)]
    assert search.promotable(trials[:2]) is None
    assert search.promotable(trials) is trials[1]
    trials[1].rung = 1  # on its way: its first prompts still count in the lowest rung
    assert search.promotable(trials) is None
    trials += [finished(score) for score in (0.2, 0.3, 0.8)]
    assert search.promotable(trials) is trials[-1]


def test_a_failed_trial_never_goes_up():
    trials = [finished(score) for score in (0.9, 0.1, 0.2)]
    trials[0].failed = "ConfigError"
    assert search.promotable(trials) is None


def test_a_neighbor_differs_in_one_to_three_keys(monkeypatch):
    monkeypatch.setattr(search, "FRESH", 0.0)
    rng, parent = random.Random(0), {key: choices[0] for key, choices in search.SPACE.items()}
    for _ in range(50):
        child = search.draw(rng, [parent])
        assert 1 <= sum(child[key] != parent[key] for key in search.SPACE) <= 3
        assert all(child[key] in search.SPACE[key] for key in child)


@pytest.mark.parametrize("key", list(search.SPACE))
def test_every_choice_is_a_setting(key):
    from threestudio.utils.config import load_config
    from threestudio.utils.presets import overlay_files

    first = {name: choices[0] for name, choices in search.SPACE.items()}
    for choice in search.SPACE[key]:
        candidate = {**first, key: choice}
        overlays = overlay_files(search.CONFIGS / "vdm-gs.yaml", "embedded")
        config = load_config(search.CONFIGS / "vdm-gs.yaml", *overlays, cli_args=search.overrides(candidate))
        assert config.trainer.max_steps == search.STEPS[candidate["data.batch_size"]]
        rate = config.system.geometry.position_lr
        assert list(rate)[1] == pytest.approx(candidate["position"]) and rate[3] == config.trainer.max_steps
        assert "END" not in str(config.system.guidance.timesteps)
