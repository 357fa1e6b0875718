"""The training of VDM's operator as a recording: bit for bit what the direct calls do, saved and resumed."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import Distiller, DistillerSettings, LossContext, build_loss
from dreammapping.distillation.recorded_update import RecordedUpdate

from tests.helpers.recorder import PlayedRecorder
from tests.helpers.score import gaussian_teacher

SHAPE = (4, 8, 8)


def distiller(recorder=None, **options):
    generator = torch.Generator().manual_seed(0)
    teacher = gaussian_teacher(torch.float32)
    loss = build_loss({"type": "vdm", **options}, LossContext(teacher, SHAPE, generator))
    made = Distiller(loss, teacher, DistillerSettings(), generator)
    if recorder is not None:
        made.recorded = RecordedUpdate(made.update, loss, made.optimizer, recorder)
    return made


def steps(made, count, first=0):
    found = []
    for step in range(first, first + count):
        latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(step)).requires_grad_()
        text = {name: torch.zeros(1, 1, 1) for name in ("cond", "empty")}
        result = made(latents, text, step=step)
        found += [result.gradient, *(result.diagnostics[name].float() for name in sorted(result.diagnostics))]
    return found


def state(made):
    saved = made.state_dict()["optimizer"]["state"]
    return [*made.loss.state_dict().values(), *(value for entry in saved.values() for value in entry.values())]


OPTIONS = [
    {},
    {"psi_lookahead": True, "psi_steps": 2},
    {"psi_warmup": 3, "psi_opt": "adamw"},
    {"psi_opt": "sgd"},
    {"bn_mode": "eval", "cfg_place": "inside"},
    {"op_tmin": 500},
    {"m_time_cond": True, "cfg_place": "none"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_recorded_and_direct_steps_are_equal(options):
    recorder = PlayedRecorder()
    recorded, direct = distiller(recorder, **options), distiller(**options)
    for mine, theirs in zip(steps(recorded, 8), steps(direct, 8), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(state(recorded), state(direct), strict=True):
        assert torch.equal(mine, theirs)
    assert recorder.made >= 1 and not recorded.recorded._replayed.gave_up


def test_a_resumed_run_records_the_loaded_state():
    recorded, other, direct = distiller(PlayedRecorder()), distiller(PlayedRecorder()), distiller()
    expected = steps(direct, 10)
    steps(recorded, 5)
    steps(other, 5, first=40)  # a recording of its own, of a state that is then replaced
    other.load_state_dict(recorded.state_dict())
    other.loss.load_state_dict(recorded.loss.state_dict())
    assert not other.recorded._replayed._recordings  # a real recording would go on with the tensors that were replaced
    found = steps(other, 5, first=5)
    for mine, theirs in zip(found, expected[-len(found) :], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["measured", "learned"])
def test_coefficients_that_learn_on_the_host_are_never_recorded(kind):
    recorder = PlayedRecorder()
    recorded, direct = distiller(recorder, dca={"type": kind}), distiller(dca={"type": kind})
    for mine, theirs in zip(steps(recorded, 5), steps(direct, 5), strict=True):
        assert torch.equal(mine, theirs)
    assert recorder.made == 0


def test_it_can_be_switched_off():
    teacher = gaussian_teacher(torch.float32)
    loss = build_loss({"type": "vdm"}, LossContext(teacher, SHAPE, torch.Generator().manual_seed(0)))
    assert Distiller(loss, teacher, DistillerSettings(cuda_graphs=False), torch.Generator()).recorded is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_cuda_graphs_and_direct_calls_agree():
    recorded, direct = distiller(), distiller()
    direct.recorded = None
    for made in (recorded, direct):
        made.loss.cuda()
    texts = {name: torch.zeros(1, 1, 1, device="cuda") for name in ("cond", "empty")}
    for step in range(12):
        latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(step)).cuda().requires_grad_()
        mine, theirs = (made(latents, texts, step=step).gradient for made in (recorded, direct))
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    assert recorded.recorded._replayed._recordings
