"""Does an object have more than one front? The Janus rate, and how well an object agrees with its views, by the embedded judge.

A Janus object (two faces, as the Roman god) shows its front to viewers who should see its side or back: text-to-3D by score
distillation makes them because the teacher prefers fronts (Poole et al. 2023, section 5). The judge answers for every view on a circle
around the object which side it sees. A true object looks like a front within 45 degrees of its front, so two such views are at most
90 degrees apart. An object is called Janus if a front is seen from two azimuths at least `DISTANT` degrees apart. Where the front is
does not matter: an object that is turned is no Janus. The rate is the share of objects that are.

`python -m tabletop.evaluate_janus` measures both on the world the judge was made for, in which every family has a front, with 24 views
at an elevation of 20 degrees; docs/results.md has what came out.
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
FRONT_THRESHOLD = BACK_THRESHOLD = 45.0
"""Degrees from straight ahead and from behind; threestudio's prompts change there, and the judge learned it so."""
UNCLEAR = 8.0
"""Views nearer than this to the border of two sides, in degrees, count for neither."""


def front_azimuths(odds: Tensor, azimuth: Tensor, views: Sequence[str]) -> list[float]:
    """Azimuths, rising in [0, 360), from which a front is seen.

    Args:
        odds: [V, len(views)] probabilities of the judge's answers on the view, `Judge.odds(...)["view"]`.
        azimuth: [V] degrees, V >= 8, all around the object.
        views: names of the answers, `Judge.views`; "overhead" is left out, because the camera is known not to be there.

    Raises `DreamMappingError` for too few views, or shapes that do not fit.
    """
    odds, names = around(odds, azimuth, views)
    near = (distance(azimuth[:, None], azimuth[None]) <= SMOOTHED).to(odds)
    mean = near @ odds / near.sum(1, keepdim=True)
    seen = mean.argmax(1) == names.index("front")
    return sorted(torch.remainder(azimuth[seen], 360.0).tolist())


def is_janus(odds: Tensor, azimuth: Tensor, views: Sequence[str]) -> bool:
    """Whether a front is seen from two azimuths at least `DISTANT` degrees apart. Arguments as for `front_azimuths`."""
    fronts = torch.tensor(front_azimuths(odds, azimuth, views), dtype=torch.float64)
    return bool((distance(fronts[:, None], fronts[None]) >= DISTANT).any())


def share_of_right_views(odds: Tensor, azimuth: Tensor, views: Sequence[str]) -> float:
    """Share, in [0, 1], of the clear views in which the judge sees the side that the azimuth says. Arguments as for `front_azimuths`.

    Lower than 1 for a Janus, and also for an object that is turned, has no front, or looks the same from everywhere.
    """
    odds, names = around(odds, azimuth, views)
    off = distance(azimuth, torch.zeros_like(azimuth))  # from straight ahead
    truth = torch.full_like(off, names.index("side"), dtype=torch.int64)
    truth[off < FRONT_THRESHOLD] = names.index("front")
    truth[off > 180.0 - BACK_THRESHOLD] = names.index("back")
    clear = torch.minimum((off - FRONT_THRESHOLD).abs(), (off - 180.0 + BACK_THRESHOLD).abs()) >= UNCLEAR
    return (odds.argmax(1) == truth)[clear].double().mean().item()


def around(odds: Tensor, azimuth: Tensor, views: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Probabilities [V, 3] of the sides, given that the view is not from above, and their names."""
    if azimuth.ndim != 1 or odds.shape != (len(azimuth), len(views)) or len(azimuth) < LEAST_VIEWS:
        raise DreamMappingError(
            f"got odds {list(odds.shape)} and azimuths {list(azimuth.shape)}; it must be [V, {len(views)}] and [V], "
            f"with V at least {LEAST_VIEWS} views around the object"
        )
    sides = [i for i, view in enumerate(views) if view != "overhead"]
    return odds[:, sides] / odds[:, sides].sum(1, keepdim=True), [views[i] for i in sides]


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Degrees between directions, in [0, 180]."""
    return (torch.remainder(a - b + 180.0, 360.0) - 180.0).abs()
