"""DDP: replicas that see a share of the rows each end alike, as one model that sees all of them; empty modules stop no process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.attach.processes import run_all
from tests.attach.replicated_worker import METHODS, ROWS, STEPS
from tests.trust.grids import cell
from tests.warm import Warm

WORKER = Path(__file__).with_name("replicated_worker.py")


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo")
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(
            size,
            marks=[
                cell("distributed", f"DDP, {size} processes", "gates and ranks equal everywhere"),
                cell("distributed", f"DDP, {size} processes", "as one process on all rows"),
                *slow,
            ],
        )
        for size, slow in ((2, ()), (4, (pytest.mark.slow,)))
    ],
)
def test_replicas_equal_one_model_on_all_rows(
    size: int, warm: Warm, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("trust", f"{', '.join(METHODS)}; {STEPS} steps, {size} x {ROWS // size} rows against {ROWS}")
    run_all(warm, WORKER, tmp_path, size)
