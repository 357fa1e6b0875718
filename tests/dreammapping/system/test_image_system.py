"""Text to 2D with a teacher whose pictures are known: where the pictures go, and who takes part in a step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dreammapping.guidance import distillation_guidance
from dreammapping.system.image_system import DreamMappingImageSystem

import launch
from tests.helpers import small_run
from tests.helpers.known_pictures import KnownPictures, picture

CONFIG = small_run.CONFIG.with_name("sds-2d.yaml")
PROMPTS = ["a red mug", "a blue chair", "a yellow duck"]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function: prompts, steps and overrides -> the pictures' parameters afterwards."""
    monkeypatch.setattr(distillation_guidance, "DiffusersTeacher", KnownPictures)

    def run(prompts: list[str], steps: int, *overrides: str) -> list[torch.Tensor]:
        given = [
            f"exp_root_dir={tmp_path}", "name=run", "tag=known", "use_timestamp=false", "seed=3",
            f"system.prompts={prompts}", "system.prompt_processor_type=test-text-numbers", "system.report=false",
            "system.guidance.guidance_scale=0", "system.guidance.timesteps={type: anneal, start: 500, end: 500}",
            f"trainer.max_steps={steps}", "trainer.val_check_interval=1000", "trainer.enable_progress_bar=false",
        ]  # fmt: skip
        assert launch.main(["--config", str(CONFIG), "--train", "--preset", "paper", *given, *overrides]) == 0
        state = torch.load(tmp_path / "run" / "known" / "ckpts" / "last.ckpt", weights_only=True)["state_dict"]
        return [state[f"geometry.pictures.{n}"] for n in range(len(prompts))]

    return run


@pytest.mark.parametrize("parameterization", ["latent", "pixel"])
def test_every_picture_becomes_its_prompt_s(train, parameterization):
    ends = train(
        PROMPTS[:2], 60, f"system.geometry.parameterization={parameterization}", "system.geometry.init.type=zeros"
    )
    for prompt, end in zip(PROMPTS, ends):
        assert (end - picture(prompt)).abs().max() < 0.1 < picture(prompt).abs().mean()
    assert (ends[0] - ends[1]).abs().mean() > 0.2


def test_a_picture_does_not_depend_on_its_neighbors(train):
    """Where the residual does not depend on the noise: SDS, a teacher of points, always the same t."""
    together, alone = train(PROMPTS, 40), train(PROMPTS[:1], 40)
    torch.testing.assert_close(together[0], alone[0], rtol=0, atol=1e-4)
    assert (alone[0] - picture(PROMPTS[0])).abs().mean() > 0.1, "the end would be the same in any case"


def test_a_picture_that_takes_no_part_stays_as_it_is(train):
    """So does Adam's state: after k of its own steps a picture is where k steps alone have brought it."""
    together = train(PROMPTS[:2], 20, "data.batch_size=1")
    chooser = SimpleNamespace(_count=2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        taken = [DreamMappingImageSystem.choose(chooser, 1, step) for step in range(20)]
    own = taken.count([0])
    assert 4 < own < 16
    alone = train(PROMPTS[:1], own)
    torch.testing.assert_close(together[0], alone[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("batch_size", "often"), [(None, [1, 1, 1]), (2, [0, 1, 1]), (3, [1, 1, 1]), (7, [2, 2, 3])])
def test_pictures_take_part_equally_often(batch_size, often):
    index = DreamMappingImageSystem.choose(SimpleNamespace(_count=3), batch_size, 5)
    assert sorted(Counter(index).get(number, 0) for number in range(3)) == often


def test_the_choice_follows_from_the_step_and_favors_none():
    choose, system = DreamMappingImageSystem.choose, SimpleNamespace(_count=5)
    assert choose(system, 2, 7) == choose(system, 2, 7)
    counts = Counter(number for step in range(500) for number in choose(system, 2, step))
    # Binomial: 200 expected, standard deviation 11.
    assert len(counts) == 5 and all(150 < count < 250 for count in counts.values())
