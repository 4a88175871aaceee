"""Runs in one file: an SQLite database that a study goes on from, and that anybody can query.

A run is written when it has ended, in one transaction, so a kill leaves all runs before it and nothing of itself.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from paring.core.errors import DataError, ExportError, ParingError, StudyError
from paring.study.plan import Estimate
from paring.study.records import Job, Outcome

SCHEMA = 1
WAIT = 60.0
"""Seconds that a lock of another program is waited for."""

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    key TEXT PRIMARY KEY,       -- SHA-256 of phase, seed and settings
    contestant TEXT NOT NULL, task TEXT NOT NULL, budget TEXT, phase TEXT NOT NULL, seed INTEGER NOT NULL,
    searched TEXT NOT NULL,     -- what was searched over and its value, JSON
    state TEXT NOT NULL,        -- finished, pruned, failed
    metrics TEXT NOT NULL,      -- at the end, JSON
    steps INTEGER NOT NULL, seconds REAL NOT NULL, memory INTEGER, parameters INTEGER, file_bytes INTEGER,
    error TEXT, started TEXT NOT NULL,
    settings TEXT NOT NULL,     -- all that the result depends on, JSON
    outcome TEXT NOT NULL       -- everything, with the values logged over time, versions and machine, JSON
);
CREATE TABLE IF NOT EXISTS estimates (key TEXT PRIMARY KEY, estimate TEXT NOT NULL);
"""


class Store:
    """The runs of one or more studies.

    Args:
        path: the file; it is made if it is not there.

    Raises:
        DataError: it is no such database, or a newer release wrote it.
        ExportError: it cannot be written.
        StudyError: another program has locked it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=WAIT)
        except (OSError, sqlite3.OperationalError) as error:
            raise _unwritten(path, error) from error
        try:
            # Readers go on while a run is written.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
            if version > SCHEMA:
                raise DataError(f"{str(path)!r} was written by a newer release of paring (schema {version}, this one reads {SCHEMA}).")
            with self._connection:
                self._connection.executescript(_TABLES)
                self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
        except sqlite3.OperationalError as error:
            self._connection.close()
            raise _unwritten(path, error) from error
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise DataError(f"{str(path)!r} is no database of a study ({error}); move it away, or choose another folder.") from error
        except DataError:
            self._connection.close()
            raise

    def get(self, job: Job) -> Outcome | None:
        """What came of a run, if it has ended before."""
        row = self._connection.execute("SELECT outcome FROM runs WHERE key = ?", (job.key,)).fetchone()
        return None if row is None else Outcome.decode(row[0])

    def put(self, job: Job, outcome: Outcome) -> None:
        """Keep what came of a run, in place of what came of it before.

        Raises:
            ExportError: the disk is full, or cannot be written; what is kept already stays.
            StudyError: another program has locked the file.
        """
        row = {
            "key": job.key,
            "contestant": job.contestant,
            "task": job.task,
            "budget": job.budget,
            "phase": str(job.phase),
            "seed": job.seed,
            "searched": json.dumps(job.settings.get("values", {}), sort_keys=True),
            "state": str(outcome.state),
            "metrics": json.dumps(dict(outcome.metrics), sort_keys=True),
            "steps": outcome.steps,
            "seconds": outcome.seconds,
            "memory": outcome.memory,
            "parameters": outcome.parameters,
            "file_bytes": outcome.file_bytes,
            "error": outcome.error,
            "started": outcome.started,
            "settings": json.dumps(dict(job.settings), sort_keys=True),
            "outcome": outcome.encode(),
        }
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        with self._change():
            self._connection.execute(f"INSERT OR REPLACE INTO runs ({names}) VALUES ({values})", row)

    def estimate(self, key: str) -> Estimate | None:
        """How long a run takes, if it was measured before."""
        row = self._connection.execute("SELECT estimate FROM estimates WHERE key = ?", (key,)).fetchone()
        return None if row is None else Estimate(**json.loads(row[0]))

    def put_estimate(self, key: str, estimate: Estimate) -> None:
        """Keep how long a run takes.

        Raises:
            ExportError, StudyError: as for a run.
        """
        with self._change():
            text = json.dumps(vars(estimate), sort_keys=True)
            self._connection.execute("INSERT OR REPLACE INTO estimates (key, estimate) VALUES (?, ?)", (key, text))

    @contextmanager
    def _change(self) -> Iterator[None]:
        """A transaction: all of it or nothing."""
        try:
            with self._connection:
                yield
        except sqlite3.OperationalError as error:
            raise _unwritten(self.path, error) from error

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def _unwritten(path: Path, error: Exception) -> ParingError:
    if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StudyError(
            f"{str(path)!r} is locked by another program; all runs that it holds are kept. Close what has it open, such as a viewer of "
            "databases, and give the same command again."
        )
    return ExportError(
        f"{str(path)!r} could not be written ({error}); all runs that it holds are kept. Free some space or see to the folder's "
        "rights, and give the same command again."
    )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes from conducting a study into the same file meanwhile, which would make the same runs twice.

    The lock is the system's: it ends with the process, however that ends, and who only reads does not need it.

    Raises:
        StudyError: another process conducts one.
        ExportError: the folder cannot be written.
    """
    lock = FileLock(path.with_suffix(".lock"), timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise StudyError(
            f"The study in {str(path.parent)!r} is already being conducted by another process; wait for its end, or choose another folder."
        ) from error
    except OSError as error:
        raise _unwritten(path, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """A store that is closed at the end."""
    store = Store(path)
    try:
        yield store
    finally:
        store.close()
