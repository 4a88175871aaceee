"""What can be told of a run's options by themselves, before data or weights are read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import SchedulerType
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.training_args import OptimizerNames

from paring.cli.flags import listed
from paring.cli.run.options import TrainingOptions, TrainOptions
from paring.core.errors import SettingError, near

COUNTS = (
    "calibration_batches",
    *("max_train_samples", "max_eval_samples", "max_length", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "eval_steps", "save_steps", "save_total_limit", "logging_steps", "early_stopping_patience"),
)
"""Flags that count something of which there must be one."""

AMOUNTS = ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "dataloader_num_workers")
"""Flags that may be zero, and not less."""

PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""Trackers whose package has another name."""


def check_options(options: TrainOptions) -> None:
    """Refuse values that transformers would take for others, or meet with an error of its own once there is an output folder.

    Raises:
        SettingError: names the flag.
    """
    training = options.training
    given: dict[str, Any] = {**vars(options.data), **vars(options.adapter), **vars(training), **vars(options.watch)}
    for name in COUNTS:
        if given[name] is not None and given[name] < 1:
            raise SettingError(f"--{name} {given[name]}: give at least 1.")
    for name in AMOUNTS:
        if not (given[name] >= 0 and math.isfinite(given[name])):
            raise SettingError(f"--{name} {given[name]}: give a finite number of at least 0.")
    head = training.head_learning_rate
    if head is not None and not (head > 0 and math.isfinite(head)):
        raise SettingError(f"--head_learning_rate {head}: give a finite number above 0, or leave it out for the main rate.")
    if not 0 <= training.seed < 2**32:
        raise SettingError(f"--seed {training.seed}: give a whole number from 0 to {2**32 - 1}.")
    _check_length(training)
    if training.fp16 and (training.use_cpu or not torch.accelerator.is_available()):
        raise SettingError("--fp16 scales its loss for an accelerator, and this run is on the CPU; leave it out, or use --bf16.")
    _check_name("lr_scheduler_type", training.lr_scheduler_type, [item.value for item in SchedulerType])
    if training.optim is not None:
        _check_name("optim", training.optim, [item.value for item in OptimizerNames])
    _check_trackers(listed(options.watch.report_to) or [])
    for name in ("target_modules", "exclude_modules"):
        value = vars(options.adapter)[name]
        if value is not None:
            targets(value, name)


def _check_length(training: TrainingOptions) -> None:
    if training.max_steps == 0 or training.max_steps < -1:
        raise SettingError(f"--max_steps {training.max_steps}: give at least 1, or -1 to train by --num_train_epochs.")
    if training.max_steps < 0 and not (training.num_train_epochs > 0 and math.isfinite(training.num_train_epochs)):
        raise SettingError(f"--num_train_epochs {training.num_train_epochs}: give more than 0.")


def _check_name(flag: str, value: str, names: Sequence[str]) -> None:
    if value not in names:
        cure = near(value, names) or f" Give one of {', '.join(names)}."
        raise SettingError(f"--{flag} {value}: there is no such one.{cure}")


def _check_trackers(names: Sequence[str]) -> None:
    known = list(INTEGRATION_TO_CALLBACK)
    there = get_available_reporting_integrations()  # type: ignore[no-untyped-call, unused-ignore]
    for name in names:
        _check_name("report_to", name, ["none", "all", *known])
        # transformers does not look for flyte before it is used.
        if name in known and name not in there and name != "flyte":
            raise SettingError(
                f"--report_to {name}: the tracker is not installed; pip install {PACKAGES.get(name, name)}, or leave the flag out."
            )


def targets(value: str | list[str], flag: str = "target_modules") -> str | list[str]:
    """``--target_modules``: a list of names where commas or nothing special stand, a regular expression where its signs do.

    Raises:
        SettingError: no valid regular expression.
    """
    if not isinstance(value, str) or value == "all-linear":
        return value
    if not any(sign in value for sign in r"\*+?|()[]^$"):
        return listed(value) or value
    try:
        re.compile(value)
    except re.error as error:
        raise SettingError(
            f"--{flag} {value!r} is no valid regular expression ({error}); mend it, or give names of modules separated by commas."
        ) from error
    return value
