"""Which code made a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import paring
from paring.train.recorder import versions

DIGITS = 8
"""Of the digest of paring's source that are told."""


@cache
def code_versions() -> Mapping[str, str]:
    """The packages' versions, paring's with a digest of its source: between two releases the same number is many a code."""
    return {**versions(), "paring": f"{paring.__version__}+src.{source_digest(Path(paring.__file__).parent)}"}


def source_digest(folder: Path) -> str:
    """The first digits of a SHA-256 over all modules of a package and their places in it."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        found.update(f"{file.relative_to(folder).as_posix()}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:DIGITS]
