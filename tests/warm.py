"""Python processes that have the libraries of others imported already, and nothing of paring.

Most of a short program's time goes into importing torch, transformers and PEFT. A server imports them once and does nothing else; each
program is a fork of it, with its own arguments, environment, folder and random state. What is about imports, or about variables that these
libraries read as they are imported, wants a new interpreter instead.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.answering import Answering

FORKS = sys.platform == "linux"
"""Elsewhere a program is a new interpreter, as forks of large libraries are not safe there or do not exist."""


class Program:
    """A program that was started.

    Args:
        arguments: as they were given.
        folder: where what it says is kept.
    """

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.arguments = arguments
        self.out, self.err = folder / "out", folder / "err"
        self.pid = 0
        self.interpreter: subprocess.Popen[bytes] | None = None


class Warm:
    """The server, started when the first program is, and its programs."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="paring-warm-")

    @functools.cached_property
    def _server(self) -> Answering:
        return Answering([Path(__file__).with_name("warm_worker.py")])

    def start(self, arguments: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Program:
        """Start a program.

        Args:
            arguments: of the interpreter: ``-c`` and code, or a script; then the program's own.
            cwd: its folder.
            env: its whole environment; this process's if left out.
        """
        place = Path(tempfile.mkdtemp(dir=self._folder.name))
        program = Program([*map(str, arguments)], place)
        if not FORKS:
            with program.out.open("wb") as out, program.err.open("wb") as err:
                program.interpreter = subprocess.Popen([sys.executable, *program.arguments], cwd=cwd, env=env, stdout=out, stderr=err)
            return program
        first, *rest = program.arguments
        script, path = Path(first), str(Path(first).parent)
        if first == "-c":
            script, path = place / "program.py", ""
            script.write_text(rest.pop(0), encoding="utf-8")
        request = {"script": str(script), "path": path, "arguments": [first, *rest], "out": str(program.out), "err": str(program.err)}
        program.pid = self._server.ask({**request, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)})
        return program

    def wait(self, program: Program, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """How a program has ended, and what it said; one that takes longer than so many seconds is killed."""
        if program.interpreter is not None:
            code = program.interpreter.wait(timeout)
        else:
            code = self._server.ask({"pid": program.pid, "timeout": timeout})
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
        if "_server" in vars(self):
            self._server.close()
        self._folder.cleanup()
