"""Python processes that have the libraries of others imported already, and nothing of paring.

Most of a short program's time goes into importing torch, transformers and PEFT. A server imports them once and does nothing else; each
program is a fork of it, with its own arguments, environment, folder and random state. What is about imports, or about variables that these
libraries read as they are imported, wants a new interpreter instead.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORKS = sys.platform == "linux"
"""Elsewhere a program is a new interpreter, as forks of large libraries are not safe there or do not exist."""


class Program:
    """A program that was started.

    Args:
        arguments: as they were given.
        folder: where what it says is kept.
    """

    def __init__(self, arguments: Sequence[str | Path], folder: Path) -> None:
        self.arguments = [*map(str, arguments)]
        self.out, self.err = folder / "out", folder / "err"
        self.pid = 0
        self.interpreter: subprocess.Popen[bytes] | None = None


class Warm:
    """The server, started when the first program is, and its programs."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="paring-warm-")
        self._count = 0

    def _ask(self, request: Mapping[str, Any]) -> int:
        if self._server is None:
            self._server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, arguments: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Program:
        """Start a program.

        Args:
            arguments: of the interpreter: ``-c`` and code, ``-m`` and a module, or a script; then the program's own.
            cwd: its folder.
            env: its whole environment; this process's if left out.
        """
        self._count += 1
        place = Path(self._folder.name) / str(self._count)
        place.mkdir()
        program = Program(arguments, place)
        if FORKS:
            request = {"arguments": program.arguments, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
            program.pid = self._ask({**request, "out": str(program.out), "err": str(program.err)})
        else:
            with program.out.open("wb") as out, program.err.open("wb") as err:
                program.interpreter = subprocess.Popen([sys.executable, *program.arguments], cwd=cwd, env=env, stdout=out, stderr=err)
        return program

    def wait(self, program: Program, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """How a program has ended, and what it said; one that takes longer than so many seconds is killed."""
        forked = program.interpreter is None
        code = self._ask({"pid": program.pid, "timeout": timeout}) if forked else program.interpreter.wait(timeout)
        return subprocess.CompletedProcess(program.arguments, code, program.out.read_text(), program.err.read_text())

    def run(
        self, arguments: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> str:
        """What a program prints that must end well; see :meth:`start` and :meth:`wait`."""
        done = self.wait(self.start(arguments, cwd=cwd, env=env), timeout)
        assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait(timeout=30)
        self._folder.cleanup()


def serve() -> None:
    """Import, then start programs and wait for them, as the lines of the standard input say."""
    # What a library prints as it is imported is no answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import datasets
    import numpy as np
    import peft
    import torch
    import transformers

    _ = torch._dynamo, datasets.Dataset, peft.PeftModel, transformers.AutoModel, transformers.Trainer, transformers.AutoTokenizer
    del sys.path[0]  # the folder of this script
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            print(_ended(request["pid"], request["timeout"]), file=answers)
            continue
        pid = os.fork()
        if pid:
            print(pid, file=answers)
            continue
        random.seed()
        np.random.seed()  # noqa: NPY002 - the state that a fork would share with all others
        sys.exit(_program(request))


def _ended(pid: int, timeout: float) -> int:
    """What a program exits with; less the signal if it was killed by one."""
    until = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            until = float("inf")
        time.sleep(0.005)


def _program(request: Mapping[str, Any]) -> int:
    """Be the program that was asked for, and say what to exit with."""
    for number, path in enumerate((os.devnull, request["out"], request["err"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    first, *rest = request["arguments"]
    own = {"-c": "", "-m": request["cwd"]}.get(first, str(Path(first).parent))
    sys.path[:0] = [own, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        if first == "-c":
            sys.argv = ["-c", *rest[1:]]
            module = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), module.__dict__)
        elif first == "-m":
            sys.argv = ["-m", *rest[1:]]
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 - told as an interpreter tells it
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
