"""Several processes."""

from __future__ import annotations

from tests.trust.grid import Grid

GRID = Grid(
    title="Several processes",
    what="layout",
    rows=(
        "DDP, 2 processes",
        "DDP, 4 processes",
        "FSDP2, 2 processes",
        "FSDP2, 4 processes",
        "FSDP1",
        "DeepSpeed ZeRO-1",
        "DeepSpeed ZeRO-2",
        "DeepSpeed ZeRO-3",
    ),
    columns=(
        "gates and ranks equal everywhere",
        "as one process on all rows",
        "checkpoint loads in another layout",
        "export from rank 0",
        "torchrun",
        "accelerate launch",
    ),
)
