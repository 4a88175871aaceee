"""Quantised bases."""

from __future__ import annotations

from tests.trust.grid import Grid

GRID = Grid(
    title="Quantised bases",
    what="base",
    rows=(
        "bitsandbytes, 8 bit",
        "bitsandbytes, 4 bit (NF4)",
        "torchao, int8 weights",
    ),
    columns=(
        "gates move and die",
        "export on the unquantised base",
        "merge",
        "prepare_model_for_kbit_training before",
        "prepare_model_for_kbit_training after",
        "resumes",
    ),
)
