"""Faults."""

from __future__ import annotations

from tests.trust.grid import Grid

GRID = Grid(
    title="Faults",
    what="fault",
    rows=(
        "SIGKILL while training",
        "SIGKILL while saving a checkpoint",
        "SIGKILL while exporting",
        "full disk",
        "read-only folder",
        "a file that vanishes",
        "two exports to one place",
        "20,000 steps",
    ),
    columns=(
        "nothing half-written at a final path",
        "resumes to the same bits",
        "one sentence, no work lost",
        "memory and file handles stay flat",
    ),
)
