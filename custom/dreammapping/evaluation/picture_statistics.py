"""Color and sharpness of pictures, to be compared with those of pictures that the teacher draws.

Score distillation is known for too saturated colors and too smooth surfaces; both can be measured against the teacher's own samples of the same
prompts. Values depend on the size of the pictures and on how much of them is background, so compare equal sizes and like backgrounds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DreamMappingError

LUMA = (0.299, 0.587, 0.114)
"""Weights of R', G', B' (ITU-R BT.601), as in OpenCV's and Pillow's gray pictures."""
TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
"""Linear sRGB -> CIE XYZ with the white point D65 (IEC 61966-2-1)."""
NAMES = ("saturation", "chroma", "colorfulness", "sharpness", "contrast", "brightness")


def picture_statistics(images: Tensor) -> dict[str, Tensor]:
    """Statistics of sRGB pictures [N, H, W, 3] in [0, 1], H and W at least 3: a tensor [N] (float64, on the CPU) for each of `NAMES`.

    - saturation: mean of HSV's (max - min) / max (Smith 1978), 0 for black; in [0, 1].
    - chroma: mean of sqrt(a*^2 + b*^2) in CIELAB, D65 (CIE 15:2004); about 0 to 134. Unlike saturation it is small where it is dark.
    - colorfulness: M^(3) of Hasler and Suesstrunk (2003), of values 0 to 255: 0 is gray, 15 slight, 59 quite, 109 extreme.
    - sharpness: variance of the Laplacian (four neighbors) of luma 0 to 255 (Pech-Pacheco et al. 2000), border left out.
    - contrast: standard deviation of luma 0 to 1 (Peli 1990).  brightness: its mean.

    Raises `DreamMappingError` for another shape or range.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < 3:
        raise DreamMappingError(f"pictures have the shape {list(images.shape)}; it must be [N, H, W, 3], at least 3 x 3 pixels")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise DreamMappingError("pictures must have values from 0 to 1")
    rows = [_of_one(image.detach().cpu().double()) for image in images]  # one at a time: float64 of many large pictures fills the memory
    return {name: torch.stack([row[i] for row in rows]) if rows else torch.zeros(0, dtype=torch.float64) for i, name in enumerate(NAMES)}


def _of_one(image: Tensor) -> tuple[Tensor, ...]:
    """[H, W, 3] float64 -> the values in the order of `NAMES`."""
    luma = image @ image.new_tensor(LUMA)
    top, bottom = image.amax(-1), image.amin(-1)
    saturation = torch.where(top > 0, (top - bottom) / top.clamp(min=1e-12), 0.0).mean()
    return saturation, _chroma(image), _colorfulness(image), _sharpness(luma), luma.std(correction=0), luma.mean()


def _chroma(image: Tensor) -> Tensor:
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    matrix = image.new_tensor(TO_XYZ)
    relative = linear @ (matrix / matrix.sum(1, keepdim=True)).T  # to the white point
    delta = 6 / 29
    f = torch.where(relative > delta**3, relative.clamp(min=0) ** (1 / 3), relative / (3 * delta**2) + 4 / 29)
    a, b = 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])
    return torch.hypot(a, b).mean()


def _colorfulness(image: Tensor) -> Tensor:
    red, green, blue = (255 * image).unbind(-1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue]).flatten(1)
    return opponents.std(1, correction=0).norm() + 0.3 * opponents.mean(1).norm()


def _sharpness(luma: Tensor) -> Tensor:
    kernel = luma.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    return F.conv2d(255 * luma[None, None], kernel[None, None]).var(correction=0)
