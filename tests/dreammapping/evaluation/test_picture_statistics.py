"""Color and sharpness, against other code and by hand."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from dreammapping.errors import DreamMappingError
from dreammapping.evaluation.picture_statistics import NAMES, picture_statistics
from PIL import Image
from scipy import ndimage


def plain(*color: float, size: int = 6) -> torch.Tensor:
    return torch.tensor(color).expand(1, size, size, 3)


def of(picture: torch.Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in picture_statistics(picture).items()}


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.rand(2, 13, 9, 3, generator=torch.Generator().manual_seed(0))


def test_saturation_is_colorsys(noise):
    expected = [np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in picture.reshape(-1, 3).tolist()]) for picture in noise]
    assert picture_statistics(noise)["saturation"].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("color", "chroma"), [((1, 0, 0), 104.55), ((0, 1, 0), 119.78), ((0, 0, 1), 133.81), ((0.5, 0.5, 0.5), 0.0), ((1, 1, 1), 0.0), ((0, 0, 0), 0.0)]
)
def test_chroma_of_known_colors(color, chroma):
    """Published CIELAB values of the sRGB primaries (D65)."""
    assert of(plain(*map(float, color)))["chroma"] == pytest.approx(chroma, abs=0.02)


def test_chroma_is_scikit_images(noise):
    rgb2lab = pytest.importorskip("skimage.color").rgb2lab
    lab = rgb2lab(noise.double().numpy())
    assert picture_statistics(noise)["chroma"].tolist() == pytest.approx(np.hypot(lab[..., 1], lab[..., 2]).mean((1, 2)).tolist(), rel=1e-3)


def test_dark_colors_are_saturated_but_have_little_chroma():
    bright, dark = of(plain(1.0, 0.5, 0.5)), of(plain(0.02, 0.01, 0.01))
    assert bright["saturation"] == pytest.approx(dark["saturation"]) == pytest.approx(0.5)
    assert dark["chroma"] < 0.1 * bright["chroma"]


def test_colorfulness_by_hand():
    assert of(plain(0.3, 0.3, 0.3))["colorfulness"] == pytest.approx(0.0, abs=1e-5)
    assert of(plain(1.0, 0.0, 0.0))["colorfulness"] == pytest.approx(0.3 * math.hypot(255, 127.5), rel=1e-6)
    halves = torch.cat([plain(1.0, 0, 0), plain(0, 1.0, 0)], dim=2)  # rg = +-255, yb = 127.5
    assert of(halves)["colorfulness"] == pytest.approx(255 + 0.3 * 127.5, rel=1e-6)


def test_sharpness_is_scipys_laplacian_of_pillows_gray(noise):
    for picture, found in zip(noise, picture_statistics(noise)["sharpness"].tolist()):
        rounded = (picture * 255).round().byte()
        gray = np.asarray(Image.fromarray(rounded.numpy()).convert("L"), dtype=np.float64)
        expected = ndimage.laplace(gray)[1:-1, 1:-1].var()
        assert found == pytest.approx(expected, rel=0.01)


def test_blur_lowers_sharpness_and_gray_lowers_color(noise):
    blurred = torch.from_numpy(ndimage.gaussian_filter(noise.numpy(), (0, 1, 1, 0)))
    faded = 0.5 * noise + 0.5 * noise.mean(-1, keepdim=True)
    now, blurry, pale = (picture_statistics(x) for x in (noise, blurred, faded))
    assert (blurry["sharpness"] < 0.2 * now["sharpness"]).all() and (blurry["contrast"] < now["contrast"]).all()
    assert all((pale[name] < now[name]).all() for name in ("saturation", "chroma", "colorfulness"))


def test_brightness_and_contrast_by_hand():
    halves = torch.cat([plain(1.0, 1.0, 1.0), plain(0.0, 0.0, 0.0)], dim=2)
    assert of(halves)["brightness"] == pytest.approx(0.5) and of(halves)["contrast"] == pytest.approx(0.5)
    assert of(plain(0.0, 1.0, 0.0))["brightness"] == pytest.approx(0.587)


def test_each_picture_has_its_own_values(noise):
    both = picture_statistics(noise)
    assert tuple(both) == NAMES and all(value.shape == (2,) and value.dtype == torch.float64 for value in both.values())
    assert of(noise[1:]) == {name: value[1].item() for name, value in both.items()}
    assert all(value.shape == (0,) for value in picture_statistics(noise[:0]).values())


@pytest.mark.parametrize("pictures", [torch.zeros(2, 3, 8, 8), torch.zeros(8, 8, 3), torch.zeros(1, 2, 8, 3)])
def test_other_shapes_are_told(pictures):
    with pytest.raises(DreamMappingError, match=r"\[N, H, W, 3\]"):
        picture_statistics(pictures)


@pytest.mark.parametrize("value", [-0.1, 255.0, math.nan])
def test_other_ranges_are_told(value):
    with pytest.raises(DreamMappingError, match="from 0 to 1"):
        picture_statistics(torch.full((1, 4, 4, 3), value))
