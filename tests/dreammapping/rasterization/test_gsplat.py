"""gsplat's CUDA kernels against the float64 reference: the two must mean the same by every convention."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs CUDA", allow_module_level=True)
pytest.importorskip("gsplat")

CASES = {
    "sh3": dict(count=300, cameras=2, sh_degree=3, width=90, height=70),
    "sh4": dict(count=200, cameras=1, sh_degree=4, seed=1),
    "plain colors": dict(count=500, cameras=3, sh_degree=None, seed=2),
    "one Gaussian": dict(count=1, cameras=1, sh_degree=0, seed=6),
    "no Gaussian": dict(count=0, cameras=1, sh_degree=0, seed=7),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_match_the_reference(name, random_case, relative_error):
    case = random_case(**CASES[name])
    weights = case.weights()
    steady = (weights["alpha"] != 0).double()
    want = case.render("reference", torch.float64, weights=weights)
    want_gradients = case.gradients
    got = case.render("auto", torch.float32, "cuda", weights=weights)
    assert torch.equal(got.info["radii"].cpu(), want.info["radii"])
    for key in ("rgb", "alpha"):
        assert ((getattr(got, key).cpu() - getattr(want, key)) * steady).abs().max() < 1e-4, key
    assert ((got.depth.cpu() - want.depth) * steady).abs().max() < 1e-3
    for key, gradient in want_gradients.items():
        assert relative_error(case.gradients[key], gradient) <= 1e-3, key


def test_the_reference_runs_on_cuda(random_case, relative_error):
    case = random_case(count=100, cameras=1, sh_degree=2)
    want = case.render("reference", torch.float64)
    got = case.render("reference", torch.float64, "cuda")
    assert relative_error(got.rgb, want.rgb) < 1e-12
