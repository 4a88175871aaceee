"""Calibrating an adapter whose start is read off a gradient, with batches as the training will see them."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import DataLoaderStateMixin
from peft import PeftModel
from transformers import Trainer

import paring
from paring.attach.find import slots
from paring.cli.console import say


def calibrated(trainer: Trainer, model: PeftModel, count: int) -> None:
    """Give the adapter its start from the first batches of the training, if it needs one, and say so.

    Raises:
        SettingError: the loss or a gradient is not finite.
    """
    modules, batches = calibrate_for(trainer, model, count)
    if modules:
        say(f"start: read off the gradient of {modules} modules on {batches} batches (--calibration_batches)")


def calibrate_for(trainer: Trainer, model: PeftModel, count: int) -> tuple[int, int]:
    """Give the adapter its start from the first batches of the training, if it needs one; no generator is the worse for it.

    Returns:
        How many modules have got one, from how many batches.

    Raises:
        SettingError: the loss or a gradient is not finite.
    """
    if not any(slot.wants_calibration for slot in slots(model).values()):
        return 0, 0
    with torch.random.fork_rng():
        batches = first_batches(trainer, count)
        return len(paring.calibrate(model, batches)), len(batches)


def first_batches(trainer: Trainer, count: int) -> list[Any]:
    """So many batches as the training will see them."""
    loader = trainer.get_train_dataloader()
    batches = list(islice(loader, count))
    if len(batches) == count and isinstance(loader, DataLoaderStateMixin):
        # accelerate takes a loader that was not read to its end for the one that is being trained on.
        loader.end()
    return batches
