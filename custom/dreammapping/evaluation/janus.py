"""Does an object have more than one front? The Janus rate, measured with the embedded judge.

A Janus object (two faces, as the Roman god) shows its front to viewers who should see its side or back: text-to-3D by score
distillation makes them because the teacher prefers fronts (Poole et al. 2023, section 5). The judge answers for every view on a circle
around the object which side it sees (front, side, back; 98 % right on pictures of the world it was trained for, where every family has a
front). A true object looks like a front within 45 degrees of its front, so two such views are at most 90 degrees apart. An object is
called Janus here if a front is seen from two azimuths at least `DISTANT` degrees apart. Where the front is does not matter: an object
that is turned is no Janus. The rate is the share of runs whose objects are.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DreamMappingError

DISTANT = 120.0
"""Degrees between two views of a front that one front cannot explain: 90, and two views of 15 degrees for the judge's errors at its edges."""
SMOOTHED = 20.0
"""Degrees to each side over which the answers are averaged, so that no single wrong answer makes a front."""
LEAST_VIEWS = 8


def front_azimuths(odds: Tensor, azimuth: Tensor, views: Sequence[str]) -> list[float]:
    """Azimuths, rising in [0, 360), from which a front is seen.

    Args:
        odds: [V, len(views)] probabilities of the judge's answers on the view, `Judge.odds(...)["view"]`.
        azimuth: [V] degrees, V >= 8, all around the object.
        views: names of the answers, `Judge.views`; "overhead" is left out, because the camera is known not to be there.

    Raises `DreamMappingError` for too few views, or shapes that do not fit.
    """
    if odds.shape != (len(azimuth), len(views)) or len(azimuth) < LEAST_VIEWS:
        raise DreamMappingError(
            f"odds {list(odds.shape)} and {len(azimuth)} azimuths: it must be [V, {len(views)}] and V, at least {LEAST_VIEWS} views around the object"
        )
    azimuth = torch.remainder(azimuth.double().cpu(), 360.0)
    around = [i for i, view in enumerate(views) if view != "overhead"]
    known = odds.double().cpu()[:, around]
    near = (distance(azimuth[:, None], azimuth[None]) <= SMOOTHED).double()
    mean = near @ (known / known.sum(1, keepdim=True)) / near.sum(1, keepdim=True)
    seen = mean.argmax(1) == [views[i] for i in around].index("front")
    return sorted(azimuth[seen].tolist())


def is_janus(odds: Tensor, azimuth: Tensor, views: Sequence[str]) -> bool:
    """Whether a front is seen from two azimuths at least `DISTANT` degrees apart. Arguments as for `front_azimuths`."""
    fronts = torch.tensor(front_azimuths(odds, azimuth, views), dtype=torch.float64)
    return bool((distance(fronts[:, None], fronts[None]) >= DISTANT).any())


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Degrees between directions, in [0, 180]."""
    return (torch.remainder(a - b + 180.0, 360.0) - 180.0).abs()
