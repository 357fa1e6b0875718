"""The report of a comparison: report.html (everything, in one file), report.md (tables), report.json (all numbers), assets.csv (one line each)."""

from __future__ import annotations

from pathlib import Path

from ...files import write_atomic
from .content import Report
from .page import as_html
from .tables import as_csv, as_json, as_markdown


def write_report(output: Path, report: Report) -> list[Path]:
    """Write the four files into `output`; their paths. The same records give the same bytes."""
    files = {"report.html": as_html(report), "report.md": as_markdown(report), "report.json": as_json(report), "assets.csv": as_csv(report)}
    for name, text in files.items():
        write_atomic(output / name, text.encode())
    return [output / name for name in files]
