"""The training command on a miniature Stable Diffusion."""

from __future__ import annotations

import json

import pytest
import torch
from dreammapping.correction import load_corrector, train
from dreammapping.correction.images import Folder, Samples, read_picture, read_prompts
from dreammapping.distillation import LossContext, build_loss
from dreammapping.errors import ConfigError
from dreammapping.teachers import DiffusersTeacher
from PIL import Image

from tests.helpers.tiny_teacher import make_tiny_teacher

SMALL = "--count 16 --times 1 --image-batch 4 --widths 8 --steps 4 --batch 4 --save-every 2 --device cpu".split()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


def command(folder, output, *more):
    return ["--teacher", str(folder), "--output", str(output), *SMALL, *more]


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red mug\n\n# a comment\na blue chair\n")
    return ("--prompts", str(file), "--sample-steps", "2")


def test_the_result_serves_the_loss(folder, tmp_path, prompts, capsys):
    train.main(command(folder, tmp_path / "out", *prompts))
    teacher = DiffusersTeacher.load(str(folder))
    context = LossContext(teacher, teacher.latent_shape, torch.Generator())
    loss = build_loss({"type": "lmc-sds", "corrector": str(tmp_path / "out")}, context)
    assert loss.corrector.reads == "clean" and not loss.corrector.training
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["teacher_fingerprint"] == teacher.fingerprint and card["latent_shape"] == [4, 8, 8]
    assert card["training"]["pairs"] == 32 and len(card["training"]["validation"]) == 5
    assert "--count 16" in card["training"]["command"] and str(tmp_path / "out") not in card["training"]["command"]
    assert "step 4 of 4" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="its weights have the hash"):
        other = make_tiny_teacher(tmp_path / "other", seed=1)
        context = LossContext(DiffusersTeacher.load(str(other)), teacher.latent_shape, torch.Generator())
        build_loss({"type": "lmc-sds", "corrector": str(tmp_path / "out")}, context)


def test_killed_anywhere_it_goes_on_to_the_same_bytes(folder, tmp_path, prompts, monkeypatch):
    train.main(command(folder, tmp_path / "whole", *prompts))
    for place in ("pairs: part 2", "step 2 of 4"):

        def killed(line, place=place):
            if line.startswith(place):
                raise KeyboardInterrupt

        monkeypatch.setattr(train, "_say", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main(command(folder, tmp_path / "killed", *prompts))
        assert not (tmp_path / "killed" / "card.json").exists()
    monkeypatch.setattr(train, "_say", lambda line: None)
    train.main(command(folder, tmp_path / "killed", *prompts))
    for name in ("corrector.safetensors", "card.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_from_pictures(folder, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(9):
        Image.new("RGB", (40, 60), (20 * i, 100, 50)).save(pictures / f"{i}.png")
    (pictures / "3.txt").write_text("a red mug\n")
    train.main(command(folder, tmp_path / "out", "--images", str(pictures), "--reads", "noisy"))
    teacher = DiffusersTeacher.load(str(folder))
    loaded = load_corrector(
        tmp_path / "out",
        teacher="tiny",
        fingerprint=teacher.fingerprint,
        latent_shape=teacher.latent_shape,
        steps=teacher.schedule.steps,
    )
    assert loaded.reads == "noisy"
    images = Folder(pictures)
    assert images.captions == ["", "", "", "a red mug", "", "", "", "", ""]
    got = images.latents(teacher, [2], None, torch.Generator().manual_seed(4), CPU)
    flat = torch.tensor([40, 100, 50]).view(1, 3, 1, 1).expand(1, 3, 32, 32) / 255
    torch.testing.assert_close(got, teacher.encode(flat, torch.Generator().manual_seed(4)))


def test_pictures_are_cut_and_laid_over_white(tmp_path):
    picture = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (3, 0, 8, 4))
    picture.save(tmp_path / "a.png")
    got = read_picture(tmp_path / "a.png", (4, 4))  # the middle: columns 2 to 5
    torch.testing.assert_close(got[1], torch.tensor([1.0, 0, 0, 0]).expand(4, 4))
    torch.testing.assert_close(got[0], torch.ones(4, 4))


def test_samples_are_what_the_sampler_of_diffusers_makes(folder):
    from diffusers import DPMSolverMultistepScheduler

    teacher = DiffusersTeacher.load(str(folder))
    text, empty = teacher.embed(["a red mug"]), teacher.embed([""])
    got = Samples(["a red mug"], empty, 3.0, 4).latents(teacher, [0], text, torch.Generator().manual_seed(2), CPU)
    solver = DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler", timestep_spacing="linspace")
    solver.set_timesteps(4)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    for t in solver.timesteps:
        with torch.no_grad():
            cond, uncond = (teacher.network(x, t, e).sample for e in (text, empty))
        x = solver.step(uncond + 3.0 * (cond - uncond), t, x).prev_sample
    torch.testing.assert_close(got, x, atol=2e-3, rtol=2e-3)


def test_prompts_are_taken_in_turn(tmp_path, prompts):
    assert read_prompts(tmp_path / "prompts.txt", 3) == ["a red mug", "a blue chair", "a red mug"]


def test_mistakes_are_one_message(folder, tmp_path, prompts):
    def message(*more):
        with pytest.raises(SystemExit) as caught:
            train.main(command(folder, tmp_path / "out", *more))
        return str(caught.value)

    (tmp_path / "empty.txt").write_text("\n")
    assert "--prompts: cannot read" in message("--prompts", str(tmp_path / "none.txt"))
    assert "holds no prompts" in message("--prompts", str(tmp_path / "empty.txt"))
    assert "there are no pictures" in message("--images", str(tmp_path / "none"))
    assert "at least 8" in message(*prompts, "--count", "7")
    (tmp_path / "a.png").write_bytes(b"no picture")
    for i in range(8):
        (tmp_path / f"b{i}.png").write_bytes(b"no picture")
    assert "cannot read" in message("--images", str(tmp_path))
    assert "holds a run with other settings (" in message(*prompts)
    assert "Tried" in message(*prompts, "--teacher", str(tmp_path / "nobody"))
