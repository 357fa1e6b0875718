"""The report's four files say what the records say."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path

import known
import pytest
from dreammapping.comparison.report import write_report
from dreammapping.comparison.report.content import Report, cell_of
from dreammapping.comparison.report.tables import as_markdown
from dreammapping.comparison.scores import TEACHER, Metric, Results, metrics, summarize
from dreammapping.evaluation.intervals import Interval

METRIC = Metric("janus", "Janus rate", better=-1, scale=100)


def row(difference: Interval | None) -> dict:
    return {"values": {"janus": Interval(0.25, 0.1, 0.5)}, "differences": {} if difference is None else {"janus": difference}, "costs": {}, "distances": {}}


def test_a_cell_says_value_interval_and_whether_the_difference_counts():
    assert cell_of(row(None), METRIC).text == "25.0 [10.0, 50.0]" and cell_of(row(None), METRIC).value == 25.0
    better = cell_of(row(Interval(-0.2, -0.3, -0.1)), METRIC)
    assert (better.difference, better.verdict) == ("-20.0 [-30.0, -10.0]", "better")  # fewer are better
    worse = cell_of(row(Interval(0.2, 0.1, 0.3)), METRIC)
    assert (worse.difference, worse.verdict) == ("+20.0 [10.0, 30.0]", "worse")
    assert cell_of(row(Interval(0.2, -0.1, 0.3)), METRIC).verdict == ""
    assert cell_of(row(Interval(0.2, 0.1, 0.3)), dataclasses.replace(METRIC, better=0)).verdict == ""
    assert cell_of(row(None), Metric("family", "family")) is None


def test_the_markdown_has_tables_failures_and_what_is_missing(written: Path):
    text = (written / "report.md").read_text()
    assert "28 of 30 runs finished, 1 failed, 1 were not run." in text and "up to 3 runs at once" in text
    assert re.search(r"\| vdm \| 6 \| 91\.1 \[88\.8, 93\.3\] \|", text)
    assert re.search(r"\| sds \| 6 \| 50\.\d \[.*\]; -41\.\d \[.*\] \|", text)
    assert "## Failed: 1\n\n- 2d.vsd.000.1: loss is NaN at step 7 <b>" in text and "## Not run: 1\n\n2d.vsd (1)" in text


def test_the_raw_numbers_are_all_there_and_are_json(written: Path):
    text = (written / "report.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)  # no NaN
    assert str(written) not in text
    assets = [dict(zip(content["columns"], row, strict=True)) for row in content["assets"]]
    assert len(assets) == 18 + 15 and content["missing"] == ["2d.vsd.001.1"]
    mean = sum(a["clip.fake"] for a in assets if (a["representation"], a["method"]) == ("gs", "vdm")) / 6
    (vdm,) = [r for r in content["methods"] if (r["representation"], r["method"]) == ("gs", "vdm")]
    assert vdm["values"]["clip.fake"][0] == pytest.approx(mean, rel=1e-5)
    lines = list(csv.DictReader((written / "assets.csv").open()))
    assert len(lines) == 33 and {float(line["clip.fake"]) for line in lines} == {a["clip.fake"] for a in assets}


def test_the_page_asks_for_nothing_and_quotes_what_it_was_told(written: Path):
    page = (written / "report.html").read_text()
    assert "<pre>python -m comparison --plan &lt;known&gt;</pre>" in page
    assert "<h1>Known &lt;things&gt;</h1>" in page and "Nothing &amp; more." in page and "at step 7 &lt;b&gt;" in page
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert len(sources) == 3 * 3 * 2 + 2 + 1 and all(source.startswith("data:") for source in sources)
    assert page.count('<option>') == 3 and "@import" not in page and "url(" not in page


def test_the_same_records_give_the_same_bytes(written: Path, tmp_path: Path):
    plan = known.plan_of(tmp_path, representations=["gs", "2d"], prompts_per_run=2, particles=2)
    write_report(tmp_path, known.report_of(plan, written))
    for name in ("report.html", "report.md", "report.json", "assets.csv"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_a_report_of_nothing(tmp_path: Path):
    plan = known.plan_of(tmp_path)
    write_report(tmp_path, known.report_of(plan, tmp_path))
    assert "0 of 18 runs finished, 0 failed, 18 were not run." in (tmp_path / "report.md").read_text()
    assert "Not run: 18" in (tmp_path / "report.html").read_text()


def test_distances_and_the_teacher_have_their_places(tmp_path: Path):
    plan = known.plan_of(tmp_path)
    rows = summarize(plan, Results([], {}, [], {}), known.LOOK)
    rows[0] |= {"distances": {"judge": Interval(0.12345, 0.1, 0.2)}}
    rows.append({**rows[1], "method": TEACHER, "assets": 3, "values": {"clip.fake": Interval(70.0, 60.0, 80.0)}})
    text = as_markdown(Report(plan, {}, Results([], {}, [], {}), rows, metrics(known.LOOK), tmp_path, known.COMMAND))
    assert "distance from the teacher (judge)" in text and "| vdm | 0 |  | 0.1235 [0.1000, 0.2000] |" in text
    assert f"| {TEACHER} | 3 | 70.0 [60.0, 80.0] |  |" in text
