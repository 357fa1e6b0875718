"""A tiny encoder for the first steps: its latents must be the teacher's, and it must step aside in time."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny
from dreammapping.errors import ConfigError, TeacherError
from dreammapping.guidance import DreamMappingGuidance
from dreammapping.settings import parse_settings
from dreammapping.teachers import DiffusersTeacher, TeacherOptions
from dreammapping.teachers.encoder import TinyEncoder, TinyEncoderOptions
from dreammapping.teachers.encoder.tiny import agreement, probe
from omegaconf import OmegaConf
from torch.nn import functional as F

from tests.helpers.tiny_teacher import make_tiny_teacher


def make_tiny(teacher, scale=1.0, channels=4, levels=3):
    """An AutoencoderTiny whose last layer is fitted to `scale` times the teacher's latents of the test picture."""
    torch.manual_seed(0)
    widths, blocks = (64,) * levels, (1,) * levels
    tiny = AutoencoderTiny(encoder_block_out_channels=widths, num_encoder_blocks=blocks, latent_channels=channels)
    tiny.eval().requires_grad_(False)
    *body, last = tiny.encoder.layers
    pixels = probe(teacher.image_size, torch.empty(0))
    target = teacher._mean(pixels) * scale
    if target.shape[1] == channels and levels == 3:
        features = torch.nn.Sequential(*body)(pixels.add(1).div(2))
        columns = F.unfold(features, 3, padding=1)[0].T.double()  # [hw,576]
        weight = torch.linalg.lstsq(columns, target.flatten(2)[0].T.double(), driver="gelsd").solution
        last.weight.copy_(weight.T.reshape(last.weight.shape))
        last.bias.zero_()
    return tiny


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return DiffusersTeacher.load(str(teacher_folder))


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory, teacher):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny(teacher).save_pretrained(folder)
    return folder


def options(folder, until):
    return TeacherOptions(tiny_encoder=TinyEncoderOptions(str(folder), until))


def test_it_encodes_until_its_step_and_the_vae_afterwards(teacher, teacher_folder, tiny_folder):
    both = DiffusersTeacher.load(str(teacher_folder), options(tiny_folder, 5))
    model = AutoencoderTiny.from_pretrained(tiny_folder).eval()
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for step in (0, 4):
        both.step = step
        latents = both.encode(image, torch.Generator().manual_seed(1))
        torch.testing.assert_close(latents, model.encode(image * 2 - 1).latents)
        assert torch.autograd.grad(latents.sum(), image)[0].abs().sum() > 0
    both.step = 5
    a, b = (t.encode(image, torch.Generator().manual_seed(1)) for t in (both, teacher))
    assert torch.equal(a, b)


def test_the_guidance_tells_the_step(teacher_folder, tiny_folder):
    config = {
        "pretrained_model_name_or_path": str(teacher_folder),
        "seed": 0,
        "tiny_encoder": {"model": str(tiny_folder), "until_step": 3},
    }
    guidance = DreamMappingGuidance(OmegaConf.create(config))
    plain = DreamMappingGuidance(OmegaConf.create(config | {"tiny_encoder": {}}))
    image = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    for step, same in ((2, False), (3, True)):
        for each in (guidance, plain):
            each.distiller.generator.manual_seed(0)
            each.update_step(0, step)
        assert torch.equal(guidance.latents(image), plain.latents(image)) == same


@pytest.mark.parametrize("scale", [0.4, 2.0, -1.0])
def test_latents_of_another_scale_are_refused(teacher, scale):
    with pytest.raises(TeacherError, match="does not encode as the teacher"):
        teacher.adopt(TinyEncoder(make_tiny(teacher, scale), "other/tiny"))
    assert teacher._tiny_encoder is None


def test_the_scale_of_its_config_counts(teacher):
    tiny = make_tiny(teacher, 0.5)
    tiny.register_to_config(scaling_factor=2.0)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(TinyEncoder(tiny, "")(image), 2 * tiny.encode(image).latents)
    TinyEncoder(tiny, "other/tiny").check("", teacher._mean, teacher.image_size, torch.empty(0))


@pytest.mark.parametrize(("channels", "levels"), [(16, 3), (4, 4)])
def test_latents_of_another_shape_are_refused(teacher, channels, levels):
    tiny = TinyEncoder(make_tiny(teacher, channels=channels, levels=levels), "other/tiny")
    with pytest.raises(TeacherError, match="other/tiny makes latents"):
        teacher.adopt(tiny)


def test_agreement_is_correlation_and_slope():
    known = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert agreement(0.5 * known + 7, known) == pytest.approx((1.0, 0.5))
    correlation, slope = agreement(known + noise, known)
    assert correlation == pytest.approx(0.5**0.5, abs=0.05) and slope == pytest.approx(1, abs=0.1)


def test_a_missing_model_is_an_error_that_names_it(teacher_folder, tmp_path):
    with pytest.raises(Exception, match="nowhere") as problem:
        DiffusersTeacher.load(str(teacher_folder), options(tmp_path / "nowhere", 5))
    assert problem.value.is_user_error
    (tmp_path / "empty").mkdir()
    with pytest.raises(TeacherError, match=r"cannot load .*empty"):
        DiffusersTeacher.load(str(teacher_folder), options(tmp_path / "empty", 5))


@pytest.mark.parametrize("block", [{"model": "a/b"}, {"until_step": 5}, {"model": "a/b", "until_step": -1}])
def test_half_of_the_options_is_an_error(block):
    with pytest.raises(ConfigError, match="system.guidance.tiny_encoder: .*give both"):
        parse_settings(TinyEncoderOptions, block, "system.guidance.tiny_encoder")
    assert not parse_settings(TinyEncoderOptions, {}, "").wanted
