"""An operator trained beforehand: what it learns, what a run makes of it, and what does not fit."""

from __future__ import annotations

import json

import pytest
import torch
from dreammapping.correction.fit import FitOptions, fit
from dreammapping.correction.pairs import make_pairs
from dreammapping.degradation import build_operator, train
from dreammapping.degradation.pretrained import OperatorCard, save_operator
from dreammapping.degradation.train import operator_errors, operator_loss, operator_rows
from dreammapping.distillation import Distiller, DistillerSettings, LossContext, build_loss
from dreammapping.errors import ConfigError
from dreammapping.teachers import ClosedFormTeacher, DiffusersTeacher, GaussianMixture

from tests.helpers.score import SHAPE, embeddings, gaussian_teacher
from tests.helpers.tiny_teacher import make_tiny_teacher

SMALL = "--count 16 --times 1 --image-batch 4 --steps 4 --batch 4 --save-every 2 --sample-steps 2 --device cpu".split()
VARIANCE = 0.3


def mean():
    return torch.tensor([1.0, -0.5, 0.5, -1.0]).view(4, 1, 1).expand(SHAPE)


class Drawn:
    """Pictures about twice as far from the mean as the teacher's."""

    captions = [f"image {i}" for i in range(32)]

    def latents(self, teacher, indices, text, generator, device):
        return mean() + 1.0 * torch.randn(len(indices), *SHAPE, generator=generator)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    teacher = ClosedFormTeacher({"cond": GaussianMixture.single(mean(), VARIANCE)})
    options = {"times": 6, "batch": 16, "seed": 0, "device": torch.device("cpu"), "report": lambda line: None}
    return make_pairs(teacher, Drawn(), lambda texts: torch.zeros(len(texts), 1, 1), tmp_path_factory.mktemp("pairs"), **options)


def least(alpha_bar):
    """E|eps - f e_c|^2 for the best f, with |x_0 - mu|^2 = 1: alpha_bar."""
    return alpha_bar / (alpha_bar + 1 - alpha_bar)


def test_the_rows_are_the_noise_and_the_prediction(pairs):
    schedule = gaussian_teacher().schedule
    index = torch.arange(0, len(pairs), 5)
    cond, eps, t = operator_rows(pairs, index, schedule, torch.device("cpu"))
    clean, noisy, times, _ = pairs.rows(index)
    ab = schedule.at(t, clean)
    assert torch.equal(t, times) and abs(eps.std() - 1) < 0.02 and abs((eps * clean).mean()) < 0.02
    late = t > 100
    expected = (1 - ab).sqrt() * (noisy - ab.sqrt() * mean()) / (VARIANCE * ab + 1 - ab)
    torch.testing.assert_close(cond[late], expected[late], atol=0.02, rtol=0.02)


def test_it_comes_near_the_best_factor_of_every_step(pairs, tmp_path):
    schedule = gaussian_teacher().schedule
    operator = build_operator("linear", SHAPE, generator=torch.Generator().manual_seed(0), time_steps=1000)

    def loss(index):
        return operator_loss(operator, pairs, index, schedule)

    before = operator_errors(operator, pairs, schedule)
    fit(operator, loss, len(pairs), FitOptions(steps=400, batch=32, lr=0.02, warmup=10), tmp_path, lambda line: None)
    after = operator_errors(operator, pairs, schedule)
    t = pairs.t.flatten()
    for row, start in zip(after, before):
        inside = (t >= row["t_from"]) & (t <= row["t_to"])
        known = least(schedule.alpha_bar[t[inside]]).mean().item()
        assert row["operator"] < 1.15 * known + 0.02, (row, known)
        assert row["e_c"] == start["operator"], "the linear operator starts as the identity"
        assert row["zero"] == pytest.approx(1.0, abs=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


def command(folder, output, *more):
    return ["--teacher", str(folder), "--output", str(output), *SMALL, *more]


@pytest.mark.parametrize("more", [(), ("--norm", "group", "--time-cond")])
def test_a_run_starts_from_it_and_trains_it_on(folder, tmp_path, more):
    train.main(command(folder, tmp_path / "out", *more))
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["training"]["pairs"] == 32 and len(card["training"]["validation"]) == 5
    assert card["training"]["command"].endswith("--time-cond" if more else "--norm batch")
    teacher, generator = DiffusersTeacher.load(str(folder)), torch.Generator().manual_seed(3)
    kind = {"bn_mode": "groupnorm", "m_time_cond": True} if more else {}
    config = {"type": "vdm", "psi_start": str(tmp_path / "out"), **kind}
    loss = build_loss(config, LossContext(teacher, teacher.latent_shape, generator))
    expected = torch.load(tmp_path / "out" / "work" / "checkpoint.pt", weights_only=True)["network"]
    state = loss.operator.state_dict()
    assert set(state) == set(expected)
    for key, value in state.items():
        torch.testing.assert_close(value, expected[key], atol=1e-3, rtol=1e-3)
    distiller = Distiller(loss, teacher, DistillerSettings(), generator)
    texts = {name: torch.zeros(2, 24, 16) for name in ("cond", "empty")}
    distiller(torch.randn(2, *teacher.latent_shape, requires_grad=True), texts)
    assert any(not torch.equal(value, state[key]) for key, value in expected.items())


def test_killed_it_goes_on_to_the_same_bytes(folder, tmp_path, monkeypatch):
    train.main(command(folder, tmp_path / "whole"))

    def killed(line):
        if line.startswith("step 2 of 4"):
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "_say", killed)
    with pytest.raises(KeyboardInterrupt):
        train.main(command(folder, tmp_path / "killed"))
    assert not (tmp_path / "killed" / "card.json").exists()
    monkeypatch.setattr(train, "_say", lambda line: None)
    train.main(command(folder, tmp_path / "killed"))
    for name in ("operator.safetensors", "card.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def save(folder, **changes):
    values = {"latent_shape": SHAPE, "steps": 1000, "teacher": "closed form", "teacher_fingerprint": ""}
    save_operator(build_operator("nonlinear", SHAPE, generator=torch.Generator()), OperatorCard(**values | changes), folder)


def vdm(folder, **options):
    teacher = gaussian_teacher()
    return build_loss({"type": "vdm", "psi_start": str(folder), **options}, LossContext(teacher, SHAPE, torch.Generator()))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"latent_shape": (4, 16, 16)}, {}, r"latents are \[4, 16, 16\], this teacher's \[4, 8, 8\].*degradation.train"),
        ({"steps": 500}, {}, "noise schedule has 500 steps"),
        ({}, {"operator": "linear"}, "operator 'nonlinear' there, 'linear' here.*change operator in system.guidance.loss"),
        ({}, {"bn_mode": "groupnorm"}, "norm 'batch' there, 'group' here.*change bn_mode"),
        ({}, {"m_time_cond": True}, "time_cond False there, True here.*change m_time_cond"),
        ({}, {"stages": 1}, "stages None there, 1 here"),
        ({}, {"width": 32}, "width None there, 32 here"),
        ({"stages": 1}, {"stages": 1}, "cannot load .*operator.safetensors.*degradation.train"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, changes, options, message):
    save(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        vdm(tmp_path, **options)


def test_missing_and_other_weights_are_told(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"no operator in .*card.json is missing.*degradation.train"):
        vdm(tmp_path)
    save(tmp_path, teacher_fingerprint="abc")
    monkeypatch.setattr(ClosedFormTeacher, "fingerprint", "other")
    with pytest.raises(ConfigError, match="hash abc, this teacher's other.*psi_any_weights=true"):
        vdm(tmp_path)
    vdm(tmp_path, psi_any_weights=True)


def test_a_start_leaves_the_random_numbers_as_they_are(tmp_path):
    save(tmp_path)
    teacher, states = gaussian_teacher(), []
    for start in (None, str(tmp_path)):
        generator = torch.Generator().manual_seed(4)
        loss = build_loss({"type": "vdm", "psi_start": start}, LossContext(teacher, SHAPE, generator))
        made = Distiller(loss, teacher, DistillerSettings(), generator)
        states.append(made(torch.zeros(2, *SHAPE), embeddings()).draw.noise)
    assert torch.equal(*states)
