"""Scores on paper: the table on the screen, the JSON file, the model card of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import write_atomic
from .assets import CARD


def table(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Scores of several assets, (name, scores), as text: an asset a column, a score a line."""
    shown = [{"prompt": scores["prompt"], "pictures": str(scores["pictures"]), **flat(scores)} for _, scores in rows]
    keys = list(dict.fromkeys(key for one in shown for key in one))
    lines = [["", *(name for name, _ in rows)], *([key, *(one.get(key, "") for one in shown)] for key in keys)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def flat(scores: Mapping[str, Any]) -> dict[str, str]:
    """The scores of one asset in words, each under the name of its column."""
    found = {f"CLIP {name}": f"{value['mean']:.2f}" for name, value in scores["clip"].items()}
    if "fid" in scores:
        found["FID"] = f"{scores['fid']:.4g}"
    reference = scores.get("reference_statistics", {})
    for name, value in scores["statistics"].items():
        found[name] = f"{value:.3g}" + (f" (teacher {reference[name]:.3g})" if name in reference else "")
    found |= {name: f"{100 * value:.0f} %" for name, value in scores.get("judge", {}).items() if name != "janus"}
    if "janus" in scores.get("judge", {}):
        found["Janus"] = "yes" if scores["judge"]["janus"] else "no"
    return found


def together_text(summary: Mapping[str, Any]) -> str:
    """Means and intervals of `Scorer.together`, one a line."""
    several = "s" if summary["prompts"] > 1 else ""
    lines = [f"{summary['assets']} assets of {summary['prompts']} prompt{several}, means over prompts and 95 % intervals:"]

    def add(name: str, found: Mapping[str, Any] | None) -> None:
        if found and found["value"] is not None:
            ends = "" if found.get("low") is None else f" [{found['low']:.4g}, {found['high']:.4g}]"
            lines.append(f"  {name}: {found['value']:.4g}{ends}")

    for name, found in summary.items():
        if name in ("clip", "statistics", "statistics_minus_reference"):
            for inner, value in found.items():
                add(f"{name.replace('_', ' ')} {inner}", value)
        elif isinstance(found, Mapping):
            add(name.replace("_", " "), found)
    fid = summary.get("fid") or {}
    if "same_source" in fid:
        lines.append(
            f"  (fid of {fid['pictures']} pictures and {fid['references']} references; {fid['same_source_pictures']} of the references "
            f"have {fid['same_source']:.4g} from the others: with so few pictures it is never 0)"
        )
    return "\n".join(lines)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Atomically. Raises ConfigError for a place that cannot be written."""
    try:
        write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as problem:
        raise ConfigError(f"cannot write {path}: {problem}") from problem


def record(run: Path, protocol: str, scores: Sequence[Mapping[str, Any]]) -> Path:
    """Put the scores of a run's assets into its model card, under the protocol's name; the card's path.

    They stay until the run is trained on or tested again, which makes other pictures. Raises ConfigError.
    """
    from ..system.model_card import as_markdown

    path = run / "save" / CARD
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts["scores"] = {**facts.get("scores", {}), protocol: list(scores)}
        text = as_markdown(facts)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(f"{path} is no whole model card ({type(problem).__name__}: {problem}); test the run again to have one written") from problem
    write_json(path, facts)
    try:
        write_atomic(path.with_suffix(".md"), text.encode())
    except OSError as problem:
        raise ConfigError(f"cannot write {path.with_suffix('.md')}: {problem}") from problem
    return path
