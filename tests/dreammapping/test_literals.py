"""The package tells no model's sizes: they come from the model."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "custom" / "dreammapping"
SIZES = re.compile(r"\b(64|512|768|1024|1280)\b")
ALLOWED = {
    "comparison/scores.py": "FID_LENGTH = 512",  # draws, and the longest features with an interval
    "correction/card.py": "WIDTHS = (32, 64)",  # a network of our own
    "correction/measure.py": "BATCH = 64",  # pairs at once
    "evaluation/resources.py": "return peak if sys.platform",  # bytes per KiB
    "initialization/shap_e/settings.py": "steps: int = 64",  # of sampling
    "rasterization/numba_vectors.py": "AVX-512",
    "rasterization/numba_backend.py": "_GAUSSIAN_GRAIN = 512",  # Gaussians per task
    "teachers/encoder/triton_arithmetic.py": "programs: int = 1024",  # of a kernel
    "gaussians/settings.py": "LucidDreamer sets 20 of 512 pixels",
}
"""File -> part of the one line that may have such a number, and means something else by it."""


def test_no_literal_sizes_outside_the_configs():
    found = {}
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if SIZES.search(line)]
        unknown = [line for line in lines if ALLOWED.get(name, "\0") not in line]
        assert name not in ALLOWED or len(lines) == len(unknown) + 1, f"the entry of {name} is out of date"
        found |= {name: unknown} if unknown else {}
    assert not found, "sizes of a model must come from its config (see teachers/denoisers.py)"
