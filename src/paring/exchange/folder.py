"""Folders that appear whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from paring.core.errors import AdapterError, ExportError, OutputExistsError, ParingError
from paring.core.reading import json_object
from paring.exchange.layout import COMPANIONS, OWN_FILES, SIDE

NAMED = OWN_FILES | frozenset(COMPANIONS)
"""The files of an adapter's folder that are read."""

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(folder: Path, overwrite: bool, *, ask: str = "") -> Iterator[Path]:
    """A temporary sibling to fill; on leaving, it takes the place of ``folder``.

    Until then ``folder`` is untouched, and if anything goes wrong it stays as it was and the sibling is removed. An old
    folder steps aside before the new one takes its name, and steps back if that fails.

    Args:
        folder: the folder.
        overwrite: replace one that an export wrote.
        ask: how the caller is asked to overwrite, for the error; empty if it cannot be.

    Raises:
        OutputExistsError: the folder is there and ``overwrite`` is off, or it holds what no export wrote.
        ExportError: the disk is full or cannot be written.
    """
    # A link's target is what gets replaced, not the link.
    folder = folder.resolve()
    token = secrets.token_hex(4)
    fresh = folder.with_name(f".{folder.name}.{token}.new")
    old = folder.with_name(f".{folder.name}.{token}.old")
    try:
        with _alone(folder.parent):
            _restore(folder)
            _check(folder, overwrite, ask)
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        yield fresh
        _share(fresh)
        _sync(fresh)
        with _alone(folder.parent):
            if folder.exists():
                # What happened in the meantime counts.
                _check(folder, overwrite, ask)
                folder.rename(old)
            try:
                fresh.rename(folder)
            except BaseException:
                if old.exists():
                    old.rename(folder)
                raise
        _sync(folder.parent)
    except OSError as error:
        if isinstance(error, OutputExistsError):
            raise
        reason = error.strerror or str(error)
        raise ExportError(
            f"Could not write {str(folder)!r} ({reason}); nothing was changed. Free some space, or choose another folder."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Keep other processes from renaming in here, where the system can lock folders: else two exports to one place mix up their steps."""
    descriptor = -1
    if fcntl is not None:
        with suppress(OSError):
            descriptor = os.open(parent, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)  # which unlocks it


def _restore(folder: Path) -> None:
    """Give a folder its name back that had stepped aside when an earlier export was killed."""
    if not folder.exists() and folder.parent.is_dir():
        aside = sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.old"), key=lambda path: path.stat().st_mtime)
        if aside:
            aside[-1].rename(folder)


def store(path: Path, data: bytes) -> None:
    """Write one file and wait until the disk has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write one file whole or not at all: a reader finds the old one or the new one, and a kill leaves either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def check_links(folder: Path) -> None:
    """Refuse an adapter's folder with a link among its files that leads out of it.

    Who wrote the folder may have no access to what lies elsewhere on this machine, and a link would have it read, or copied into an
    export. The hub's own cache is made of links, to the ``blobs`` beside its ``snapshots``; these are followed.

    Raises:
        AdapterError: names the link.
    """
    place = folder.resolve()
    within = [place, *([place.parent.parent / "blobs"] if place.parent.name == "snapshots" else [])]
    try:
        for path in folder.iterdir():
            if path.is_symlink() and path.name in NAMED and not any(path.resolve().is_relative_to(inside) for inside in within):
                raise AdapterError(
                    f"{path.name} in {str(folder)!r} is a link to {str(path.readlink())!r}, out of the folder, which is not followed; "
                    "put a copy of the file in its place, if you trust it."
                )
    except (OSError, RuntimeError) as error:  # a link in a circle is a RuntimeError before Python 3.13
        raise AdapterError(f"{str(folder)!r} cannot be looked into ({error}).") from error


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(folder: Path, overwrite: bool, ask: str) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputExistsError(f"{str(folder)!r} is a file; an adapter is a folder, choose another name.")
    entries = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    if not entries:
        return
    if not overwrite:
        raise OutputExistsError(f"{str(folder)!r} exists already; choose another folder{f', or replace it with {ask}' if ask else ''}.")
    # Replacing a folder deletes what is in it, so only what an export put there may be in it.
    written = _written(folder)
    foreign = [name for name in entries if name not in written]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise OutputExistsError(
            f"{str(folder)!r} holds files that no export wrote ({', '.join(foreign[:3])}{more}), which overwriting would delete; "
            "move them away, or choose another folder."
        )


def _written(folder: Path) -> frozenset[str]:
    """The files that the export in this folder wrote, by its own account; without one, none (a checkpoint has a configuration too)."""
    try:
        return frozenset(str(name) for name in json_object(folder / SIDE)["files"])
    except (ParingError, KeyError, TypeError):
        return frozenset()


def _share(folder: Path) -> None:
    """Give every file the rights that the umask leaves, as the new folder has them: safetensors makes its files private."""
    rights = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | rights)


def _sync(folder: Path) -> None:
    """Make the folder's own entries durable, where the system can: Windows cannot open folders, some network disks cannot sync them."""
    if os.name == "posix":
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
