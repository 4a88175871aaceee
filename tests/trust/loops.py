"""Loops of one's own: nothing but torch, accelerate, and Lightning; and what every run is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import get_scheduler

from paring import train
from tests.trust import language

ROWS = 4
RATE = 1e-2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is to do.

    Attributes:
        steps: of the optimizer, all in all.
        schedule: of the learning rates, "constant" or "linear".
        accumulate: batches a step.
        short: how many of them the last step lacks.
        save_at: the step after which the run is saved; ``None`` for not at all.
        resume: the saved run to go on from.
        settings: further settings of the trainer.
    """

    steps: int = 4
    schedule: str = "constant"
    accumulate: int = 1
    short: int = 0
    save_at: int | None = None
    resume: Path | None = None
    settings: tuple[tuple[str, Any], ...] = ()


Run = Callable[[Any, Path, Plan], Any]
"""Trains a model, in a folder, by a plan; returns the trainer if there is one."""


def checkpoint(folder: Path, step: int) -> Path:
    """Where a run in a folder is saved after a step."""
    return folder / f"checkpoint-{step}"


def batches(plan: Plan) -> list[Tensor]:
    """All batches of a run."""
    return [language.tokens(ROWS, seed=index) for index in range(plan.steps * plan.accumulate - plan.short)]


def examples(plan: Plan) -> list[Tensor]:
    """Their rows."""
    return [row for batch in batches(plan) for row in batch]


def plain(model: nn.Module, folder: Path, plan: Plan) -> None:
    """A loop with nothing but torch."""
    optimizer = train.create_optimizer(model, lr=RATE, weight_decay=0.1)
    schedule = get_scheduler(plan.schedule, optimizer, num_warmup_steps=0, num_training_steps=plan.steps)
    done = 0
    if plan.resume is not None:
        saved = torch.load(plan.resume / "run.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["generator"])
        done = saved["done"]
    model.train()
    for index, batch in enumerate(batches(plan)):
        if index < done * plan.accumulate:
            continue
        (model(input_ids=batch, labels=batch).loss / plan.accumulate).backward()
        if (index + 1) % plan.accumulate == 0 or index + 1 == len(batches(plan)):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            if done == plan.save_at:
                place = checkpoint(folder, done)
                place.mkdir(parents=True)
                states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                torch.save({**states, "generator": torch.get_rng_state(), "done": done}, place / "run.pt")


def accelerated(model: nn.Module, folder: Path, plan: Plan) -> None:
    """A loop around accelerate."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=plan.accumulate, **dict(plan.settings))
    optimizer = train.create_optimizer(model, lr=RATE, weight_decay=0.1)
    schedule = get_scheduler(plan.schedule, optimizer, num_warmup_steps=0, num_training_steps=plan.steps)
    # With a generator of its own: a loader draws from it when it begins, and a run that goes on begins once more.
    loader: DataLoader[Tensor] = DataLoader(examples(plan), batch_size=ROWS, generator=torch.Generator())  # type: ignore[arg-type]
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    done = 0
    if plan.resume is not None:
        accelerator.load_state(str(plan.resume))
        done = int(plan.resume.name.rpartition("-")[2])
        loader = accelerator.skip_first_batches(loader, done * plan.accumulate)
    model.train()
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(input_ids=batch, labels=batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                done += 1
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients and done == plan.save_at:
            accelerator.save_state(str(checkpoint(folder, done)))


def lightning(model: nn.Module, folder: Path, plan: Plan) -> None:
    """Lightning's Trainer, with the module that its users write."""
    pytest.importorskip("lightning", reason="lightning is not installed")
    from lightning.pytorch import LightningModule, Trainer

    given = batches(plan)

    class Module(LightningModule):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            # By its number: a run that goes on in the middle of an epoch gets the epoch's first batches once more.
            tokens = given[batch_idx]
            loss: Tensor = self.model(input_ids=tokens, labels=tokens).loss
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = train.create_optimizer(self.model, lr=RATE, weight_decay=0.1)
            schedule = get_scheduler(plan.schedule, optimizer, num_warmup_steps=0, num_training_steps=plan.steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["generator"] = torch.get_rng_state()

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.generator = checkpoint["generator"]

        def on_train_start(self) -> None:
            # Lightning leaves modules in the mode in which it gets them, and pre-trained ones come in that of evaluation.
            self.train()

        def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
            # Lightning leaves the generator of dropout to its users.
            if plan.resume is not None and self.trainer.global_step == int(plan.resume.name.rpartition("-")[2]):
                torch.set_rng_state(self.generator)

        def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
            if self.trainer.global_step == plan.save_at:
                self.trainer.save_checkpoint(checkpoint(folder, plan.save_at) / "run.ckpt", weights_only=False)

    trainer = Trainer(
        accelerator="cpu",
        max_steps=plan.steps,
        accumulate_grad_batches=plan.accumulate,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader: DataLoader[Tensor] = DataLoader(torch.cat(given), batch_size=ROWS)  # type: ignore[arg-type]
    trainer.fit(Module(), loader, ckpt_path=None if plan.resume is None else plan.resume / "run.ckpt")
