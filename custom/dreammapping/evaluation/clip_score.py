"""CLIP score: how well pictures agree with a text, as text-to-3D papers print it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import DreamMappingError


def clip_scores(image_features: Tensor, text_feature: Tensor) -> Tensor:
    """100 x cosine of each picture with the text: [N].

    No factor 2.5 and no cut at 0, which CLIPScore (Hessel et al. 2021) has. Models differ by tens of points, so scores compare only with
    scores of one model; ViT-bigG-14 gives 10 to 16 more than ViT-L/14.

    Args:
        image_features: [N, D], of any length above 0.  text_feature: [D], of the same model.

    Raises `DreamMappingError` for shapes that do not fit.
    """
    if image_features.ndim != 2 or text_feature.shape != image_features.shape[1:]:
        raise DreamMappingError(
            f"features of pictures {list(image_features.shape)} and of the text {list(text_feature.shape)} must be [N, D] and [D]"
        )
    text = text_feature.to(image_features).float()
    return 100.0 * F.normalize(image_features.float(), dim=-1) @ F.normalize(text, dim=-1)
