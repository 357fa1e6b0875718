"""A step without values against measured runs of real size, and against a miniature whose tensors are counted."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from dreammapping.degradation import build_operator
from dreammapping.distillation.noise_schedule import NoiseSchedule
from dreammapping.replay import Replayed
from dreammapping.system.live_memory import LiveBytes, peak_bytes
from dreammapping.system.memory_estimate import GIB, estimate
from dreammapping.system.shadow_step import Setup, ShadowStep
from dreammapping.teachers import DiffusersTeacher, TeacherOptions
from dreammapping.teachers.denoisers import StableDiffusion
from dreammapping.teachers.encoder import FrozenEncoder, TinyEncoder
from dreammapping.teachers.encoder.shapes import ShapeArithmetic

from benchmarks.stepping import SD21_UNET, SD21_VAE
from tests.helpers.allocated import allocated_peak
from tests.helpers.recorder import PlayedRecorder
from tests.helpers.tiny_teacher import make_tiny_teacher

MIB = 2**20
PAPER = Setup(4, 512, 512, gaussians=50_000, scene_bytes=50_000 * 14 * 4)
FAST = replace(PAPER, fast_encoder=True)
RECORDED = replace(FAST, cuda_graphs=True)
MINI = Setup(views=3, height=64, width=64, gaussians=100, scene_bytes=5600, fast_encoder=True, cuda_graphs=True)
HALF = torch.float16


@pytest.fixture(scope="module")
def sd21():
    """SD 2.1-base in shape, without values."""
    with torch.device("meta"):
        vae, unet = AutoencoderKL(**SD21_VAE), UNet2DConditionModel(**SD21_UNET)
    denoiser = StableDiffusion(unet, NoiseSchedule.scaled_linear(), "epsilon", 8)
    return DiffusersTeacher(vae, denoiser, SimpleNamespace(name="", location="", fingerprint=""), TeacherOptions())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return DiffusersTeacher.load(str(make_tiny_teacher(tmp_path_factory.mktemp("teacher") / "tiny", image_size=64)))


@pytest.fixture(scope="module")
def operator(tiny):
    return build_operator("nonlinear", tiny.latent_shape, generator=torch.Generator().manual_seed(0))


# ---- against measurements on one H200, 2026-11-29, torch 2.11: docs/results/performance ----


@pytest.mark.parametrize(("setup", "measured"), [(FAST, 3058), (PAPER, 6940)], ids=["ours", "diffusers'"])
def test_the_encoders_memory_is_the_measured_one(sd21, setup, measured):
    """encoder-h200.json: 4 x 512 x 512, forward and gradient. MiB."""
    step = ShadowStep(sd21, None, setup, HALF)
    assert peak_bytes(step._encode_and_back, 4) / MIB == pytest.approx(measured, rel=0.05)  # promised are 15 %


def test_a_tiny_encoders_memory_is_the_measured_one(sd21, monkeypatch):
    model = AutoencoderTiny(encoder_block_out_channels=(64,) * 4, num_encoder_blocks=(1, 3, 3, 3))
    monkeypatch.setattr(sd21, "_tiny_encoder", TinyEncoder(model, "taesd"))
    step = ShadowStep(sd21, None, replace(RECORDED, tiny_encoder=True), HALF)  # the U-Net's work is elsewhere
    assert step.direct_bytes() / MIB == pytest.approx(948, rel=0.15)


@pytest.mark.parametrize(("setup", "measured"), [(PAPER, 9607063552), (FAST, 5645724672)], ids=["eager", "all on"])
def test_what_is_allocated_in_a_step_is_the_measured_peak(sd21, setup, measured):
    """iteration-h200.json: SDS with everything off; VDM and DCA with everything on, whose peak is while the encoder is
    recorded, before the U-Net is. torch counts neither scratch space of its own making nor the context."""
    parts = estimate(sd21, None, setup, HALF).parts
    tensors = sum(parts[name] for name in ("weights", "scene", "renderer", "operator", "networks at work"))
    assert tensors == pytest.approx(measured, rel=0.05)


# ---- options ----


def test_recordings_add_up_what_direct_calls_take_in_turns(sd21):
    direct, recorded = (ShadowStep(sd21, None, setup, HALF) for setup in (FAST, RECORDED))
    network, encoder = peak_bytes(recorded._ask, 4), peak_bytes(recorded._encode_and_back, 4)
    assert recorded.recorded_bytes() == network + encoder > direct.direct_bytes()
    assert direct.recorded_bytes() == 0 and network > 0.1 * GIB
    assert recorded.direct_bytes() < 64 * MIB  # pictures, and copies of results


@pytest.mark.parametrize("option", [{"encode_slice": 2}, {"encode_slice": 4}, {"cpu_offload": True}])
def test_what_keeps_the_encoder_from_being_recorded(tiny, option):
    recorded, direct = (ShadowStep(tiny, None, replace(MINI, **o), HALF) for o in ({}, option))
    network = 0 if "cpu_offload" in option else peak_bytes(direct._ask, 3)
    assert direct.recorded_bytes() == network < recorded.recorded_bytes()
    assert direct.direct_bytes() > recorded.direct_bytes()
    assert (direct.copied == 0) == ("cpu_offload" in option)  # then diffusers' encoder is used


def test_fewer_rows_of_the_network_make_its_recording_smaller(tiny):
    sizes = [ShadowStep(tiny, None, replace(MINI, unet_slice=n), HALF).recorded_bytes() for n in (0, 3, 1)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


def test_each_number_of_views_has_a_recording(tiny):
    step = ShadowStep(tiny, None, replace(MINI, further_views=(2, 1)), HALF)
    more = sum(peak_bytes(step._encode_and_back, views) for views in (2, 1))
    assert step.recorded_bytes() == ShadowStep(tiny, None, MINI, HALF).recorded_bytes() + more


def test_the_operator_works_directly_or_in_the_shared_memory(tiny, operator):
    offloaded = replace(MINI, cpu_offload=True)  # nothing else is recorded
    recorded = ShadowStep(tiny, operator, offloaded, HALF)
    own = peak_bytes(recorded._learn, recorded._latents(3))
    assert recorded.recorded_bytes() == own > 0
    assert ShadowStep(tiny, operator, replace(offloaded, cuda_graphs=False), HALF).recorded_bytes() == 0
    both = ShadowStep(tiny, operator, MINI, HALF)
    shared = max(own, peak_bytes(both._ask, 3))
    assert both.recorded_bytes() == shared + peak_bytes(both._encode_and_back, 3)


def test_the_copied_weights_are_counted(tiny):
    step = ShadowStep(tiny, None, MINI, HALF)
    network = FrozenEncoder(tiny.vae.half(), ShapeArithmetic()).network
    tiny.vae.float()
    turned = [c.turned for piece in network.pieces for c in getattr(piece, "convolutions", ())]
    assert step.copied > 2 * sum(t.nbytes for t in turned) > 0  # once in the other layout, once turned round


# ---- against a miniature with values ----


def test_the_fast_encoders_tally_equals_an_allocators_peak(tiny):
    def work(encoder, device):
        images = torch.zeros(3, 3, 64, 64, device=device, requires_grad=True)
        moments = encoder(images)
        torch.autograd.grad(moments, images, torch.zeros_like(moments))

    real = FrozenEncoder(tiny.vae, ShapeArithmetic())
    work(real, "cpu")
    step = ShadowStep(tiny, None, MINI, torch.float32)
    allocated = allocated_peak(lambda: work(real, "cpu"))
    assert peak_bytes(work, step.encoder, "meta") == pytest.approx(allocated, rel=0.05) and allocated > MIB


class PoolCounter(PlayedRecorder):
    """Counts what the recordings of both ways have alive at once in the memory that they share."""

    def __init__(self):
        super().__init__()
        self.live = LiveBytes()

    def record(self, function, pool):
        with self.live:
            return super().record(function, pool)


def test_a_recordings_memory_is_what_a_recording_has_alive(tiny):
    recorder, encoder = PoolCounter(), FrozenEncoder(tiny.vae, ShapeArithmetic())
    replayed = Replayed(lambda x: (encoder(x),), "it", differentiable=True, after=0, recorder=recorder)
    replayed(torch.zeros(3, 3, 64, 64, requires_grad=True))
    step = ShadowStep(tiny, None, MINI, torch.float32)
    assert recorder.made == 2
    assert peak_bytes(step._encode_and_back, 3) == pytest.approx(recorder.live.peak, rel=0.1)
