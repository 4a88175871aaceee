"""Trainers."""

from __future__ import annotations

from tests.trust.grid import Grid

GRID = Grid(
    title="Trainers",
    what="trainer",
    rows=(
        "plain loop",
        "transformers Trainer",
        "TRL SFTTrainer",
        "TRL DPOTrainer",
        "TRL GRPOTrainer",
        "accelerate",
        "sentence-transformers",
        "Lightning",
    ),
    columns=(
        "one proximal step a step",
        "resumes",
        "mixed batch",
        "export",
    ),
)
