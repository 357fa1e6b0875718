"""Image regularizers shared by systems."""

from __future__ import annotations

from torch import Tensor


def tv_loss(x: Tensor) -> Tensor:
    """Total variation of images: the mean squared difference of vertical plus horizontal neighbors.

    Args:
        x: [B, C, H, W], any range.

    Returns:
        Scalar, `2 / B * (sum of squared vertical differences / their number in one image + the same horizontally)`.
        An axis of length 1 has no neighbors and adds nothing.
    """
    vertical = (x[:, :, 1:, :] - x[:, :, :-1, :]).square()
    horizontal = (x[:, :, :, 1:] - x[:, :, :, :-1]).square()
    total = x.new_zeros(())
    for difference in (vertical, horizontal):
        if difference.numel():
            total = total + difference.mean()
    return 2.0 * total
