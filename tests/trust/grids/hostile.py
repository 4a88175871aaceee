"""Hostile input."""

from __future__ import annotations

from tests.trust.grid import Grid

GRID = Grid(
    title="Hostile input",
    what="reader",
    rows=(
        "adapter weights",
        "adapter configuration",
        "patterns and targets",
        "study file",
        "data files",
        "method settings",
    ),
    columns=(
        "a clear error or a right result",
        "bounded time and memory",
        "nothing outside the folder",
        "no pickle, no remote code",
    ),
)
