"""LMC-SDS in the limits where its formula is known, and with correctors that are missing or another teacher's."""

from __future__ import annotations

import json

import pytest
import torch
from dreammapping.distillation import Distiller, DistillerSettings, LossContext, build_loss
from dreammapping.errors import ConfigError

from tests.helpers.corrector import make_corrector
from tests.helpers.score import SHAPE, embeddings, gaussian_teacher, make_draw, prompted

S = 7.5
T = [20, 300, 301, 900]
F64 = torch.float64


class Answers(torch.nn.Module):
    """A corrector that answers what it was told to."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, clean, noisy, t, alpha_bar):
        return self.answer


@pytest.fixture
def case():
    teacher = gaussian_teacher(F64)
    return teacher, make_draw(teacher, T, dtype=F64), prompted(teacher, scale=S, batch=len(T))


def build(teacher, folder, shape=SHAPE, **options):
    context = LossContext(teacher, shape, torch.Generator().manual_seed(0))
    return build_loss({"type": "lmc-sds", "corrector": str(folder), **options}, context)


def run(case, folder, corrector):
    teacher, draw, asked = case
    make_corrector(folder)
    loss = build(teacher, folder)
    loss.corrector = corrector
    answers = loss.ask(draw, asked)
    return loss(draw, answers).residual, answers, draw


def test_with_the_identity_it_is_sds(case, tmp_path):
    residual, a, draw = run(case, tmp_path, Answers(case[1].clean))
    torch.testing.assert_close(residual, a.guided - draw.noise)


def test_with_the_teachers_own_estimate_only_guidance_is_left(case, tmp_path):
    teacher, draw, asked = case
    cond = teacher.predict(draw.noisy, draw.t, {"cond": torch.zeros(4, 1, 1)})["cond"]
    estimate = teacher.schedule.x0_from_eps(draw.noisy, cond, draw.t)
    residual, a, _ = run(case, tmp_path, Answers(estimate))
    torch.testing.assert_close(residual, S * (a.cond - a.uncond))


def test_a_blurrier_estimate_than_the_teachers_pushes_towards_detail(case, tmp_path):
    """d/dx_0 points from b to the teacher's estimate: -R ~ (a / sig) (estimate - b), without guidance."""
    teacher, draw, asked = case
    asked.guidance_scale = 0.0
    blurred = 0.5 * draw.clean
    residual, a, _ = run(case, tmp_path, Answers(blurred))
    estimate = teacher.schedule.x0_from_eps(draw.noisy, a.cond, draw.t)
    factor = (draw.alpha_bar / (1 - draw.alpha_bar)).sqrt()
    torch.testing.assert_close(-residual, factor * (estimate - blurred))


@pytest.mark.parametrize("reads", ["clean", "noisy"])
def test_the_residual_is_the_papers_image_by_image(case, tmp_path, reads):
    teacher, draw, asked = case
    corrector = make_corrector(tmp_path, seed=3, reads=reads).double()
    loss = build(teacher, tmp_path).double()
    answers = loss.ask(draw, asked)
    got = loss(draw, answers).residual
    for i, t in enumerate(T):
        alpha_bar = teacher.schedule.alpha_bar[t].item()
        a, sig = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        seen, share = (draw.clean[i], a * a) if reads == "clean" else (draw.noisy[i], a)
        with torch.no_grad():
            change = corrector.network(seen[None], torch.tensor([t])).sample[0]
        b = share * seen + sig * change
        assert change.abs().mean() > 0.01  # or nothing was tested
        e_b = (draw.noisy[i] - a * b) / sig
        e_c, e_u = answers.cond[i], answers.uncond[i]
        torch.testing.assert_close(got[i], e_c - e_b + S * (e_c - e_u), atol=1e-9, rtol=1e-9)


def test_it_is_frozen_and_without_graph(tmp_path):
    teacher = gaussian_teacher()
    make_corrector(tmp_path, seed=1)
    loss = build(teacher, tmp_path)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    distiller = Distiller(loss, teacher, DistillerSettings(), loss.context.generator)
    x = torch.randn(2, *SHAPE, requires_grad=True)
    result = distiller(x, embeddings(2))
    result.loss.backward()
    assert distiller.optimizer is None and not result.auxiliary and x.grad.abs().sum() > 0
    assert before and all(not p.requires_grad and p.grad is None for p in loss.parameters())
    assert all(torch.equal(before[key], value) for key, value in loss.state_dict().items())


def test_a_run_goes_on_with_the_corrector_it_began_with(tmp_path):
    teacher = gaussian_teacher()
    make_corrector(tmp_path / "first", seed=1)
    make_corrector(tmp_path / "second", seed=2)
    first, second = build(teacher, tmp_path / "first"), build(teacher, tmp_path / "second")
    second.load_state_dict(first.state_dict())
    draw = make_draw(teacher, T)
    answers = first.ask(draw, prompted(teacher, batch=len(T)))
    assert torch.equal(first(draw, answers).residual, second(draw, answers).residual)


def test_without_a_corrector_the_message_names_the_training_command():
    with pytest.raises(ConfigError, match="needs a corrector") as caught:
        build_loss({"type": "lmc-sds"}, LossContext(gaussian_teacher(), SHAPE, torch.Generator()))
    assert 'python -m custom.dreammapping.correction.train --teacher "closed form" --output' in str(caught.value)
    assert "system.guidance.loss.corrector=" in str(caught.value)


def test_missing_and_damaged_files(tmp_path):
    teacher = gaussian_teacher()
    with pytest.raises(ConfigError, match=r"no corrector in .*card.json is missing.*correction.train"):
        build(teacher, tmp_path)
    make_corrector(tmp_path)
    weights, card = tmp_path / "corrector.safetensors", tmp_path / "card.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ConfigError, match=r"cannot load .*correction.train"):
        build(teacher, tmp_path)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"cannot load .*correction.train"):
        build(teacher, tmp_path)
    weights.write_bytes(whole)
    values = json.loads(card.read_text())
    card.write_text(json.dumps({**values, "widths": [16]}))
    with pytest.raises(ConfigError, match="cannot load"):
        build(teacher, tmp_path)
    card.write_text(json.dumps({**values, "raeds": "clean"}))
    with pytest.raises(ConfigError, match="did you mean 'reads'"):
        build(teacher, tmp_path)
    card.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        build(teacher, tmp_path)


def test_another_teachers_corrector_is_refused(tmp_path):
    teacher = gaussian_teacher()
    make_corrector(tmp_path / "shape", latent_shape=(4, 16, 16))
    with pytest.raises(ConfigError, match=r"latents are \[4, 16, 16\], this teacher's \[4, 8, 8\].*correction.train"):
        build(teacher, tmp_path / "shape", any_weights=True)
    make_corrector(tmp_path / "steps", steps=50)
    with pytest.raises(ConfigError, match="has 50 steps, this teacher's 1000"):
        build(teacher, tmp_path / "steps", any_weights=True)
    make_corrector(tmp_path / "other", teacher="somebody/else", teacher_fingerprint="a" * 64)
    teacher.fingerprint = "b" * 64
    with pytest.raises(ConfigError, match="trained for somebody/else: its weights have the hash aaaaaaaaaaaa, .* bbb"):
        build(teacher, tmp_path / "other")
    build(teacher, tmp_path / "other", any_weights=True)
    teacher.fingerprint = "a" * 64
    build(teacher, tmp_path / "other")
    teacher.fingerprint = ""  # not known: a name that a library resolves
    build(teacher, tmp_path / "other")
