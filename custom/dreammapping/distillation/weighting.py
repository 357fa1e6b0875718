"""omega(t): how much each timestep counts. A function of alpha_bar, chosen by name (`weighting_strategy`)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..registry import Registry

Weighting = Callable[[Tensor], Tensor]
WEIGHTINGS: Registry[Weighting] = Registry("weighting_strategy")


@WEIGHTINGS.register("sds")
def sds(alpha_bar: Tensor) -> Tensor:
    """1 - alpha_bar: DreamFusion's public codes, VSD, NFSD, LODS."""
    return 1 - alpha_bar


@WEIGHTINGS.register("uniform")
def uniform(alpha_bar: Tensor) -> Tensor:
    """1: CSD stage 1, Consistent3D coarse."""
    return alpha_bar.new_ones(alpha_bar.shape)


@WEIGHTINGS.register("fantasia3d")
def fantasia3d(alpha_bar: Tensor) -> Tensor:
    """sqrt(alpha_bar) (1 - alpha_bar)."""
    return alpha_bar.sqrt() * (1 - alpha_bar)


@WEIGHTINGS.register("snr")
@WEIGHTINGS.register("asd")
def snr(alpha_bar: Tensor) -> Tensor:
    """sqrt((1 - alpha_bar) / alpha_bar), makes an eps residual an x_0 residual: LucidDreamer, ASD. 0.04 to 14.6."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()


@WEIGHTINGS.register("sigma")
def sigma(alpha_bar: Tensor) -> Tensor:
    """sqrt(1 - alpha_bar), the noise level."""
    return (1 - alpha_bar).sqrt()
