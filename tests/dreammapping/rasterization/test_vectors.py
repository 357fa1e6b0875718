"""The vector type of the numba kernels against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from dreammapping.rasterization.numba_vectors import (  # noqa: E402
    LANES,
    any_lane,
    exp2,
    load,
    repeat,
    select,
    store,
    totals,
)


def vectors(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, LANES)).astype(np.float32)


def test_arithmetic_and_masks_lane_by_lane():
    @numba.njit
    def compute(a, b, limit, out):
        x, y = load(a, 0), load(b, 0)
        value = (x + y) * np.float32(2) - x / y
        value -= np.float32(1) - y
        value += x
        inside = (x >= limit) & (x <= y)
        store(out, 0, select(inside, value, repeat(limit)))
        return any_lane(inside), any_lane(x > np.float32(100))

    (a, b), limit, out = vectors(2), np.float32(-0.5), np.zeros(LANES, np.float32)
    found, beyond = compute(a, b, limit, out)
    inside = (a >= limit) & (a <= b)
    assert 0 < inside.sum() < LANES and found and not beyond
    np.testing.assert_allclose(out, np.where(inside, (a + b) * 2 - a / b - (1 - b) + a, limit), rtol=1e-5, atol=1e-6)


def test_totals_are_in_the_order_of_the_vectors():
    @numba.njit
    def add(a, out):
        v = (load(a, 0), load(a, 16), load(a, 32), load(a, 48), load(a, 64))
        store(out, 0, totals(v))
        store(out, LANES, totals((v[0],)))

    a, out = vectors(5), np.ones((2, LANES), np.float32)
    add(a.reshape(-1), out.reshape(-1))
    np.testing.assert_allclose(out[0, :5], a.sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[1, 0], a[0].sum(), rtol=1e-5, atol=1e-6)
    assert not out[0, 5:].any() and not out[1, 1:].any()


def test_exp2_is_accurate_and_off_by_one_unit_at_most_at_whole_numbers():
    @numba.njit
    def powers(x, out):
        for start in range(0, len(x), LANES):
            store(out, start, exp2(load(x, start)))

    x = np.concatenate([np.arange(-126, 1), np.random.default_rng(0).uniform(-126, 0, 1 + 16 * 500)]).astype(np.float32)
    out = np.zeros_like(x)
    powers(x, out)
    want = np.exp2(x.astype(np.float64))
    assert np.abs(out / want - 1).max() < 3e-7
    assert np.abs(out[:127] / want[:127] - 1).max() < 1.2e-7
