"""The options of a run as transformers' TrainingArguments or TRL's SFTConfig."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from transformers import PretrainedConfig, TrainingArguments

from paring.cli.data.metrics import FIRST, METRICS, SMALLER_IS_BETTER
from paring.cli.data.task import Kind, Task
from paring.cli.flags import listed
from paring.cli.run.options import TrainingOptions, TrainOptions
from paring.core.errors import SettingError, near

HEAD_LENGTH = 256
LANGUAGE_LENGTH = 1024


def arguments(
    options: TrainOptions, task: Task, kind: type[TrainingArguments], *, rows: int, evaluates: bool, max_length: int
) -> TrainingArguments:
    """The arguments of the trainer.

    Args:
        options: all options of the run.
        task: what is learnt.
        kind: TrainingArguments or TRL's SFTConfig.
        rows: rows to train on.
        evaluates: whether there are rows to evaluate on.
        max_length: tokens that a row is cut at.

    Raises:
        SettingError: options that contradict each other, or an unknown key in ``training_arguments``.
    """
    training, watch = options.training, options.watch
    evaluation = watch.eval_strategy if evaluates else "no"
    saving = watch.save_strategy or (evaluation if evaluation != "no" else "epoch")
    best = watch.load_best_model_at_end or watch.early_stopping_patience is not None
    if best and evaluation == "no":
        raise SettingError(
            "The best model can only be told by evaluating: --load_best_model_at_end and --early_stopping_patience need rows to "
            "evaluate on (--eval_dataset_name or --eval_share) and an --eval_strategy other than no."
        )
    if best and saving != evaluation:
        raise SettingError(f"--save_strategy {saving} must equal --eval_strategy {evaluation} for the best model to be there at the end.")
    if evaluation == "steps" and watch.eval_steps is None:
        raise SettingError("--eval_strategy steps needs --eval_steps.")
    metric = watch.metric_for_best_model or FIRST[task.kind]
    known_metrics = METRICS[task.kind]
    if best and metric.removeprefix("eval_") not in known_metrics:
        raise SettingError(
            f"--metric_for_best_model {metric}: this task has no such metric.{near(metric, known_metrics)} "
            f"It has {', '.join(known_metrics)}."
        )
    given: dict[str, Any] = {
        "output_dir": options.output.output_dir,
        "learning_rate": training.learning_rate,
        "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": training.per_device_eval_batch_size or 2 * training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "bf16": training.bf16,
        "fp16": training.fp16,
        "seed": training.seed,
        # Said outright, since transformers takes bf16 without an accelerator for a mistake.
        "use_cpu": training.use_cpu or not torch.accelerator.is_available(),
        "dataloader_num_workers": training.dataloader_num_workers,
        "eval_strategy": evaluation,
        "eval_steps": watch.eval_steps,
        "save_strategy": saving,
        "save_steps": watch.save_steps or watch.eval_steps or 500,
        "save_total_limit": watch.save_total_limit,
        "logging_steps": watch.logging_steps or logged_every(training, rows),
        "load_best_model_at_end": best,
        "metric_for_best_model": metric if best else None,
        "greater_is_better": metric.removeprefix("eval_") not in SMALLER_IS_BETTER if best else None,
        "report_to": listed(watch.report_to),
        "run_name": watch.run_name,
        # A NaN must be seen, not averaged away; the bar is ours; PEFT's wrapper hides the name of the labels.
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": torch.accelerator.is_available() and not training.use_cpu,
        "disable_tqdm": True,
        "label_names": ["labels"],
    }
    if training.gradient_checkpointing:
        given["gradient_checkpointing"] = True
    elif task.kind == "causal-lm":
        given["gradient_checkpointing"] = False  # TRL's default is on
    if training.optim is not None:
        given["optim"] = training.optim
    if task.kind == "causal-lm":
        given |= {"max_length": max_length, "packing": options.data.packing, "bf16": training.bf16}
    known = {item.name for item in dataclasses.fields(kind)}
    for key, value in training.training_arguments.items():
        if key not in known:
            raise SettingError(f"training_arguments has an unknown key {key!r}.{near(key, known)}")
        if key in given and value != given[key]:
            raise SettingError(
                f"training_arguments sets {key!r}, which is a flag of its own or set by paring; use --{key} if there is one."
            )
        given[key] = value
    try:
        return kind(**given)
    except (ValueError, TypeError, ImportError) as error:
        first = str(error).strip().splitlines()
        raise SettingError(f"These training options do not go together: {first[0] if first else error}") from error


def logged_every(training: TrainingOptions, rows: int) -> int:
    """Steps between log lines: 10, or fewer in a training so short that there would be less than 20 lines."""
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    steps = training.max_steps if training.max_steps > 0 else math.ceil(rows / per_step * training.num_train_epochs)
    return min(10, max(1, steps // 20))


def length_limit(asked: int | None, kind: Kind, tokenizer_limit: int, config: PretrainedConfig) -> int:
    """Tokens that a row is cut at: what was asked for or the default, within what the model can read.

    Raises:
        SettingError: no tokens at all.
    """
    if asked is not None and asked < 1:
        raise SettingError(f"--max_length {asked}: give at least 1 token, or leave it out for the default.")
    wanted = asked or (LANGUAGE_LENGTH if kind == "causal-lm" else HEAD_LENGTH)
    positions = vars(config).get("max_position_embeddings")
    return min(wanted, tokenizer_limit, positions if isinstance(positions, int) else wanted)
