from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dreammapping.system.run_report import RunReport, _evenly_chosen, contact_sheet, numbered

import threestudio
from threestudio.models.isosurface import EmptySurfaceError


def test_contact_sheet_places_images_row_by_row():
    images = [np.full((2, 3, 3), value, dtype=np.uint8) for value in range(5)]
    sheet = contact_sheet(images, columns=4, gap=1)
    assert sheet.shape == (5, 15, 3)
    assert [sheet[0, 4 * i, 0] for i in range(4)] == [0, 1, 2, 3] and sheet[3, 0, 0] == 4
    assert (sheet[2] == 255).all() and (sheet[3:, 4:] == 255).all()


def test_frames_are_chosen_evenly_without_the_repeated_last_one():
    assert _evenly_chosen(list(range(121)), 8) == [0, 15, 30, 45, 60, 75, 90, 105]
    assert _evenly_chosen([1, 2, 3], 8) == [1, 2, 3]


def test_frames_are_ordered_by_number(tmp_path: Path):
    for name in ("10.png", "9.png", "0.png", "note.txt", "x1.png"):
        (tmp_path / name).touch()
    assert [path.name for path in numbered(tmp_path)] == ["0.png", "9.png", "10.png"]


def test_a_run_without_a_surface_still_gets_its_card(monkeypatch):
    said, cards = [], []
    report = RunReport.__new__(RunReport)
    report._watch = SimpleNamespace(stop=lambda: None)
    monkeypatch.setattr(RunReport, "_wanted", lambda self: True)
    monkeypatch.setattr(RunReport, "_write_card", lambda self, status: cards.append(status))
    monkeypatch.setattr(threestudio, "warn", lambda text, *rest: said.append(text))

    def no_surface(self):
        raise EmptySurfaceError("There is no surface")

    monkeypatch.setattr(RunReport, "export", no_surface)
    report.finish()
    assert cards == ["trained"] and "no surface" in said[0]


@pytest.mark.parametrize(("fps", "videos"), [(6, [("turn", 6)]), (None, [])])
def test_without_frames_per_second_there_is_no_video(fps, videos):
    made = []
    save = lambda file, folder, matcher, **rest: made.append((file, rest["fps"]))  # noqa: E731
    report = RunReport(SimpleNamespace(cfg=SimpleNamespace(video_fps=fps), true_global_step=3, save_img_sequence=save))
    report.video("turn", "turn", r"(\d+)\.png", "test")
    assert made == videos
