"""Several processes."""

from __future__ import annotations

from tests.trust.grid import Grid

FSDP1, ZERO = "FSDP1", ("DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3")
RESULTS = (
    "gates and ranks equal everywhere",
    "as one process on all rows",
    "checkpoint loads in another layout",
    "export from rank 0",
)
LAUNCHERS = ("torchrun", "accelerate launch")

GRID = Grid(
    title="Several processes",
    what="layout",
    rows=(
        "DDP, 2 processes",
        "DDP, 4 processes",
        "FSDP2, 2 processes",
        "FSDP2, 4 processes",
        FSDP1,
        *ZERO,
    ),
    columns=(*RESULTS, *LAUNCHERS),
    without={
        **{(row, column): "refused before the first step, so nothing is trained" for row in (FSDP1, *ZERO) for column in RESULTS},
        ("FSDP2, 4 processes", "accelerate launch"): "as with 2 processes: accelerate shards on accelerators only, and there is none here",
    },
)
