from __future__ import annotations

import numpy as np
import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.initialization.pictures import PictureInit, PictureKind, first_picture, read_picture
from dreammapping.settings import parse_settings
from PIL import Image

PIXELS = PictureKind((3, 16, 24), None, torch.device("cpu"))


def first(kind: PictureKind = PIXELS, number: int = 0, **settings) -> torch.Tensor:
    torch.manual_seed(0)
    return first_picture(parse_settings(PictureInit, settings, "system.geometry.init"), kind, number)


def test_kinds_of_noise():
    normal, wide, uniform = first(type="normal"), first(type="normal", std=3), first(type="uniform")
    assert normal.shape == PIXELS.shape and normal.std() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(wide, 3 * normal)
    assert -1 <= uniform.min() < -0.9 and 0.9 < uniform.max() <= 1 and abs(uniform.mean()) < 0.06
    assert not first(type="zeros").any()


def test_pictures_differ_and_repeat():
    assert torch.equal(first(number=1), first(number=1)) and not torch.equal(first(number=0), first(number=1))


@pytest.fixture
def halves(tmp_path):
    """64 x 64, left half red, right half blue."""
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:, :32, 0] = pixels[:, 32:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    return str(tmp_path / "halves.png")


@pytest.mark.parametrize(
    "kind", [PIXELS, PictureKind((3, 128, 192), None, torch.device("cpu"))], ids=["smaller", "larger"]
)
def test_a_file_is_fitted_to_the_size(halves, kind):
    values = first(kind, type="image", path=halves)
    assert values.shape == kind.shape and -1 <= values.min() and values.max() <= 1
    left, right = values[:, :, 0], values[:, :, -1]
    torch.testing.assert_close(left.mean(1), torch.tensor([1.0, -1.0, -1.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(right.mean(1), torch.tensor([-1.0, -1.0, 1.0]), atol=0.02, rtol=0)


def test_noise_makes_particles_of_one_file_differ(halves):
    a, b = (first(number=n, type="image", path=halves, noise=0.5) for n in (0, 1))
    plain = first(type="image", path=halves)
    assert (a - plain).std() == pytest.approx(0.5, rel=0.1) and not torch.equal(a, b)


def test_latents_of_a_file_are_the_teacher_s(halves):
    class Teacher:
        image_size = (8, 8)

        def encode(self, rgb, generator):
            return 10 * rgb[:, :, ::2, ::2]  # [B,3,4,4]

    kind = PictureKind((3, 4, 4), Teacher(), torch.device("cpu"))
    values = first(kind, type="image", path=halves)
    assert values.shape == (3, 4, 4) and values[0, 0, 0] == pytest.approx(10, abs=0.2)


def test_white_shows_through(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "glass.png")
    assert (read_picture(str(tmp_path / "glass.png"), (2, 2)) == 1).all()


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_file_that_is_no_picture(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="broken.png cannot be read as a picture"):
        first(type="image", path=str(path))


def test_a_picture_too_large_to_be_true(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ConfigError, match="bomb.png"):
        first(type="image", path=str(tmp_path / "bomb.png"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "nomal"}, "did you mean 'normal'"),
        ({"type": "image"}, "init.path"),
        ({"type": "image", "path": "absent.png"}, "no file absent.png"),
        ({"std": -1}, "not be negative"),
        ({"pth": "x"}, "path"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ConfigError, match="system.geometry.init") as caught:
        first(**settings)
    assert message in str(caught.value)
