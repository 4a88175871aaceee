"""One of two processes whose model is flattened (FSDP1): started by test_distributed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import paring
from paring.core.errors import StepError
from paring.methods.sora import SoRA
from paring.train import ParingCallback, ParingTrainer
from transformers import Trainer, TrainingArguments


def main(rank: int, size: int, place: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place / 'meet'}", rank=rank, world_size=size)
    for orig in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
        model = paring.adapt(net, SoRA(rank=4, penalty=0.9, gate_rate=0.3), target_modules=["0", "2"], seed=0)
        from paring.train import create_optimizer
        try:
            w = FullyShardedDataParallel(model, use_orig_params=orig, device_id=torch.device("cpu"))
            o = create_optimizer(w, lr=0.02)
            for _ in range(12):
                w(torch.randn(8, 6)).square().mean().backward(); o.step(); o.zero_grad()
            print(orig, "ranks", paring.ranks(w))
        except Exception as e:
            print(orig, type(e), str(e)[:300])
    dist.destroy_process_group()

if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
