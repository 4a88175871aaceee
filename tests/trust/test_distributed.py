"""Several processes: every layout trains what one process trains, goes on from every other's checkpoint, and leaves the same adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from paring import method as methods
from tests.attach.processes import run_all
from tests.trust import layouts_worker, methods_worker
from tests.trust.grids import cell
from tests.warm import Warm

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo"),
]
Record = Callable[[str, object], None]


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(
            size,
            marks=[
                cell("distributed", f"{layout}, {size} processes", column)
                for layout in ("DDP", "FSDP2")
                for column in ("checkpoint loads in another layout", "export from rank 0")
            ],
        )
        for size in (2, 4)
    ],
)
def test_training_is_handed_over_from_layout_to_layout(size: int, warm: Warm, tmp_path: Path, record_property: Record) -> None:
    pairs = "; ".join(f"{name}: {len(layouts)}² pairs of layouts" for name, (_, layouts) in layouts_worker.METHODS.items())
    record_property("trust", f"{pairs}; {layouts_worker.HALF} steps before and after")
    run_all(warm, HERE / "layouts_worker.py", tmp_path, size)


@cell("distributed", "FSDP2, 2 processes", "as one process on all rows")
def test_every_method_is_right_or_refused_in_shards(warm: Warm, tmp_path: Path, record_property: Record) -> None:
    refused = sorted(methods_worker.REFUSED)
    record_property("trust", f"{len(methods.names()) - len(refused)} methods are right; refused: {', '.join(refused)}")
    run_all(warm, HERE / "methods_worker.py", tmp_path)
