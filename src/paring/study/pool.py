"""Processes that make runs: each its own, so that one that dies takes nothing with it and is told apart from the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

PATIENCE = 10.0
"""Seconds in which a process has to end."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Died:
    """What is known of a piece of work that raised an error, or whose process died of it.

    Attributes:
        error: in a sentence.
    """

    error: str


@dataclass(frozen=True, kw_only=True)
class _Worker:
    process: SpawnProcess
    connection: Connection


class Pool(Generic[T, R]):
    """Does pieces of work in processes of their own, at most so many at a time.

    A process that dies (killed for its memory, say) is replaced; its piece of work ends as :class:`Died`. One in which a piece of work went
    wrong is replaced too: what an accelerator has refused once (an index out of range) it refuses to all that follows in that process.

    Args:
        work: a function at the top of a module, since it is imported by the processes.
        workers: how many processes.
        threads: of each, by ``OMP_NUM_THREADS``, which torch reads when it is imported.
        sound: whether what came of a piece of work leaves its process fit for others.
    """

    def __init__(self, work: Callable[[T], R], *, workers: int, threads: int, sound: Callable[[R], bool] = lambda result: True) -> None:
        # CUDA cannot be used in a fork of a process that has used it.
        self._context = multiprocessing.get_context("spawn")
        self._work, self._threads, self._limit, self._sound = work, threads, workers, sound
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, T]] = {}

    def __enter__(self) -> Pool[T, R]:
        return self

    def __exit__(self, *error: object) -> None:
        for worker, _ in self._busy.values():
            worker.process.terminate()
        for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
            _dismiss(worker)
        self._idle, self._busy = [], {}

    @property
    def free(self) -> int:
        """How many pieces of work can be taken now."""
        return self._limit - len(self._busy)

    @property
    def busy(self) -> Sequence[T]:
        """What is being worked on."""
        return [item for _, item in self._busy.values()]

    def submit(self, item: T) -> None:
        """Begin a piece of work; there must be a free process."""
        assert self.free > 0
        worker = self._take() or self._start()
        worker.connection.send(item)
        self._busy[worker.connection] = (worker, item)

    def ended(self, timeout: float | None = None) -> Iterator[tuple[T, R | Died]]:
        """Wait until something has ended, or for so many seconds, and give what has.

        Args:
            timeout: in seconds; ``None`` waits as long as it takes.
        """
        for connection in wait(list(self._busy), timeout):
            assert isinstance(connection, Connection)
            worker, item = self._busy.pop(connection)
            try:
                result: R | Died = connection.recv()
                if isinstance(result, Died) or not self._sound(result):
                    _dismiss(worker)
                else:
                    self._idle.append(worker)
            except (EOFError, ConnectionError):
                worker.process.join()
                connection.close()
                result = Died(error=_told(worker.process.exitcode))
            yield item, result

    def _take(self) -> _Worker | None:
        """An idle process; those that have died meanwhile are let go."""
        while self._idle:
            worker = self._idle.pop()
            if worker.process.is_alive():
                return worker
            worker.connection.close()
        return None

    def _start(self) -> _Worker:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, self._work), daemon=True)
        with _threads(self._threads):
            process.start()
        there.close()
        return _Worker(process=process, connection=here)


def _dismiss(worker: _Worker) -> None:
    worker.connection.close()  # which an idle one takes for the end
    worker.process.join(PATIENCE)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()


class _threads:
    """What is imported in a process that is started in here reads so many threads from its environment."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        self.before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(self.count)

    def __exit__(self, *error: object) -> None:
        if self.before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = self.before


def _told(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"The process was killed by {name}{memory}."
    return f"The process ended by itself, with status {code}."


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Work off what is sent, one piece at a time, until the other end is gone."""
    # Ctrl-C reaches all processes of a terminal; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()
    with suppress(EOFError, ConnectionError):
        while True:
            item = connection.recv()
            try:
                result = work(item)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is what came of this piece of work
                said = " ".join(str(error).split()) or type(error).__name__
                result = Died(error=said)
            connection.send(result)


def follow_parent() -> None:
    """End with the parent: a worker that has lost it would work on for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
