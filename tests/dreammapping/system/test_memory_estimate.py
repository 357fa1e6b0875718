"""The estimate of a run's memory: the tally against an allocator, the options against each other, and what is said."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from dreammapping.degradation import build_operator
from dreammapping.system import memory_report
from dreammapping.system.live_memory import LiveBytes, peak_bytes
from dreammapping.system.memory_estimate import GIB, Setup, estimate, helpful_options
from dreammapping.system.memory_report import describe, setup_of
from dreammapping.teachers import DiffusersTeacher, TeacherOptions
from dreammapping.teachers.encoder import FrozenEncoder, TinyEncoderOptions
from torch.nn import functional as F

from tests.helpers.allocated import allocated_peak
from tests.helpers.tiny_teacher import make_tiny_teacher

SETUP = Setup(views=4, height=32, width=32, gaussians=100, scene_bytes=5600)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return DiffusersTeacher.load(str(make_tiny_teacher(tmp_path_factory.mktemp("teacher") / "tiny", image_size=64)))


def test_bytes_are_counted_once_and_until_they_are_freed():
    with LiveBytes() as live:
        a = torch.empty(1000, device="meta")  # 4000 bytes
        view = a[:10].view(2, 5)
        b = a.half()  # 2000 bytes
        assert live.now == 6000
        del a
        assert live.now == 6000 and len(view) == 2  # the view keeps all of it
        del view, b
        assert live.now == 0 and live.peak == 6000


def test_what_was_there_before_is_not_counted_nor_are_its_views():
    layer, x = torch.nn.Linear(1000, 10, device="meta"), torch.empty(1, 1000, device="meta")
    with LiveBytes() as live:
        y = layer(x)  # which turns the weights round
        weights = layer.weight.detach()
        assert live.now == y.nbytes == 40 and len(weights) == 10


def test_the_tally_equals_an_allocators_peak(tmp_path):
    """The VAE's encoder, forward and backward, with values on the CPU against without; attention as on a GPU."""

    def work(vae, device):
        vae.set_attn_processor(AttnProcessor())
        images = torch.zeros(3, 3, 64, 64, device=device, requires_grad=True)
        latents = vae.encode(images).latent_dist.mean
        torch.autograd.grad(latents, images, torch.zeros_like(latents))

    vae = DiffusersTeacher.load(str(make_tiny_teacher(tmp_path, image_size=64))).vae
    work(vae, "cpu")
    real = allocated_peak(lambda: work(vae, "cpu"))
    with torch.device("meta"):
        twin = type(vae).from_config(dict(vae.config)).requires_grad_(False)
    assert peak_bytes(lambda: work(twin, "meta")) == pytest.approx(real, rel=0.05)
    assert real > 2**20


def test_attention_without_graph_makes_no_matrix():
    def attend():
        with torch.no_grad():
            F.scaled_dot_product_attention(*(torch.empty(1, 1, 4096, 8, device="meta") for _ in range(3)))

    assert peak_bytes(attend) == 4 * 4096 * 8 * 4


def test_more_work_needs_more_and_slices_need_less(teacher):
    base = estimate(teacher, None, SETUP, torch.float32)
    parameters = [*teacher.vae.parameters(), *teacher.network.parameters()]
    assert base.parts["weights"] == 4 * sum(p.numel() for p in parameters)
    assert base.parts["scene"] == 4 * 5600
    by_views = {n: estimate(teacher, None, replace(SETUP, views=n), torch.float32) for n in (2, 4)}
    work = {n: found.parts["networks at work"] for n, found in by_views.items()}
    assert work[4] == pytest.approx(2 * work[2], rel=0.05)
    sliced = estimate(teacher, None, replace(SETUP, encode_slice=1), torch.float32)
    assert sliced.parts["networks at work"] < 0.6 * base.parts["networks at work"]
    half = estimate(teacher, None, SETUP, torch.float16).parts
    assert half["weights"] == base.parts["weights"] // 2 and half["networks at work"] < 0.7 * work[4]
    offloaded = estimate(teacher, None, replace(SETUP, cpu_offload=True), torch.float32)
    assert 0 < offloaded.parts["weights"] < base.parts["weights"] / 10
    many = estimate(teacher, None, replace(SETUP, gaussians=200), torch.float32)
    assert many.parts["renderer"] > base.parts["renderer"]


def test_the_operator_is_counted_and_left_alone(teacher):
    operator = build_operator("nonlinear", teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in operator.state_dict().items()}
    found = estimate(teacher, operator, SETUP, torch.float32)
    tensors = [*operator.parameters(), *operator.buffers()]
    assert found.parts["operator"] == 4 * sum(t.numel() * t.element_size() for t in tensors)
    assert all(torch.equal(value, before[name]) for name, value in operator.state_dict().items())
    assert operator.training and all(p.grad is None for p in operator.parameters())


def test_options_come_in_order_and_each_saves_more(teacher):
    found = list(helpful_options(teacher, None, SETUP, torch.float32))
    peaks = [estimate(teacher, None, SETUP, torch.float32).peak, *(less.peak for _, less in found)]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    assert found[0][0] == "system.guidance.encode_slice=2"
    assert found[-1][0].endswith("system.guidance.enable_sequential_cpu_offload=true")


def test_options_help_with_recordings_too(teacher):
    setup = replace(SETUP, fast_encoder=True, cuda_graphs=True)
    whole = estimate(teacher, None, setup, torch.float16)
    found = list(helpful_options(teacher, None, setup, torch.float16))
    peaks = [whole.peak, *(less.peak for _, less in found)]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks) > 3
    half = found[0][1]
    assert found[0][0] == "system.guidance.encode_slice=2"
    assert half.parts["recordings"] < whole.parts["recordings"] / 2  # the encoder is not recorded then
    assert half.parts["networks at work"] > whole.parts["networks at work"]


def test_what_is_said(teacher):
    peak = estimate(teacher, None, SETUP, torch.float32).peak
    fits = describe(teacher, None, SETUP, torch.float32, 80 * GIB)
    assert fits.count("\n") == 0 and f"{peak / GIB:.1f} GiB (with up to 100 Gaussians); 80.0 GiB" in fits
    least = list(helpful_options(teacher, None, SETUP, torch.float32))[-1][1].peak
    lines = describe(teacher, None, SETUP, torch.float32, least).splitlines()
    assert "will not fit" in lines[0] and "docs/memory.md" in lines[0]
    assert "encode_slice=2" in lines[1] and lines[1].endswith("not enough by itself")
    assert "saves" in lines[-1] and not lines[-1].endswith("not enough by itself")


def system_of(teacher, **guidance):
    parameters = [torch.nn.Parameter(torch.zeros(50, 14))]
    settings = SimpleNamespace(type="default", cap_max=200)
    geometry = SimpleNamespace(
        gaussians=None, count=50, parameters=lambda: parameters, densification=SimpleNamespace(settings=settings)
    )
    data = SimpleNamespace(batch_sizes=[8, 4], heights=[64, 512], widths=[64, 512])
    return SimpleNamespace(
        device=torch.device("cpu"),
        trainer=SimpleNamespace(datamodule=SimpleNamespace(train_dataset=data)),
        guidance=SimpleNamespace(teacher=teacher, cfg=SimpleNamespace(**guidance)),
        geometry=geometry,
        prompt_utils=SimpleNamespace(use_perp_neg=True),
    )


def test_the_setup_of_a_system(teacher):
    system = system_of(teacher, encode_slice=2)
    data = system.trainer.datamodule.train_dataset
    setup = Setup(8, 512, 512, 200, 200 * 14 * 4, prompts=4, further_views=(4,), encode_slice=2)
    assert setup_of(system, data) == setup
    assert setup_of(system_of(SimpleNamespace()), data) is None and setup_of(system, None) is None


def test_on_cuda_the_setup_says_what_is_fast_and_what_is_recorded(tmp_path):
    graphs = {flag: TeacherOptions(cuda_graphs=flag) for flag in (True, False)}
    for flag, options in graphs.items():
        teacher = DiffusersTeacher.load(str(make_tiny_teacher(tmp_path)), options)
        system = system_of(teacher)
        data = system.trainer.datamodule.train_dataset
        assert not setup_of(system, data).cuda_graphs and not setup_of(system, data).fast_encoder
        teacher.device, teacher._fast_encoder = torch.device("cuda"), FrozenEncoder(teacher.vae)
        found = setup_of(system, data)
        assert found.fast_encoder and found.cuda_graphs is flag and not found.tiny_encoder


@pytest.mark.parametrize(("steps", "always"), [(None, False), (100, True), (101, False), (-1, False)])
def test_a_tiny_encoder_counts_if_it_encodes_to_the_end(tmp_path, steps, always):
    teacher = DiffusersTeacher.load(str(make_tiny_teacher(tmp_path)))
    teacher.options.tiny_encoder = TinyEncoderOptions("taesd", until_step=100)
    system = system_of(teacher)
    assert setup_of(system, system.trainer.datamodule.train_dataset, steps).tiny_encoder is always


def test_an_estimate_never_stops_a_run(monkeypatch, caplog, teacher):
    told = []
    monkeypatch.setattr(memory_report.threestudio, "info", told.append)
    memory_report.announce(system_of(teacher))
    assert told == []  # on a CPU there is nothing to say
    system = system_of(teacher)
    system.device = torch.device("cuda")
    monkeypatch.setattr(memory_report, "available_bytes", lambda device: 1 / 0)
    memory_report.announce(system)
    assert "no estimate for this teacher (ZeroDivisionError" in told[0]


def test_options_are_those_of_the_teacher(tmp_path):
    teacher = DiffusersTeacher.load(str(make_tiny_teacher(tmp_path)), TeacherOptions(unet_slice=2))
    system = system_of(teacher)
    assert setup_of(system, system.trainer.datamodule.train_dataset).unet_slice == 2
