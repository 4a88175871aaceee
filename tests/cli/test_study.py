"""``paring study``: real runs on tiny models, kept, gone on with, and the same however often they were interrupted."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from paring.cli.study import digests
from paring.cli.study.build import build
from paring.cli.study.code import source_digest
from paring.cli.study.digests import with_digests
from paring.cli.study.text import read_text
from paring.cli.study.work import Worker
from paring.core.errors import DataError
from paring.study.search import Asked
from paring.study.store import alone
from tests.cli.studies import FILE, job
from tests.study import samples
from tests.study.samples import nothing

Run = Callable[..., int]


def test_a_run_is_known_by_content_and_not_by_place(bert: Path, moods: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(FILE, encoding="utf-8")
    text = read_text(tmp_path / "study.yaml")

    def keys(base: Path, data: Path) -> list[str]:
        names = {"base": str(base), "data": str(data)}
        study = with_digests(build(text, names).study, names)
        return [study.final(cell, 0, {"learning_rate": 1e-3}).key for cell in study.cells]

    moved = tmp_path / "moved"
    shutil.copytree(moods, moved)
    assert keys(bert, moods) == keys(bert, moved)
    changed = tmp_path / "changed"
    shutil.copytree(moods, changed)
    (changed / "train.tsv").write_text((moods / "train.tsv").read_text() + "the day was fine\tgood\n")
    assert not set(keys(bert, moods)) & set(keys(bert, changed))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data"):
        keys(bert, tmp_path / "empty")


def test_what_the_command_line_says_is_a_setting_of_a_run(bert: Path, moods: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(FILE.replace("num_train_epochs: 2", "max_steps: $steps"), encoding="utf-8")
    text = read_text(tmp_path / "study.yaml")

    def keys(steps: str, base: Path | str = bert) -> list[str]:
        names = {"base": str(base), "data": str(moods), "steps": steps}
        study = with_digests(build(text, names).study, names)
        return [study.final(cell, 0, {"learning_rate": 1e-3}).key for cell in study.cells]

    assert keys("10") == keys("10")
    assert not set(keys("10")) & set(keys("1000"))
    # Two models of the hub, which are known by nothing but their names.
    assert not set(keys("10", "one/model")) & set(keys("10", "other/model"))


def test_files_that_are_the_runs_inputs_belong_to_what_it_is_known_by(bert: Path, moods: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(FILE, encoding="utf-8")
    text = read_text(tmp_path / "study.yaml")
    base, data = tmp_path / "base", tmp_path / "data"
    shutil.copytree(bert, base)
    rows = datasets.Dataset.from_dict({"text": ["a fine day", "a sad day"] * 4, "label": ["good", "bad"] * 4})
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(data)

    def key() -> str:
        digests._content.cache_clear()
        digests._model.cache_clear()
        names = {"base": str(base), "data": str(data)}
        study = with_digests(build(text, names).study, names)
        return study.final(study.cells[0], 0, {"learning_rate": 1e-3}).key

    before = key()
    (data / "train" / "cache-1234.arrow").write_bytes(b"what datasets leaves behind")
    (data / ".git").mkdir()
    (data / ".git" / "index").write_bytes(b"and git")
    assert key() == before
    arrow = next((data / "dev").glob("data-*.arrow"))
    arrow.write_bytes(arrow.read_bytes() + b"0")
    other = key()
    assert other != before
    (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text().replace("fine", "wine"))
    assert key() != other


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_study_from_its_file_to_its_report(
    file: Path, bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    define = f"base={bert},data={moods}"
    assert run("study", file, "--plan", define=define) == 0
    said = capsys.readouterr().err
    assert "at most 6 runs (4 to choose settings, 2 with 1 seed)" in said
    assert "hours of 1 core" in said
    folder = tmp_path / "small"
    assert not (folder / "results.json").exists()
    assert run("study", file, define=define, max_hours=1e-9) == 1
    assert "more than --max_hours" in capsys.readouterr().err
    assert run("study", file, "--no_probe", define=define, workers=1) == 0
    outputs = capsys.readouterr()
    assert outputs.out.strip() == str(folder / "report.html")
    assert "6 of at most 6 runs" in outputs.err
    results = (folder / "results.json").read_bytes()
    assert str(bert) not in results.decode()
    with sqlite3.connect(folder / "runs.db") as connection:
        before = connection.execute("SELECT key, started FROM runs ORDER BY key").fetchall()
        outcomes = [json.loads(text) for (text,) in connection.execute("SELECT outcome FROM runs")]
    assert len(before) == 6
    assert all(outcome["defaults"]["weight_decay"] == 0.0 for outcome in outcomes)
    assert run("study", file, "--no_probe", define=define, workers=2) == 0
    with sqlite3.connect(folder / "runs.db") as connection:
        assert connection.execute("SELECT key, started FROM runs ORDER BY key").fetchall() == before
    assert (folder / "results.json").read_bytes() == results
    capsys.readouterr()
    assert run("study", "compare", "SoRA", "LoRA", output_dir=folder) == 0
    assert "SoRA" in capsys.readouterr().out
    assert run("study", "compare", "SoRA", "LoRa", output_dir=folder) == 1
    assert "Did you mean 'LoRA'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "flags", "said"),
    [
        ((), {}, "Give the study's YAML file"),
        (("compare", "a"), {}, "Give two contestants"),
        (("compare", "a", "b"), {"output_dir": "nowhere"}, "holds no findings.json"),
        (("FILE",), {"define": "base"}, "--define base: give NAME=VALUE"),
        (("FILE",), {}, "Give --define base=VALUE"),
        (("FILE", "--no_probe"), {"define": "base=BERT, data=MOODS,here"}, ",here'. Did you mean 'moods"),
        (("FILE", "--no_probe"), {"define": "base=BERTS,data=MOODS"}, "There is no file or folder"),
        (("FILE",), {"define": "base=BERT,data=MOODS", "reference": "LoRa"}, "Did you mean 'LoRA'"),
        (("FILE",), {"define": "base=BERT,data=MOODS", "workers": 0}, "--workers 0"),
        (("FILE", "--no_probe"), {"define": "base=BERT,data=MOODS", "max_hours": 1}, "leave one of them out"),
        (("FILE",), {"define": "base=BERT,data=MOODS", "output_dir": "FILE"}, "is a file"),
    ],
)
def test_a_wrong_command_is_refused(
    words: tuple[str, ...],
    flags: dict[str, Any],
    said: str,
    file: Path,
    bert: Path,
    moods: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def put(value: Any) -> Any:
        return str(value).replace("FILE", str(file)).replace("BERT", str(bert)).replace("MOODS", str(moods))

    assert run("study", *map(put, words), **{name: put(value) for name, value in flags.items()}) == 1
    assert said in capsys.readouterr().err
    assert not (file.parent / "small").exists()


def test_a_study_of_which_nothing_came_says_so(
    file: Path, bert: Path, moods: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("paring.study.conduct.conduct", lambda *given, **more: nothing())
    assert run("study", file, "--no_probe", define=f"base={bert},data={moods}") == 1
    assert "no run came to its end; " in capsys.readouterr().err
    assert "report.html" in {path.name for path in (file.parent / "small").iterdir()}


def test_a_study_that_is_being_conducted_is_left_alone_and_can_be_read(
    file: Path, bert: Path, moods: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("paring.study.conduct.conduct", lambda *given, **more: samples.usual())
    define = f"base={bert},data={moods}"
    assert run("study", file, "--no_probe", define=define) == 0
    folder = file.with_suffix("")
    before = (folder / "runs.db").read_bytes()
    with alone(folder / "runs.db"):
        capsys.readouterr()
        assert run("study", file, "--no_probe", define=define) == 1
        assert "is already being conducted by another process" in capsys.readouterr().err
        assert run("study", "compare", "SoRA", "LoRA", output_dir=folder) == 0
    assert (folder / "runs.db").read_bytes() == before


def test_runs_of_several_codes_are_told_apart(
    file: Path, bert: Path, moods: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outcome = Worker(definitions={})(Asked(job=job(bert, moods, "lora")))
    assert re.fullmatch(r".+\+src\.[0-9a-f]{8}", outcome.versions["paring"])
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "inner" / "rule.py").write_text("rate = 1")
    before = source_digest(tmp_path / "package")
    assert source_digest(tmp_path / "package") == before
    (tmp_path / "package" / "inner" / "rule.py").write_text("rate = 2")
    assert source_digest(tmp_path / "package") != before
    found = replace(samples.usual(), versions={"paring": ["0.1.0+src.00000000", outcome.versions["paring"]]})
    monkeypatch.setattr("paring.study.conduct.conduct", lambda *given, **more: found)
    assert run("study", file, "--no_probe", define=f"base={bert},data={moods}") == 0
    assert "several versions of paring" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_that_is_killed_three_times_finds_the_same(file: Path, bert: Path, moods: Path, tmp_path: Path) -> None:
    def command(folder: Path) -> list[str]:
        words = [sys.executable, "-m", "paring.cli", "study", str(file), "--define", f"base={bert},data={moods}", "--no_probe"]
        return [*words, "--workers", "2", "--output_dir", str(folder)]

    begun = time.perf_counter()
    subprocess.run(command(tmp_path / "alone"), check=True, capture_output=True, timeout=300)
    whole = time.perf_counter() - begun
    chooser = random.Random(20261128)
    for _ in range(3):
        process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * chooser.uniform(0.3, 0.9))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True, timeout=300)
    first, second = ((tmp_path / name / "results.json").read_bytes() for name in ("alone", "killed"))
    assert first == second
    assert json.loads(first)
