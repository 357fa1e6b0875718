"""The report as one HTML file that asks nothing of any server: pictures are data URIs, style and script stand in it."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from ..scores import Asset, Metric
from .content import Cell, Report
from .plots import cost_against_quality

HERE = Path(__file__).parent
SHOWN_PROMPTS = 30
"""With strips; all others count in the tables."""
STRIP_HEIGHT = 96
QUALITY = 70


def as_html(report: Report) -> str:
    """The page."""
    parts = {name: (HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js", "html")}
    return Template(parts["html"]).substitute(
        css=parts["css"],
        js=parts["js"],
        title=escape(report.plan.title),
        command=escape(report.command),
        about=f"<p>{escape(report.plan.about.strip())}</p>" if report.plan.about else "",
        counts=escape(report.counts()),
        explanation=escape(report.explanation()),
        protocol="".join(f"<tr><th>{escape(str(key))}</th><td>{escape(_text(value))}</td></tr>" for key, value in report.protocol.items()),
        prompts="".join(f"<option>{escape(prompt)}</option>" for prompt in report.plan.prompts),
        sections="\n".join(_section(report, kind) for kind in report.kinds()),
        failed=_list("Failed", [f"{name}: {why}" for name, why in report.results.failed.items()]),
        missing=_list("Not run", report.results.missing),
    )


def _section(report: Report, kind: str) -> str:
    columns, rows = report.table(kind)
    head = "".join(f'<th data-better="{c.better}"><button type="button">{escape(c.heading)}</button></th>' for c in columns)
    body = "\n".join(_row(row, columns, cells) for row, cells in rows)
    svg = cost_against_quality(report, kind)
    plot = "" if svg is None else f'<img class="plot" alt="cost against quality" src="{_uri("image/svg+xml", svg.encode())}">'
    return (
        f'<section id="{kind}">\n<h2>{escape(report.name_of(kind))}</h2>\n<div class="wide"><table class="scores">\n<thead><tr>'
        '<th data-better="0"><button type="button">method</button></th>'
        f'<th data-better="1"><button type="button">assets</button></th>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n{plot}\n{_strips(report, kind)}\n</section>"
    )


def _row(row: dict[str, Any], columns: list[Metric], cells: dict[str, Cell]) -> str:
    method = escape(row["method"])
    shown = "".join(_cell(cells.get(column.key)) for column in columns)
    return f'<tr data-method="{method}"><th data-value="{method}">{method}</th><td data-value="{row["assets"]}">{row["assets"]}</td>{shown}</tr>'


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td></td>"
    difference = f'<span class="difference {cell.verdict}">{escape(cell.difference)}</span>' if cell.difference else ""
    return f'<td data-value="{cell.value:.9g}">{escape(cell.text)}{difference}</td>'


def _strips(report: Report, kind: str) -> str:
    found = report.strips(kind)
    shown = dict(list(found.items())[:SHOWN_PROMPTS])
    note = f"<p>The first {len(shown)} of {len(found)} prompts; first seed.</p>" if len(shown) < len(found) else "<p>First seed.</p>"
    blocks = []
    for prompt, by_method in shown.items():
        rows = "\n".join(
            f'<figure data-method="{escape(method)}"><figcaption>{escape(method)}</figcaption>'
            f'<img alt="{escape(method)}: {escape(prompt)}" src="{_uri("image/webp", _picture(report.folder, by_method[method]))}"></figure>'
            for method in report.plan.methods
            if method in by_method
        )
        blocks.append(f'<div class="prompt" data-prompt="{escape(prompt)}"><h3>{escape(prompt)}</h3><div class="strips">{rows}</div></div>')
    return "\n".join([note, *blocks]) if blocks else ""


def _picture(folder: Path, asset: Asset) -> bytes:
    """The asset's part of its run's strip, as a WebP of STRIP_HEIGHT pixels' height at most."""
    with Image.open(folder / "runs" / f"{asset.name}.jpg") as image:
        number, count = asset.place
        part = image.crop((number * image.width // count, 0, (number + 1) * image.width // count, image.height))
    if part.height > STRIP_HEIGHT:
        part = part.resize((max(1, round(part.width * STRIP_HEIGHT / part.height)), STRIP_HEIGHT), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    part.save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _list(title: str, entries: list[str]) -> str:
    if not entries:
        return ""
    items = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return f"<details open><summary>{title}: {len(entries)}</summary><ul>{items}</ul></details>"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
