"""A comparison of which everything is known: a fake network, runs that take no time, their records."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import quick
import torch
from dreammapping.comparison import records
from dreammapping.comparison.look import Look
from dreammapping.comparison.plan import Plan, load_plan, runs
from dreammapping.comparison.report.content import Report
from dreammapping.comparison.runner import Craft, Job
from dreammapping.comparison.scores import collect, metrics, summarize
from dreammapping.evaluation.protocol import Protocol
from dreammapping.files import write_atomic
from torch import Tensor

METHODS = {"vdm": 0.9, "sds": 0.5, "vsd": 0.7}
"""Cosine of every view with its text, about."""
VIEWS, LENGTH = 8, 16


@dataclass(frozen=True)
class Network:
    """Texts are random directions."""

    name: str = "fake"

    def text_features(self, texts: list[str]) -> Tensor:
        return torch.stack([direction(text) for text in texts])

    def features(self, images: Tensor) -> Tensor:
        return images.mean((1, 2)).float() @ torch.ones(3, LENGTH)


def direction(text: str) -> Tensor:
    values = torch.randn(LENGTH, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))
    return values / values.norm()


def plan_of(folder: Path, **changes: Any) -> Plan:
    import yaml

    content = {"title": "Known <things>", "about": "Nothing & more.", "prompts": ["a red mug", "a blue car", "a gray duck"], "seeds": [0, 1]}
    content |= {"methods": list(METHODS), "representations": ["gs"], **changes}
    (folder / "plan.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_plan(folder / "plan.yaml")


def harvest(job: Job, run: Path, record: Path) -> dict[str, Any]:
    """As `records.harvest`, of pictures that depend on the job alone."""
    import io

    random = np.random.default_rng(zlib.crc32(job.name.encode()))
    rows = []
    for prompt in job.about["prompts"]:
        for _ in range(VIEWS if job.about["representation"] != "2d" else job.about["particles"]):
            other = torch.from_numpy(random.normal(size=LENGTH)).float()
            other -= other @ direction(prompt) * direction(prompt)
            cosine = min(0.99, METHODS[job.about["loss"]] + 0.05 * random.normal())
            rows.append(cosine * direction(prompt) + (1 - cosine**2) ** 0.5 * other / other.norm())
    images = torch.from_numpy(random.uniform(size=(len(rows), 32, 32, 3)).astype(np.float32))
    buffer = io.BytesIO()
    saturation = np.array([image.std() for image in images], np.float32)
    np.savez(buffer, **{"features.fake": torch.stack(rows).half().numpy(), "statistics.saturation": saturation})
    write_atomic(Path(f"{record}.npz"), buffer.getvalue())
    write_atomic(Path(f"{record}.jpg"), records.strip(images, None))
    quick.harvest(job, run, record)  # notes that it was made
    cost = {"vdm": 2, "sds": 2, "vsd": 5}[job.about["loss"]]
    return {"training_seconds": 10.0 * cost, "unet_forwards": 1000 * cost, "unet_backwards": 0, "primitives": 5000, "device": "fake"}


CRAFT = Craft(harvest, train=quick.train, start=quick.CRAFT.start)


COMMAND = "python -m comparison --plan <known>"
LOOK = Look(Protocol("known", views=VIEWS, image_size=32, clip=("fake",)), {"fake": Network()})


def report_of(plan: Plan, output: Path) -> Report:
    results = collect(output, runs(plan), LOOK)
    return Report(plan, {"name": "known", "views": VIEWS}, results, summarize(plan, results, LOOK), metrics(LOOK), output, COMMAND)
