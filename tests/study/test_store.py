"""The database of a study's runs: whose it is, what it says where it is locked, and what it gives back."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from paring.core.errors import DataError, StudyError
from paring.core.records import Point
from paring.study.records import Job, Outcome, Phase, State
from paring.study.store import Store, alone, opened

JOB = Job(contestant="a", task="t", budget=None, phase=Phase.FINAL, seed=0, settings={})


def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_text("my notes, which are longer than the head of a database, and must stay\n" * 3)
    before = path.read_bytes()
    with pytest.raises(DataError, match="no database of a study"):
        Store(path)
    assert path.read_bytes() == before
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(DataError, match="newer release"):
        Store(newer)


HOLD = """
import pathlib, sys, time
from paring.study.store import alone
with alone(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_conducts_a_study(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        begun = time.perf_counter()
        with pytest.raises(StudyError, match="is already being conducted by another process"), alone(path):
            pass
        assert time.perf_counter() - begun < 5
        holder.kill()
    # What a killed process leaves behind holds nobody up.
    with alone(path):
        pass
    with alone(path):
        pass


def test_a_locked_database_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paring.study.store.WAIT", 0.1)
    path = tmp_path / "runs.db"
    with opened(path) as store, sqlite3.connect(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StudyError, match="is locked by another program; all runs"):
            store.put(JOB, Outcome(state=State.FINISHED))
        other.rollback()
        store.put(JOB, Outcome(state=State.FINISHED))


def test_what_earlier_releases_kept_is_read() -> None:
    outcome = Outcome(state=State.FINISHED, metrics={"accuracy": 0.5}, setup_seconds=2.0)
    data = json.loads(outcome.encode())
    del data["setup_seconds"]
    assert Outcome.decode(json.dumps(data)) == replace(outcome, setup_seconds=None)


def test_outcomes_survive_the_file(tmp_path: Path) -> None:
    outcome = Outcome(
        state=State.FAILED, metrics={"loss": math.inf}, history=(Point(step=1, values={"loss": 2.0}),), error="x", machine={"cores": 2}
    )
    with opened(tmp_path / "runs.db") as store:
        store.put(JOB, outcome)
        assert store.get(JOB) == outcome
        assert store.get(replace(JOB, seed=1)) is None
