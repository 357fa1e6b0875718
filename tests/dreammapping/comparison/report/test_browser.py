"""The report in a real browser: nothing goes wrong, nothing is fetched, pictures are there, sorting and filtering work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import browser

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))

PICTURES = "Array.from(document.images).map((i) => [i.complete, i.naturalWidth, i.naturalHeight, i.src.slice(0, 5)])"
NAMES = "Array.from(document.querySelectorAll('#gs tbody tr')).filter((r) => r.offsetParent).map((r) => r.dataset.method)"
STRIPS = "Array.from(document.querySelectorAll('figure')).filter((f) => f.offsetParent).map((f) => f.dataset.method)"
PROMPTS = "Array.from(document.querySelectorAll('.prompt')).filter((p) => p.offsetParent).map((p) => p.dataset.prompt)"


def click(column: str) -> str:
    return f"Array.from(document.querySelectorAll('#gs thead button')).find((b) => b.textContent.includes('{column}')).click()"


def put(name: str, value: str, event: str) -> str:
    return f"(() => {{ const e = document.getElementById('{name}'); e.value = '{value}'; e.dispatchEvent(new Event('{event}')); return 1; }})()"


def test_a_reader_opens_sorts_and_filters(written: Path):
    steps = [PICTURES, NAMES]
    steps += [click("CLIP"), NAMES, click("CLIP"), NAMES, click("forwards"), NAMES, click("method"), NAMES]
    steps += [put("method", "VDM, sds", "input"), NAMES, STRIPS, put("method", "", "input"), put("prompt", "a blue car", "change"), PROMPTS, NAMES]
    seen = browser.visit(written / "report.html", *steps)
    assert seen["loaded"] and seen["console"] == []
    assert [url for url in seen["requests"] if not url.startswith(("data:", "file:"))] == [] and len([u for u in seen["requests"] if u.startswith("file:")]) == 1
    answers = seen["answers"]
    pictures, names = answers[0], answers[1]
    assert len(pictures) == 3 * 3 * 2 + 2  # methods x prompts x representations, two plots
    assert all(complete and width > 10 and height > 10 and source == "data:" for complete, width, height, source in pictures)
    assert names == ["vdm", "sds", "vsd"]
    assert answers[3] == ["vdm", "vsd", "sds"] and answers[5] == ["sds", "vsd", "vdm"]  # best first, then turned round
    assert answers[7] == ["vdm", "sds", "vsd"] or answers[7] == ["sds", "vdm", "vsd"]  # least work first
    assert answers[9] == ["sds", "vdm", "vsd"]  # by name
    assert answers[11] == ["sds", "vdm"] and set(answers[12]) == {"sds", "vdm"}
    assert set(answers[15]) == {"a blue car"} and len(answers[15]) == 2 and sorted(answers[16]) == ["sds", "vdm", "vsd"]


def test_errors_of_a_page_are_noticed(tmp_path: Path):
    page = tmp_path / "broken.html"
    page.write_text("<script>missing()</script><img src='none.png'><img src='http://127.0.0.1:9/x.png'>")
    seen = browser.visit(page, PICTURES)
    assert any("missing is not defined" in line for line in seen["console"]) and "http://127.0.0.1:9/x.png" in seen["requests"]
    assert [width for _, width, _, _ in seen["answers"][0]] == [0, 0]
