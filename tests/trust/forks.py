"""Children of a process that has its imports behind it, killed at moments that are told by the phase that they are in.

A child writes every phase that it enters into a pipe, before it enters it. What is in a pipe is still there when its writer is not, so the
last one written is the phase in which it was killed.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

ENTRY = struct.Struct("=Bd")


class Phase(IntEnum):
    """What a child is at."""

    START = 1
    LOAD = 2
    TRAIN = 3
    SAVE = 4
    EXPORT = 5
    END = 6


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When to kill: so long after a phase was entered for the so-manieth time, or at a file operation inside it.

    Attributes:
        phase: the phase.
        time: 0 is the first time that it is entered.
        delay: seconds after that.
        operation: in place of a delay: how many files are opened for writing, renamed, made or removed before.
    """

    phase: Phase
    time: int = 0
    delay: float = 0.0
    operation: int | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """What became of a child.

    Attributes:
        killed: whether it was killed; otherwise it had ended before.
        status: what it exited with.
        phase: the phase that it was in.
        entered: every phase that it entered, with the time.
    """

    killed: bool
    status: int
    phase: Phase
    entered: tuple[tuple[Phase, float], ...]

    def lengths(self, phase: Phase) -> list[float]:
        """The seconds of each time in a phase."""
        following = [*(begun for _, begun in self.entered[1:]), self.entered[-1][1]]
        return [after - begun for (which, begun), after in zip(self.entered, following, strict=True) if which == phase]


class Teller:
    """In a child: tells its parent of the phases, and kills at a file operation if that is the moment.

    Args:
        pipe: to the parent.
        moment: when it is to be killed.
    """

    EVENTS = frozenset({"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link"})

    def __init__(self, pipe: int, moment: Moment | None) -> None:
        self.pipe, self.moment = pipe, moment
        self.phase = Phase.START
        self.times = dict.fromkeys(Phase, 0)
        self.operations = 0
        if moment is not None and moment.operation is not None:
            sys.addaudithook(self._operation)

    def enter(self, phase: Phase) -> None:
        """The next phase begins, if it is not the present one."""
        if phase == self.phase and self.times[phase]:
            return
        os.write(self.pipe, ENTRY.pack(phase, time.monotonic()))
        self.phase = phase
        self.times[phase] += 1

    def _operation(self, event: str, args: tuple[object, ...]) -> None:
        assert self.moment is not None
        if self.phase != self.moment.phase or self.times[self.phase] != self.moment.time + 1:
            return
        if event in self.EVENTS or (event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            if self.operations == self.moment.operation:
                os.kill(os.getpid(), signal.SIGKILL)
            self.operations += 1


def forked(job: Callable[[Teller], int], said: Path, moment: Moment | None = None, limit: float = 120.0) -> End:
    """Run a job in a child, and kill it at a moment.

    Args:
        job: returns the child's exit status.
        said: where the child's output goes.
        moment: when; ``None`` lets it end.
        limit: seconds after which a child that hangs is killed, which counts as a failure.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run(job, said, Teller(writing, moment))
    os.close(writing)
    entered: list[tuple[Phase, float]] = []
    with os.fdopen(reading, "rb") as pipe:
        while data := pipe.read(ENTRY.size):
            entered.append(_entry(data))
            times = sum(phase == (moment and moment.phase) for phase, _ in entered)
            if moment is not None and moment.operation is None and entered[-1][0] == moment.phase and times == moment.time + 1:
                time.sleep(max(0.0, entered[-1][1] + moment.delay - time.monotonic()))
                os.kill(child, signal.SIGKILL)
                break
            if time.monotonic() - entered[0][1] > limit:
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        while data := pipe.read(ENTRY.size):
            entered.append(_entry(data))
    killed = os.WIFSIGNALED(status)
    code = -os.WTERMSIG(status) if killed else os.WEXITSTATUS(status)
    return End(killed=killed, status=code, phase=entered[-1][0], entered=tuple(entered))


def _entry(data: bytes) -> tuple[Phase, float]:
    phase, begun = ENTRY.unpack(data)
    return Phase(phase), begun


def _run(job: Callable[[Teller], int], said: Path, teller: Teller) -> None:
    """In the child; does not come back."""
    status = 99
    try:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        teller.enter(Phase.START)
        status = job(teller)
        teller.enter(Phase.END)
    except BaseException:  # noqa: BLE001 - a child never comes back into its parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
