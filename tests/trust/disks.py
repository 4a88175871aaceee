"""Small disks for tests: a tmpfs of a few hundred kilobytes that can be filled up, and made read-only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PAGE = 4096
"""What a tmpfs gives out at a time."""


class Disk:
    """A mounted tmpfs.

    Attributes:
        place: where it is mounted.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._filler = place / "filler"

    def leave(self, space: int) -> None:
        """Fill it up until so many bytes are left."""
        self._filler.unlink(missing_ok=True)
        with self._filler.open("wb") as file:
            for _ in range(os.statvfs(self.place).f_bavail - space // PAGE):
                file.write(bytes(PAGE))

    def empty(self) -> None:
        """Take out what has filled it up."""
        self._filler.unlink()

    def read_only(self) -> None:
        """Let nothing be written from now on."""
        subprocess.run(["mount", "-o", "remount,ro", self.place], check=True)

    def writable(self) -> None:
        """Let it be written again."""
        subprocess.run(["mount", "-o", "remount,rw", self.place], check=True)

    def names(self) -> list[str]:
        """All that is in it but for what fills it up, hidden files too."""
        return sorted(item.name for item in self.place.iterdir() if item != self._filler)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Disk]]:
    """Mounts a tmpfs of so many bytes; a test that may not mount is skipped."""
    mounted: list[Path] = []

    def make(size: int) -> Disk:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        try:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, text=True, check=False
            )
        except OSError as error:
            pytest.skip(f"no tmpfs can be mounted here ({error})")
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here ({done.stderr.strip()})")
        mounted.append(place)
        return Disk(place)

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)
