"""An audit hook that sees what a reader opens, writes, imports and runs, and can be switched on and off."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

RUNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "socket.bind",
    "pickle.find_class",
    "ctypes.dlopen",
)
"""What no reader has a reason for."""

CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "shutil.rmtree",
    "shutil.move",
)


class Watch:
    """What happened outside of a folder since it was switched on.

    Args:
        folder: where readers may read; Python's own files may be read beside it.
        writes: where readers may write.
    """

    def __init__(self, folder: Path, writes: Path | None = None) -> None:
        self.seen: list[str] = []
        self.on = False
        self._inside = str(folder.resolve())
        self._writes = str((writes or folder).resolve())
        code = {sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[2]), *(path for path in sys.path if path)}
        self._code = tuple(os.path.realpath(path) for path in code)
        self._known = {name.partition(".")[0] for name in sys.modules} | set(sys.stdlib_module_names)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            self._opened(*args)
        elif event in RUNS or (event in CHANGES and not self._path(args[0]).startswith(self._writes)):
            self.seen.append(f"{event} {args!r:.200}")
        elif event == "import" and str(args[0]).partition(".")[0] not in self._known:
            self.seen.append(f"import {args[0]}")

    def _opened(self, path: Any, mode: str | None, flags: int) -> None:
        if path is None or isinstance(path, int):
            return
        name = self._path(path)
        writing = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(letter in (mode or "") for letter in "wax+")
        allowed = name.startswith(self._writes) or (not writing and name.startswith((self._inside, *self._code)))
        if not allowed:
            self.seen.append(f"open {name} ({mode})")

    @staticmethod
    def _path(path: Any) -> str:
        try:
            return os.path.realpath(os.fsdecode(path))
        except (TypeError, ValueError):
            return repr(path)
