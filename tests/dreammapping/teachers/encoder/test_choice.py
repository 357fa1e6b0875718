"""Which encoder a teacher takes, and that its latents stay what they were."""

from __future__ import annotations

import sys
import types
import warnings

import pytest
import torch
from dreammapping.replay import Replayed
from dreammapping.teachers import DiffusersTeacher, TeacherOptions, diffusers_teacher
from dreammapping.teachers.encoder import FrozenEncoder, choice, fast_encoder
from dreammapping.teachers.encoder.arithmetic import TorchArithmetic

from tests.helpers.recorder import PlayedRecorder
from tests.helpers.tiny_teacher import make_tiny_teacher, make_vae

CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(make_tiny_teacher(tmp_path_factory.mktemp("teacher")))


@pytest.fixture
def kernels(monkeypatch):
    """Torch in Triton's place."""
    module = types.ModuleType("triton_arithmetic")
    module.TritonArithmetic = TorchArithmetic
    monkeypatch.setitem(sys.modules, "dreammapping.teachers.encoder.triton_arithmetic", module)


def frozen_vae():
    return make_vae(4, 32, 4).eval().requires_grad_(False)


@pytest.mark.usefixtures("kernels")
def test_the_fast_one_is_for_cuda_and_sixteen_bits():
    vae = frozen_vae()
    for device, dtype in ((torch.device("cpu"), torch.bfloat16), (CUDA, torch.float32)):
        assert fast_encoder(vae, device, dtype) is None
    for dtype in (torch.float16, torch.bfloat16):
        assert isinstance(fast_encoder(vae, CUDA, dtype), FrozenEncoder)
    recorded = fast_encoder(vae, CUDA, torch.float16, recorded=True)
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(recorded(pixels), FrozenEncoder(vae)(pixels))


def test_without_triton_a_warning_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "dreammapping.teachers.encoder.triton_arithmetic", None)
    with pytest.warns(UserWarning, match="needs Triton"):
        assert fast_encoder(frozen_vae(), CUDA, torch.float16) is None


@pytest.mark.usefixtures("kernels")
def test_an_unknown_part_is_named_in_a_warning():
    vae = frozen_vae()
    vae.encoder.conv_act = torch.nn.ReLU()
    with pytest.warns(UserWarning, match="does not know activation ReLU"):
        assert fast_encoder(vae, CUDA, torch.float16) is None


def test_kernels_that_do_not_run_are_found_before_the_first_step(kernels, monkeypatch):
    def fail(*args):
        raise RuntimeError("no C compiler\nand a long trace")

    for operation in ("normalize", "input_gradient"):
        with monkeypatch.context() as broken:
            broken.setattr(TorchArithmetic, operation, fail)
            with pytest.warns(UserWarning, match=r"not run here \(RuntimeError: no C compiler\)"):
                assert fast_encoder(frozen_vae(), CUDA, torch.float16) is None


def encoded(teacher, device="cpu"):
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    latents = teacher.encode(image, torch.Generator().manual_seed(1))
    probe = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    return latents.detach(), torch.autograd.grad(latents, image, probe.to(device))[0]


def test_on_a_cpu_diffusers_encodes(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        default, off = (
            DiffusersTeacher.load(folder, TeacherOptions(fast_encoder=fast)) for fast in (True, False)
        )
    for a, b in zip(encoded(default), encoded(off)):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "options",
    [{}, {"cuda_graphs": False}, {"record_encoder": False}, {"fast_encoder": False}, {"cpu_offload": True}],
    ids=str,
)
def test_a_teacher_encodes_the_same_with_the_fast_one(folder, monkeypatch, options):
    known, asked = encoded(DiffusersTeacher.load(folder)), []

    def choose(vae, device, dtype, *, recorded):
        asked.append(recorded)
        return lambda pixels: asked.append("used") or FrozenEncoder(vae)(pixels)

    monkeypatch.setattr(diffusers_teacher, "fast_encoder", choose)
    got = encoded(DiffusersTeacher.load(folder, TeacherOptions(**options)))
    wanted = "fast_encoder" not in options and "cpu_offload" not in options
    assert asked == ([options.get("cuda_graphs", True) and options.get("record_encoder", True), "used"] if wanted else [])
    for a, b in zip(got, known):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_a_recording_gives_the_same_values_and_gradients(monkeypatch):
    recorder = PlayedRecorder()
    monkeypatch.setattr(choice, "Replayed", lambda *a, **k: Replayed(*a, recorder=recorder, **k))
    encoder = FrozenEncoder(frozen_vae())
    recorded = choice.recording(encoder)
    for call in range(5):
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(call)).requires_grad_()
        a, b = (encode(images) for encode in (recorded, encoder))
        assert torch.equal(a, b)
        a, b = (torch.autograd.grad(y, images, torch.ones_like(y))[0] for y in (a, b))
        assert torch.equal(a, b) and a.abs().sum() > 0
    assert recorder.made == 2  # forward and backward


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recorded", [True, False])
def test_on_cuda_the_fast_one_is_taken_and_close(folder, recorded):
    known = encoded(DiffusersTeacher.load(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher = DiffusersTeacher.load(folder, TeacherOptions(cuda_graphs=recorded), "cuda")
        assert teacher._fast_encoder is not None
        for _ in range(5):  # the later ones are replayed
            for got, expected in zip(encoded(teacher, "cuda"), known):
                assert (got.cpu() - expected).norm() < 0.02 * expected.norm()
