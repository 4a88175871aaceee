"""Pages on disk: complete or not there, and nothing lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paring.core.errors import DataError, ExportError, OutputExistsError
from paring.report import render, write_comparison, write_report
from tests.report.samples import run

RECORD = run(history=(), modules=())


def test_a_report_is_what_render_says(tmp_path: Path) -> None:
    path = write_report(RECORD, str(tmp_path / "new" / "folder" / "report.html"))
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert path.read_bytes() == render(RECORD).encode("utf-8")
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match="there already"):
        write_report(RECORD, path)
    assert path.read_text() == "mine"
    write_report(RECORD, path, overwrite=True)
    assert path.read_text("utf-8") == render(RECORD)


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "report.html").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputExistsError):
        write_report(RECORD, tmp_path / "report.html")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_refused(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(OutputExistsError, match="is a folder"):
        write_report(RECORD, tmp_path, overwrite=overwrite)


def test_a_failing_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match=r"report\.html: No space left on device"):
        write_report(RECORD, path, overwrite=True)
    assert path.read_text() == "before"
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_a_parent_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="could not be written"):
        write_report(RECORD, tmp_path / "file" / "report.html")


def test_a_comparison_is_written_alike(tmp_path: Path) -> None:
    path = write_comparison([RECORD, RECORD], tmp_path / "both.html", title="Two of a kind")
    assert "<h1>Two of a kind</h1>" in path.read_text("utf-8")
    with pytest.raises(OutputExistsError):
        write_comparison([RECORD], path)
    with pytest.raises(DataError):
        write_comparison([], tmp_path / "none.html")
    assert [item.name for item in tmp_path.iterdir()] == ["both.html"]
