"""The Frechet distance between two sets of features: FID, if they are of Inception (Heusel et al. 2017).

A text-to-3D "3D-FID" (ProlificDreamer, DreamMapping's Table 3) compares renders of assets with pictures that the teacher draws for the same
prompts. With so few pictures its value is mostly too high: the expected distance of N pictures falls with 1 / N towards the distance of
endless ones (Chong and Forsyth 2020), and even two sets from one source are far apart. So values can be compared only at equal
numbers of pictures, features and references, and `same_source_distance` says what the best value is at these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import DreamMappingError
from .intervals import Interval, statistic_interval

Features = Tensor | np.ndarray
DRAWS = 200
"""Of the bootstrap: enough for a standard deviation to 5 %; with Inception's 2,048 numbers a draw takes a tenth of a second and more."""


def frechet_distance(features_a: Features, features_b: Features) -> float:
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


def same_source_distance(features: Features, count: int, *, splits: int = 10, seed: int = 0) -> float:
    """Mean distance of `count` random rows of `features` [M, D] from all others: what perfect pictures would get, about.

    A little too high, because the others are fewer than M. Raises `DreamMappingError` unless count and M - count are at least 2.
    """
    values = _checked(features)
    if not 2 <= count <= len(values) - 2:
        raise DreamMappingError(f"{len(values)} references cannot be divided into {count} and at least 2 others; draw more of them")
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(values)) for _ in range(splits)]
    return float(np.mean([frechet_distance(values[order[:count]], values[order[count:]]) for order in orders]))


class Distances:
    """Distances of several sets of pictures from the same references. A draw of prompts is computed once for each set.

    Args:
        reference: prompt -> features [N, D]; so are the sets.
    """

    def __init__(self, reference: Mapping[str, Features]) -> None:
        self.reference = reference
        self._known: dict[tuple[int, tuple[str, ...]], float] = {}
        self._sets: dict[int, Mapping[str, Features]] = {}  # kept, so that no other set gets the number of one

    def of(self, generated: Mapping[str, Features], prompts: Sequence[str]) -> float:
        """Of all pictures of `prompts`, which may come several times, from all their references."""
        key = id(self._sets.setdefault(id(generated), generated)), tuple(prompts)
        if key not in self._known:
            self._known[key] = frechet_distance(*(np.concatenate([_array(f[p]) for p in prompts]) for f in (generated, self.reference)))
        return self._known[key]

    def interval(
        self, generated: Mapping[str, Features], minus: Mapping[str, Features] | None = None, *, draws: int = DRAWS, seed: int = 0
    ) -> Interval:
        """Distance of all pictures from all references, with the interval that other prompts of the same number would give.

        Prompts are drawn together with their references. With `minus`, pictures of another method, it is the difference of the two
        distances, over prompts that both have.

        Raises `DreamMappingError` for a prompt without references, and if no prompt is left.
        """
        prompts = [prompt for prompt in generated if minus is None or prompt in minus]
        if missing := [prompt for prompt in prompts if prompt not in self.reference]:
            raise DreamMappingError(f"there are no reference features of {missing[0]!r}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""))

        def distance(groups: list[np.ndarray]) -> float:
            drawn = [prompts[int(group[0])] for group in groups]
            return self.of(generated, drawn) - (0.0 if minus is None else self.of(minus, drawn))

        return statistic_interval([[float(i)] for i in range(len(prompts))], distance, draws=draws, seed=seed)


def _root(values: np.ndarray) -> np.ndarray:
    """[min(N, D), D] R with R^T R = covariance."""
    centered = (values - values.mean(0)) / np.sqrt(len(values) - 1)
    return np.linalg.qr(centered, mode="r") if len(values) > values.shape[1] else centered


def _array(features: Features) -> np.ndarray:
    return features.detach().cpu().double().numpy() if isinstance(features, torch.Tensor) else np.asarray(features, dtype=np.float64)


def _checked(features: Features) -> np.ndarray:
    values = _array(features)
    if values.ndim != 2 or len(values) < 2:
        raise DreamMappingError(f"features have the shape {list(values.shape)}; it must be [N, D] with at least 2 pictures")
    if not np.isfinite(values).all():
        raise DreamMappingError("features are not finite; was a picture damaged, or half precision too narrow?")
    return values
