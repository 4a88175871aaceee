"""Runs a script with accelerate told that its processes have a GPU each, while they compute on the processor.

accelerate shards on accelerators only, and on processors runs DDP whatever its configuration says. What is replaced is its choice of the
device, and the Trainer's, and nothing else: its FSDP, the Trainer's use of it, and torch's run as they are.

    accelerate launch --config_file fsdp2.yaml as_if_gpus.py script.py --its --flags
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments


def chosen(state: PartialState, *args: object, **kwargs: object) -> tuple[str, DistributedType]:
    """What accelerate finds where there are several GPUs, but for the backend."""
    return "gloo", DistributedType.MULTI_GPU


def placed(state: PartialState) -> None:
    """The processor, in the place of a GPU."""
    state.device = torch.device("cpu")


def asked(arguments: TrainingArguments) -> None:
    """Training arguments that do not ask for the processor."""
    arguments.use_cpu = False
    prepared(arguments)


prepared = TrainingArguments.__post_init__

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    with (
        patch.object(PartialState, "_prepare_backend", chosen),
        patch.object(PartialState, "set_device", placed),
        patch.object(TrainingArguments, "__post_init__", asked),
    ):
        runpy.run_path(sys.argv[0], run_name="__main__")
