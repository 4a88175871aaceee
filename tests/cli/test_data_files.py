"""Which files hold the data of a place."""

from __future__ import annotations

from pathlib import Path

from paring.cli.data.files import data_files


def test_a_folder_has_the_files_of_its_folders_but_nothing_that_was_put_there_by_tools(tmp_path: Path) -> None:
    wanted = ["a.tsv", "part/b.parquet", "part/deep/c.json"]
    for name in [*wanted, ".git/config", "part/.cache/d.json", "part/cache-0123.arrow"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [file.relative_to(tmp_path).as_posix() for file in data_files(tmp_path)] == wanted
    assert data_files(tmp_path / "a.tsv") == [tmp_path / "a.tsv"]
    assert data_files(tmp_path / "missing") == []
