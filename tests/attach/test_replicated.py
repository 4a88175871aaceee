"""DDP: replicas that see half of the rows each end alike, as one model that sees all of them; empty modules stop no process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from tests.attach.processes import run_two

WORKER = Path(__file__).with_name("replicated_worker.py")


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo")
def test_two_replicas_equal_one_model_on_all_rows(tmp_path: Path) -> None:
    run_two(WORKER, tmp_path)
