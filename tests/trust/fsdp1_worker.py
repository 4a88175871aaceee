"""One of two processes whose model is flattened (FSDP1): started by torchrun in test_launchers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import Trainer, TrainingArguments

import paring
from paring.core.errors import StepError
from paring.methods.sora import SoRA
from paring.train import ParingCallback, ParingTrainer

REFUSAL = r"FSDP1 .* Set fsdp_version to 2, or use DDP"


def main(place: Path) -> None:
    """Both ways to guard a Trainer refuse the model before it is trained."""
    dist.init_process_group("gloo")
    for named in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        adapted = paring.adapt(net, SoRA(rank=4), target_modules=["0", "1"], seed=0)
        if not named:
            # Flattened without their names, parameters must all be trained or all frozen.
            adapted.requires_grad_(True)
        model = FullyShardedDataParallel(adapted, use_orig_params=named, device_id=torch.device("cpu"))
        arguments = TrainingArguments(output_dir=str(place), use_cpu=True, report_to="none")
        with pytest.raises(StepError, match=REFUSAL):
            ParingTrainer(model=model, args=arguments)
        with pytest.raises(StepError, match=REFUSAL):
            Trainer(model=model, args=arguments, callbacks=[ParingCallback()])
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
