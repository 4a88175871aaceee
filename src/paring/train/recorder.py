"""Writing down a run: what was logged, where it ran, and what is left of each module."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paring.attach.find import config_of, method_of, slots
from paring.core.entries import Entries
from paring.core.records import ModuleRecord, Point, RunRecord
from paring.train.look import outside
from paring.train.whole import Whole

PACKAGES = ("paring", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "datasets", "trl", "bitsandbytes")


def points(log_history: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    """A trainer's log history as points: numbers only, what was logged at one step in one point, steps ascending."""
    merged: dict[int, dict[str, float]] = {}
    for entry in log_history:
        if "step" not in entry:
            continue
        numbers = {key: float(value) for key, value in entry.items() if key != "step" and isinstance(value, int | float)}
        merged.setdefault(int(entry["step"]), {}).update(numbers)
    return tuple(Point(step=step, values=merged[step]) for step in sorted(merged))


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The versions of those packages that are installed, and Python's."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, threads and accelerator, without a name that tells which machine it was."""
    accelerator = None
    if torch.cuda.is_available():
        accelerator = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    elif torch.backends.mps.is_available():
        accelerator = "Apple MPS"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def modules(model: nn.Module, adapter: str = "default") -> tuple[ModuleRecord, ...]:
    """The adapted modules with the ranks they were given and those that are left.

    Raises:
        TargetError: no such adapter.
    """
    found = []
    for path, slot in slots(model, adapter).items():
        update = slot.delta()
        found.append(
            ModuleRecord(
                path=path,
                in_features=update.in_features,
                out_features=update.out_features,
                start_rank=update.rank,
                live_rank=update.live_rank,
                entries=update.parameters if isinstance(update, Entries) else 0,
                magnitudes=0 if slot.magnitude is None else slot.magnitude.numel(),
            )
        )
    return tuple(found)


def head_parameters(model: nn.Module) -> int:
    """Entries of what is trained beside the adapters."""
    return sum(parameter.numel() for _, parameter in outside(model) if parameter.requires_grad)


def base_parameters(model: nn.Module) -> int | None:
    """Entries of the frozen model; ``None`` if some are packed, as quantised weights are."""
    frozen = [parameter for _, parameter in outside(model) if not parameter.requires_grad]
    return sum(parameter.numel() for parameter in frozen) if all(parameter.is_floating_point() for parameter in frozen) else None


class Recorder(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Keeps the clock and the log of one training run, and makes a :class:`~paring.core.records.RunRecord` of it.

    >>> recorder = Recorder()                                                        # doctest: +SKIP
    >>> ParingTrainer(model=model, args=args, callbacks=[recorder], ...).train()     # doctest: +SKIP
    >>> run = recorder.record(model, title="tweets", command="...", seed=0)          # doctest: +SKIP

    The history is the trainer's own, so a resumed run has all of it; the seconds are those of this process.
    """

    def __init__(self) -> None:
        self._state: TrainerState | None = None
        self._started = datetime.now(UTC)
        self._begin = time.perf_counter()
        self._seconds = math.nan
        self._running = False

    @property
    def history(self) -> tuple[Point, ...]:
        """What has been logged so far."""
        return () if self._state is None else points(self._state.log_history)

    @property
    def seconds(self) -> float:
        """Wall time of training: up to now while it runs, NaN before."""
        return time.perf_counter() - self._begin if self._running else self._seconds

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock."""
        self._state, self._started, self._begin, self._running = state, datetime.now(UTC), time.perf_counter(), True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock."""
        self._seconds, self._running = time.perf_counter() - self._begin, False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Hold on to the state, also where only an evaluation was run."""
        self._state = state

    def record(
        self,
        model: nn.Module,
        *,
        title: str,
        command: str = "",
        seed: int,
        settings: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        files: Mapping[str, int] | None = None,
        base_model: str | None = None,
        main_metric: str | None = None,
        start_bytes: int | None = None,
        adapter: str = "default",
        whole: Whole | None = None,
    ) -> RunRecord:
        """The run as a frozen value.

        Args:
            model: the trained model.
            title: a short name.
            command: the command line that repeats the run.
            seed: the run's seed.
            settings: all settings, as plain data.
            metrics: final metrics.
            files: files of the export by name, in bytes.
            base_model: folder or hub id; ``None`` takes what the adapter's configuration says.
            main_metric: the key of ``metrics`` to look at first.
            start_bytes: size that the adapter file would have with every rank of the start.
            adapter: which adapter.
            whole: how the model's own weights were trained, where there is no adapter.

        Raises:
            TargetError: no such adapter.
        """
        if base_model is None and whole is None:
            base_model = config_of(model, adapter).base_model_name_or_path
        return RunRecord(
            title=title,
            method=(method_of(model, adapter) if whole is None else whole).encode(),
            base_model=base_model,
            command=command,
            started=self._started.isoformat(timespec="seconds"),
            seconds=self.seconds,
            seed=seed,
            settings=dict(settings or {}),
            versions=versions(),
            machine=machine(),
            history=self.history,
            modules=modules(model, adapter) if whole is None else (),
            metrics=dict(metrics or {}),
            head_parameters=head_parameters(model) if whole is None else 0,
            files=dict(files or {}),
            main_metric=main_metric,
            base_parameters=base_parameters(model) if whole is None else sum(parameter.numel() for parameter in model.parameters()),
            start_bytes=start_bytes,
            whole=None if whole is None else whole.trained(model, 0 if self._state is None else self._state.global_step),
        )
