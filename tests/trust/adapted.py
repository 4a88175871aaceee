"""Each architecture with an adapter of SoRA on all its linear modules."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

import paring
from paring import train
from paring.methods.sora import SoRA
from tests.trust.architectures import ARCHITECTURES, Architecture


@functools.cache
def base(name: str) -> nn.Module:
    """A model that is only copied and looked at."""
    return ARCHITECTURES[name].build()


def adapted(name: str) -> PeftModel:
    """A fresh base, with an adapter on all linear modules."""
    one = ARCHITECTURES[name]
    model = paring.adapt(
        one.build(),
        SoRA(rank=4, penalty=0.3),
        target_modules="all-linear",
        task_type=one.task,
        modules_to_save=list(one.heads) or None,
        seed=0,
    )
    return model.eval()


def inputs(one: Architecture) -> dict[str, Tensor]:
    """The same batch each time."""
    return one.inputs(torch.Generator().manual_seed(3))


@torch.no_grad()
def output(name: str, model: nn.Module) -> Tensor:
    """What is compared."""
    one = ARCHITECTURES[name]
    found: Tensor = model(**inputs(one))[one.output]
    return found


def steps(name: str, model: PeftModel, count: int) -> None:
    """A few steps on one batch."""
    one = ARCHITECTURES[name]
    optimizer = train.create_optimizer(model, lr=1e-2)
    model.train()
    for _ in range(count):
        model(**one.labelled(inputs(one)))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@functools.cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="architectures-")


@functools.cache
def saved(name: str) -> str:
    """Where the base lies on disk."""
    folder = Path(_place().name) / name
    ARCHITECTURES[name].build().save_pretrained(folder)
    return str(folder)
