"""A teacher whose network is recorded answers as one whose network is called."""

from __future__ import annotations

import pytest
import torch
from dreammapping.replay import Replayed
from dreammapping.teachers import DiffusersTeacher, TeacherOptions

from tests.helpers.recorder import PlayedRecorder
from tests.helpers.tiny_pipelines import make_tiny


@pytest.fixture(scope="module", params=["sd", "sdxl", "sd3"])
def folder(request, tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp(request.param), request.param)


def recorded(folder, **options):
    teacher, recorder = DiffusersTeacher.load(str(folder), TeacherOptions(**options)), PlayedRecorder()
    teacher._replayed = Replayed(teacher._answer, "the network", recorder=recorder)
    return teacher, recorder


def ask(teacher, seed, names=("cond", "empty"), **options):
    g = torch.Generator().manual_seed(seed)
    rows = 5 + -(-teacher.denoiser.text.pooled // teacher.denoiser.text.width)
    texts = {n: torch.randn(1 if n == "empty" else 2, rows, teacher.denoiser.text.width, generator=g) for n in names}
    x = torch.randn(2, *teacher.latent_shape, generator=g).requires_grad_(bool(options))
    return teacher.predict(x, torch.randint(0, 999, (2,), generator=g), texts, **options)


def test_answers_are_equal_whatever_is_asked_in_between(folder):
    (mine, recorder), theirs = recorded(folder), DiffusersTeacher.load(str(folder))
    for seed in range(5):
        for names in (("cond", "empty"), ("cond",), ("cond", "empty", "negative")):
            a, b = ask(mine, seed, names), ask(theirs, seed, names)
            assert list(a) == list(b) == list(names)
            assert all(torch.equal(a[name], b[name]) for name in names)
    assert recorder.made == 3 and mine.calls.forwards == theirs.calls.forwards == 5 * 12


def test_gradients_go_past_the_recording(folder):
    mine, recorder = recorded(folder)
    for seed in range(4):
        assert ask(mine, seed, differentiable=True)["cond"].requires_grad
    assert recorder.made == 0


@pytest.mark.parametrize("option", [{"cuda_graphs": False}, {"cpu_offload": True}])
def test_it_can_be_switched_off_and_is_with_weights_that_come_and_go(folder, option):
    mine, recorder = recorded(folder, **option)
    for seed in range(4):
        ask(mine, seed)
    assert recorder.made == 0


def test_moved_weights_are_recorded_anew(folder):
    mine, recorder = recorded(folder)
    for seed in range(3):
        ask(mine, seed)
    mine.to("cpu")
    ask(mine, 3)
    assert recorder.made == 1 and not mine._replayed._recordings


@pytest.mark.parametrize("size", [2, 3])  # of four rows: equal slices, and a shorter last one
def test_slices_of_the_batch_are_one_recording(folder, size):
    (mine, recorder), theirs = recorded(folder, unet_slice=size), DiffusersTeacher.load(str(folder))
    rows = []
    mine.network.register_forward_pre_hook(lambda _, args, kw: rows.append(batch_of(args, kw)), with_kwargs=True)
    for seed in range(5):
        a, b = ask(mine, seed), ask(theirs, seed)
        for name, eps in b.items():
            torch.testing.assert_close(a[name], eps, rtol=1e-5, atol=1e-5)
    assert recorder.made == 1 and len(mine._replayed._recordings) == 1
    assert rows[:2] == [size, 4 - size] and set(zip(rows[::2], rows[1::2])) == {(size, 4 - size)}


def batch_of(args, kwargs):
    return len(args[0] if args else kwargs["hidden_states"])
