"""Short runs of a Trainer and of a hand-written loop that does the same."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from paring import train
from paring.method import Method
from tests.contract.cases import Case

ROWS = 2
RATE = 1e-2
DECAY = 0.1
CLIP = 0.5


def rows(case: Case, steps: int) -> list[dict[str, Tensor]]:
    """A data set with one batch of two rows for each step."""
    batch = case.kind.batch(rows=ROWS * steps)
    return [{key: value[row] for key, value in batch.items()} for row in range(ROWS * steps)]


def with_dropout(method: Method) -> Method:
    """The same method with dropout in its slots, if it knows any."""
    return replace(method, dropout=0.2) if "dropout" in {item.name for item in fields(method)} else method  # type: ignore[call-arg]


class InOrder(train.ParingTrainer):
    """A Trainer that takes the rows in their order and the loss as the model gives it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data = train_dataset if train_dataset is not None else self.train_dataset
        assert isinstance(data, Sized)
        return SequentialSampler(data)


class Reseed(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Sets the generator at each step, as :func:`by_hand` does, so that both draw the same dropout."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called before the first forward of each step."""
        torch.manual_seed(state.global_step)


def arguments(folder: Path, steps: int, **settings: Any) -> TrainingArguments:
    """Quiet arguments for a short run on the CPU."""
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": ROWS,
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "lr_scheduler_type": "linear",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": 3,
        **settings,
    }
    return TrainingArguments(**given)


def trainer(
    case: Case, model: PeftModel, folder: Path, steps: int, *, kind: type[train.ParingTrainer] = InOrder, **settings: Any
) -> train.ParingTrainer:
    """A Trainer for a short run."""
    return kind(
        model=model,
        args=arguments(folder, steps, **settings),
        train_dataset=rows(case, steps * settings.get("gradient_accumulation_steps", 1)),
    )


def by_hand(
    case: Case, model: PeftModel, steps: int, *, accumulate: int = 1, scale: Callable[[Tensor], Tensor] = lambda loss: loss
) -> None:
    """What that Trainer does, written out."""
    # Trainer's default optimizer is the fused AdamW, but for older releases of torch.
    fused = arguments(Path(), steps).optim == "adamw_torch_fused"
    optimizer = train.create_optimizer(model, lr=RATE, weight_decay=DECAY, fused=fused)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=steps)
    data = rows(case, steps * accumulate)
    model.train()
    for step in range(steps):
        torch.manual_seed(step)
        for part in range(accumulate):
            start = (step * accumulate + part) * ROWS
            batch = {key: torch.stack([row[key] for row in data[start : start + ROWS]]) for key in data[0]}
            scale(model(**batch).loss / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        model.zero_grad()
    model.eval()
