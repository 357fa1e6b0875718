"""Scores of assets by a protocol, and of many together with intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .assets import Asset, read_pictures
from .clip_score import clip_scores
from .features import Extractor, load_extractor
from .fid import Distances, frechet_distance, same_source_distance
from .intervals import Interval, mean_interval, share_interval
from .janus import LEAST_VIEWS, is_janus, share_of_right_views
from .judge import Judge
from .picture_statistics import NAMES, picture_statistics
from .protocol import Protocol
from .reference_samples import reference_samples

RECOGNIZED = 0.5
"""Share of the views in which the judge must see the right family for its answers on the front to mean something."""
BATCH = 16


@dataclass(frozen=True)
class Measured:
    """One asset's scores, as JSON can write them, and the features its FID comes from."""

    asset: Asset
    scores: dict[str, Any]
    features: Tensor | None


class Scorer:
    """Holds the networks of a protocol; measures assets one by one, then all together."""

    def __init__(
        self,
        protocol: Protocol,
        device: torch.device | str = "cpu",
        *,
        cache_dir: str | Path | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Loads all networks, so that a missing one is found now. Raises ConfigError. Arguments as for `reference_samples`."""
        self.protocol, self.device, self.cache_dir, self.report = protocol, device, cache_dir, report
        wanted = dict.fromkeys([*protocol.clip, *filter(None, [protocol.fid, protocol.judge])])
        self.extractors: dict[str, Extractor] = {name: load_extractor(name, device) for name in wanted}
        self.references: dict[str, tuple[Tensor | None, dict[str, Tensor]]] = {}

    def measure(self, asset: Asset) -> Measured:
        """Scores of one asset against its prompt and, if the protocol has them, its references. Raises ConfigError."""
        protocol, picked = self.protocol, asset.chosen(self.protocol.views)
        width = asset.data.get("eval_width")
        pictures = read_pictures([asset.pictures[i] for i in picked], protocol.image_size, protocol.background, width)
        seen = {name: extractor.features(pictures) for name, extractor in self.extractors.items()}
        text = protocol.text.format(prompt=asset.prompt)
        scores: dict[str, Any] = {"prompt": asset.prompt, "seed": asset.seed, "pictures": len(picked), "deviations": self._deviations(asset, picked)}
        scores["clip"] = {n: _spread(clip_scores(seen[n], self.extractors[n].text_features([text])[0])) for n in protocol.clip}
        scores["statistics"] = {name: values.mean().item() for name, values in picture_statistics(pictures).items()}
        if protocol.reference is not None:
            features, statistics = self._reference(asset.prompt)
            scores["reference_statistics"] = {name: values.mean().item() for name, values in statistics.items()}
            if protocol.fid and len(picked) > 1 and len(features) > 1:
                scores["fid"] = frechet_distance(seen[protocol.fid], features)
        if protocol.judge:
            azimuth = torch.tensor([360.0 * i / len(asset.pictures) for i in picked]) if asset.turntable else None
            scores["judge"] = judged(self.extractors[protocol.judge].judge, seen[protocol.judge], asset.prompt, azimuth)
        scores["cost"] = {key: asset.card.get(key) for key in ("training_seconds", "peak_memory_bytes", "peak_gpu_memory_bytes", "device")}
        return Measured(asset, scores, seen.get(protocol.fid or ""))

    def together(self, measured: Sequence[Measured], draws: int = 10_000) -> dict[str, Any]:
        """Means over prompts with 95 % intervals (see intervals.py), and the FID of all pictures against all references."""

        def mean(value: Callable[[dict[str, Any]], float | None], share: bool = False) -> dict[str, float] | None:
            groups: dict[str, list[float]] = {}
            for one in measured:
                if (found := value(one.scores)) is not None:
                    groups.setdefault(one.asset.prompt, []).append(found)
            values = list(groups.values())
            return _plain(share_interval(values) if share else mean_interval(values, draws=draws)) if values else None

        result: dict[str, Any] = {"assets": len(measured), "prompts": len({one.asset.prompt for one in measured})}
        result["clip"] = {name: mean(lambda s, n=name: s["clip"][n]["mean"]) for name in self.protocol.clip}
        result["statistics"] = {name: mean(lambda s, n=name: s["statistics"][n]) for name in NAMES}
        if self.protocol.reference is not None:
            result["statistics_minus_reference"] = {
                name: mean(lambda s, n=name: s["statistics"][n] - s["reference_statistics"][n]) for name in NAMES
            }
        if self.protocol.fid:
            result["fid"] = self._fid(measured)
        if self.protocol.judge:
            for key in ("family", "color", "pattern", "right_views"):
                result[key] = mean(lambda s, k=key: s["judge"].get(k))
            result["janus"] = mean(lambda s: s["judge"].get("janus"), share=True)
        result["training_seconds"] = mean(lambda s: s["cost"]["training_seconds"])
        return result

    def _fid(self, measured: Sequence[Measured]) -> dict[str, Any]:
        generated: dict[str, list[Tensor]] = {}
        for one in measured:
            generated.setdefault(one.asset.prompt, []).append(one.features)
        ours = {prompt: torch.cat(parts) for prompt, parts in generated.items()}
        reference = {prompt: self._reference(prompt)[0] for prompt in ours}
        every, count = torch.cat([*reference.values()]), sum(map(len, ours.values()))
        if count < 2 or len(every) < 2:
            return {"value": None}
        half = min(count, len(every) // 2)
        found: dict[str, Any] = {**_plain(Distances(reference).interval(ours)), "pictures": count, "references": len(every)}
        return found | ({"same_source": same_source_distance(every, half), "same_source_pictures": half} if half > 1 else {})

    def _reference(self, prompt: str) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Features for the FID and statistics of the teacher's pictures; looked at once for each prompt."""
        if prompt not in self.references:
            settings = self.protocol.reference
            files = reference_samples([prompt], settings, self.device, cache_dir=self.cache_dir, report=self.report)[prompt]
            rows: list[Tensor] = []
            statistics: list[dict[str, Tensor]] = []
            for start in range(0, len(files), BATCH):
                pictures = read_pictures(files[start : start + BATCH], self.protocol.image_size, self.protocol.background)
                statistics.append(picture_statistics(pictures))
                if self.protocol.fid:
                    rows.append(self.extractors[self.protocol.fid].features(pictures))
            merged = {name: torch.cat([part[name] for part in statistics]) for name in NAMES}
            self.references[prompt] = torch.cat(rows) if rows else None, merged
        return self.references[prompt]

    def _deviations(self, asset: Asset, picked: Sequence[int]) -> list[str]:
        found = self.protocol.deviations(asset.data)
        if len(picked) < self.protocol.views:
            found.append(f"{len(picked)} pictures instead of {self.protocol.views}")
        if not asset.turntable:
            found.append("no turntable: the pictures are taken as they are")
        if self.protocol.prompts and asset.prompt not in self.protocol.prompts:
            found.append("the prompt is none of the protocol's")
        return found


def judged(judge: Judge, seen: Tensor, prompt: str, azimuth: Tensor | None = None) -> dict[str, Any]:
    """What a judge says about pictures it has seen: unit vectors [N, D].

    family, color, pattern: shares of the pictures in which the prompt's are seen, those that the prompt names (without a pattern: plain).
    With `azimuth` [N] in degrees all around the object and at least 8 pictures also right_views and, if the object is recognized, janus (0 or 1).
    Empty for a prompt without a family that the judge knows.
    """
    truth = attributes(judge, prompt)
    if "family" not in truth:
        return {}
    odds = {name: values.cpu() for name, values in judge.odds_of(seen, truth["family"]).items()}
    found: dict[str, Any] = {name: (odds[name].argmax(1) == index).double().mean().item() for name, index in truth.items()}
    if azimuth is not None and len(azimuth) >= LEAST_VIEWS:
        found["right_views"] = share_of_right_views(odds["view"], azimuth, judge.views)
        if found["family"] >= RECOGNIZED:
            found["janus"] = float(is_janus(odds["view"], azimuth, judge.views))
    return found


def attributes(judge: Judge, prompt: str) -> dict[str, int]:
    """Indices of the family, color and pattern that a prompt names, as whole words; the last of several families, the longest first."""
    known = {"family": judge.families, "color": judge.colors, "pattern": judge.patterns}
    found: dict[str, int] = {}
    for attribute, words in known.items():
        matches = [(re.search(rf"\b{re.escape(word)}\b", prompt.lower()), index) for index, word in enumerate(words)]
        places = [(match.end(), len(match[0]), index) for match, index in matches if match]
        if places:
            found[attribute] = max(places)[2]
    if "family" in found and "pattern" not in found and "plain" in judge.patterns:
        found["pattern"] = judge.patterns.index("plain")
    return found


def _spread(values: Tensor) -> dict[str, float]:
    """Mean and standard deviation over the views, which are no independent results."""
    return {"mean": values.mean().item(), "deviation_of_views": values.std(correction=0).item()}


def _plain(interval: Interval) -> dict[str, float | None]:
    ends = {"low": interval.low, "high": interval.high}
    return {"value": interval.value, **{key: None if math.isnan(end) else end for key, end in ends.items()}}  # NaN is no JSON
