"""Reading: cells stay what they are, and splits are found."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from paring.cli.data.read import ROW, held_out_split, read
from paring.core.errors import DataError


def test_cells_of_text_files_stay_text(tmp_path: Path) -> None:
    texts = ['he said "no', "NA", "null", "007", "nan", "a,b", "ünïcode 猫"]
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{i}\n" for i, text in enumerate(texts)), encoding="utf-8")
    rows = read(str(tmp_path / "t.tsv"), "train")
    assert list(rows["text"]) == texts
    assert list(rows["label"]) == [str(i) for i in range(len(texts))]
    assert list(rows[ROW]) == list(range(1, len(texts) + 1))


def test_quotes_of_csv_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label\n"a, b",1\n"two\nlines",0\n', encoding="utf-8-sig")
    rows = read(str(tmp_path / "t.csv"), "train")
    assert list(rows["text"]) == ["a, b", "two\nlines"]


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl", "parquet"])
def test_the_formats_agree(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "y"]}), path)
    else:
        lines = {"tsv": "text\tlabel\na\tx\nb\ty\n", "csv": "text,label\na,x\nb,y\n"}
        path.write_text(lines.get(suffix, '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'), encoding="utf-8")
    rows = read(str(path), "train")
    assert [(row["text"], row["label"]) for row in rows] == [("a", "x"), ("b", "y")]


def test_lines_of_plain_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert list(read(str(tmp_path / "t.txt"), "train")["text"]) == ["one", "two"]


def test_a_folder_knows_its_splits(moods: Path, tmp_path: Path) -> None:
    assert held_out_split(str(moods)) == "dev"
    assert len(read(str(moods), "dev")) == 32
    with pytest.raises(DataError, match=r"no file for split 'trian'.*train"):
        read(str(moods), "trian")
    with pytest.raises(DataError, match="holds no data"):
        read(str(tmp_path), "train")


def test_a_saved_data_set(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).save_to_disk(str(tmp_path / "saved"))
    assert read(str(tmp_path / "saved"), "train").features["label"].names == ["no", "yes"]


def test_the_line_of_a_bad_byte(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"x" * (1 << 20) + b"\nsecond\nthi\xffrd\n")
    with pytest.raises(DataError, match="byte 0xff in line 3"):
        read(str(tmp_path / "t.txt"), "train")


def test_a_misspelled_file_shows_its_neighbours(moods: Path) -> None:
    with pytest.raises(DataError, match=r"Did you mean 'train.tsv'"):
        read(str(moods / "trian.tsv"), "train")
