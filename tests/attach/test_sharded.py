"""FSDP2: shards train as the whole does, count as the whole, and leave as one plain LoRA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo")
def test_two_processes_with_shards_equal_one_without(tmp_path: Path) -> None:
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, WORKER, str(rank), "2", str(tmp_path)], stderr=subprocess.PIPE, text=True, env=variables)
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(text[-1500:] for text in ended)
