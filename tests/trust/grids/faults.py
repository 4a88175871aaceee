"""Faults."""

from __future__ import annotations

from tests.trust.grid import Grid

KILLS = ("SIGKILL while training", "SIGKILL while saving a checkpoint", "SIGKILL while exporting")
VANISHES, RACE, LONG = "a file that vanishes", "two exports to one place", "20,000 steps"
WHOLE, RESUMES, SENTENCE, FLAT = (
    "nothing half-written at a final path",
    "resumes to the same bits",
    "one sentence, no work lost",
    "memory and file handles stay flat",
)

GRID = Grid(
    title="Faults",
    what="fault",
    rows=(*KILLS, "full disk", "read-only folder", VANISHES, RACE, LONG),
    columns=(WHOLE, RESUMES, SENTENCE, FLAT),
    without={
        **{(kill, SENTENCE): "who is killed says nothing" for kill in KILLS},
        **{(fault, FLAT): "the process ends with it" for fault in (*KILLS, "full disk", "read-only folder", VANISHES, RACE)},
        (VANISHES, WHOLE): "nothing is written when what is read is gone",
        (RACE, RESUMES): "an export is made anew, not gone on with",
        **{(LONG, column): "nothing fails" for column in (WHOLE, RESUMES, SENTENCE)},
    },
)
