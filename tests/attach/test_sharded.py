"""FSDP2: shards train as the whole does, count as the whole, and leave as one plain LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from tests.attach.processes import run_two

WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo")
def test_two_processes_with_shards_equal_one_without(tmp_path: Path) -> None:
    run_two(WORKER, tmp_path)
