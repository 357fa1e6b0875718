"""The Frechet distance between two sets of features: FID, if they are of Inception (Heusel et al. 2017).

A text-to-3D "3D-FID" (ProlificDreamer, DreamMapping's Table 3) compares renders of assets with pictures that the teacher draws for the same
prompts. With so few pictures its value is mostly too high: the expected distance of N pictures falls with 1 / N towards the distance of
endless ones (Chong and Forsyth 2020), and even two sets from one source are far apart. So values can be compared only at equal
numbers of pictures, features and references, and `same_source_distance` says what the best value is at these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..errors import DreamMappingError
from .intervals import Interval, statistic_interval

DRAWS = 200
"""Of the bootstrap: enough for a standard deviation to 5 %; with Inception's 2,048 numbers a draw takes a tenth of a second and more."""


def frechet_distance(features_a: Tensor | np.ndarray, features_b: Tensor | np.ndarray) -> float:
    """|mean_a - mean_b|^2 + trace(S_a + S_b - 2 (S_a S_b)^(1/2)), S the covariances with N - 1; at least 0.

    The trace of the root is the sum of the singular values of X_a X_b^T, where X are the centered features divided by sqrt(N - 1). So no root
    of a covariance is taken, which is singular with fewer pictures than features.

    Args:
        features_a, features_b: [N, D] and [M, D], N and M at least 2; used in float64.

    Raises `DreamMappingError` for other shapes and for values that are not finite.
    """
    a, b = _checked(features_a), _checked(features_b)
    if a.shape[1] != b.shape[1]:
        raise DreamMappingError(f"features of lengths {a.shape[1]} and {b.shape[1]} cannot be compared; both must come from one model")
    gap, (root_a, root_b) = a.mean(0) - b.mean(0), (_root(a), _root(b))
    common = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(0.0, float(gap @ gap + (root_a**2).sum() + (root_b**2).sum() - 2 * common))


def same_source_distance(features: Tensor | np.ndarray, count: int, *, splits: int = 10, seed: int = 0) -> float:
    """Mean distance of `count` random rows of `features` [M, D] from all others: what perfect pictures would get, about.

    A little too high, because the others are fewer than M. Raises `DreamMappingError` unless count and M - count are at least 2.
    """
    values = _checked(features)
    if not 2 <= count <= len(values) - 2:
        raise DreamMappingError(f"{len(values)} references cannot be divided into {count} and at least 2 others; draw more of them")
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(values)) for _ in range(splits)]
    return float(np.mean([frechet_distance(values[order[:count]], values[order[count:]]) for order in orders]))


def frechet_interval(
    generated: Mapping[str, Tensor], reference: Mapping[str, Tensor], minus: Mapping[str, Tensor] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Distance of all pictures from all references, with the interval that other prompts of the same number would give.

    Prompts are drawn together with their references. With `minus`, pictures of another method, it is the difference of the two
    distances, over prompts that both have.

    Args:
        generated, reference, minus: prompt -> features [N, D].

    Raises `DreamMappingError` for a prompt without references, and if no prompt is left.
    """
    prompts = [prompt for prompt in generated if minus is None or prompt in minus]
    if missing := [prompt for prompt in prompts if prompt not in reference]:
        raise DreamMappingError(f"there are no reference features of {missing[0]!r}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""))

    def distance(groups: list[np.ndarray]) -> float:
        drawn = [prompts[int(group[0])] for group in groups]
        wanted, *others = (torch.cat([features[prompt] for prompt in drawn]) for features in (reference, generated, *([minus] if minus else [])))
        first, *second = (frechet_distance(other, wanted) for other in others)
        return first - sum(second)

    return statistic_interval([[float(i)] for i in range(len(prompts))], distance, draws=draws, seed=seed)


def _root(values: np.ndarray) -> np.ndarray:
    """[min(N, D), D] R with R^T R = covariance."""
    centered = (values - values.mean(0)) / np.sqrt(len(values) - 1)
    return np.linalg.qr(centered, mode="r") if len(values) > values.shape[1] else centered


def _checked(features: Tensor | np.ndarray) -> np.ndarray:
    values = features.detach().cpu().double().numpy() if isinstance(features, torch.Tensor) else np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise DreamMappingError(f"features have the shape {list(values.shape)}; it must be [N, D] with at least 2 pictures")
    if not np.isfinite(values).all():
        raise DreamMappingError("features are not finite; was a picture damaged, or half precision too narrow?")
    return values
