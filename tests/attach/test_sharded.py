"""FSDP2: shards train on shares of the rows as the whole does on all, count as the whole, and leave as one plain LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.attach.processes import run_all
from tests.attach.sharded_worker import METHODS, ROWS
from tests.releases import shards_on_cpu
from tests.trust.grids import cell
from tests.warm import Warm

WORKER = Path(__file__).with_name("sharded_worker.py")


@shards_on_cpu
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo")
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(
            size,
            marks=[
                cell("distributed", f"FSDP2, {size} processes", "gates and ranks equal everywhere"),
                cell("distributed", f"FSDP2, {size} processes", "as one process on all rows"),
                *slow,
            ],
        )
        for size, slow in ((2, ()), (4, (pytest.mark.slow,)))
    ],
)
def test_processes_with_shards_equal_one_without(
    size: int, warm: Warm, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("trust", f"{', '.join(METHODS)}; {size} x {ROWS // size} rows against {ROWS}")
    run_all(warm, WORKER, tmp_path, size)
