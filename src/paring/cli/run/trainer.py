"""The trainer of a task: transformers' with a head, TRL's for language models, each with paring's mixin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from paring.attach.find import adapters, head_parameters
from paring.cli.data.encode import for_head, for_language
from paring.cli.data.metrics import score
from paring.cli.data.task import Task
from paring.cli.run.arguments import arguments, length_limit
from paring.cli.run.base import Base
from paring.cli.run.options import TrainOptions
from paring.core.errors import DataError, SettingError
from paring.train import ParingTrainer, ParingTrainerMixin
from paring.train.trainer import HeadTrainer


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The data of a run.

    Attributes:
        train: rows to train on.
        held_out: rows to evaluate on.
        origin: which data ``held_out`` was taken from, for errors.
    """

    train: Dataset
    held_out: Dataset | None
    origin: str


def make_trainer(
    options: TrainOptions,
    task: Task,
    base: Base,
    model: PeftModel | PreTrainedModel,
    rows: Rows,
    callbacks: Sequence[TrainerCallback],
    beside: Mapping[str, bytes] | None = None,
) -> Trainer:
    """A trainer that is ready to run, with paring's own parameter groups where there is an adapter.

    Args:
        options: all options of the run.
        task: what is learnt.
        base: the model's tokenizer and how it was loaded.
        model: what is trained.
        rows: the data.
        callbacks: what follows the training.
        beside: further files of every checkpoint, by name.

    Raises:
        DataError: rows that the task cannot use.
        SettingError: options that do not go together.
    """
    limit = length_limit(options.data.max_length, task.kind, base.tokenizer.model_max_length, base.model.config)
    if options.training.head_learning_rate is not None and not any(head_parameters(model)):
        raise SettingError(
            f"--head_learning_rate {options.training.head_learning_rate:g}: nothing is trained fully beside an adapter here, as the head "
            "of a classifier is; leave it out, or name modules with --modules_to_save."
        )
    patience = options.watch.early_stopping_patience
    if patience is not None:
        callbacks = [*callbacks, EarlyStoppingCallback(early_stopping_patience=patience)]
    make = _language if task.kind == "causal-lm" else _head
    trainer = make(options, task, base, model, rows, limit, list(callbacks))
    trainer.beside = dict(beside or {})
    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)
    return trainer


def _head(
    options: TrainOptions,
    task: Task,
    base: Base,
    model: PeftModel | PreTrainedModel,
    rows: Rows,
    limit: int,
    callbacks: list[TrainerCallback],
) -> HeadTrainer:
    def scored(outputs: EvalPrediction) -> dict[str, float]:
        predictions = outputs.predictions[0] if isinstance(outputs.predictions, tuple) else outputs.predictions
        assert not isinstance(outputs.label_ids, tuple)
        return score(task.kind, predictions, outputs.label_ids)

    kind = ParingTrainer if adapters(model) else HeadTrainer
    trainer = kind(
        model=model,
        args=arguments(options, task, TrainingArguments, rows=len(rows.train), evaluates=rows.held_out is not None, max_length=limit),
        train_dataset=for_head(rows.train, task, base.tokenizer, limit, "training"),
        eval_dataset=for_head(rows.held_out, task, base.tokenizer, limit, rows.origin) if rows.held_out is not None else None,
        processing_class=base.tokenizer,
        data_collator=DataCollatorWithPadding(base.tokenizer),
        compute_metrics=scored,
        callbacks=callbacks,
        head_learning_rate=options.training.head_learning_rate,
    )
    # The loss of a head is the mean over the rows of its batch, whatever it is told of their number; taken for the sum over all rows of a
    # step, divided by that number, it would be multiplied by the number of processes and of accumulated batches.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def _language(
    options: TrainOptions,
    task: Task,
    base: Base,
    model: PeftModel | PreTrainedModel,
    rows: Rows,
    limit: int,
    callbacks: list[TrainerCallback],
) -> HeadTrainer:
    # Only here: TRL is an extra, and slow to import.
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class ParingSFTTrainer(ParingTrainerMixin, SFTTrainer):  # type: ignore[misc, unused-ignore]
        """SFTTrainer with the gates in a parameter group of their own."""

    class PlainSFTTrainer(HeadTrainer, SFTTrainer):  # type: ignore[misc, unused-ignore]
        """SFTTrainer for a model's own weights."""

    settings = arguments(options, task, SFTConfig, rows=len(rows.train), evaluates=rows.held_out is not None, max_length=limit)
    prepared: dict[str, Any] = {
        "train_dataset": for_language(rows.train, task, base.tokenizer, "training"),
        "eval_dataset": for_language(rows.held_out, task, base.tokenizer, rows.origin) if rows.held_out is not None else None,
    }
    kind = ParingSFTTrainer if adapters(model) else PlainSFTTrainer
    rate = options.training.head_learning_rate
    trainer = kind(model=model, args=settings, processing_class=base.tokenizer, callbacks=callbacks, head_learning_rate=rate, **prepared)
    if isinstance(trainer.train_dataset, Dataset) and len(trainer.train_dataset) == 0:
        raise DataError(f"Every row is longer than max_length={limit} tokens before its answer begins; raise --max_length.")
    return trainer
