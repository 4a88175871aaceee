"""The progress bar of a run: step, time left, loss, and what SoRA is doing to the ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SHOWN = ("loss", "learning_rate", "lambda", "live_ranks")


class Bar(TrainerCallback):
    """A live bar on a terminal; elsewhere one line for each of the trainer's logs, so that a log file stays readable.

    Args:
        total_ranks: the ranks that the run starts with, to show the live ones as a share.
    """

    def __init__(self, total_ranks: int) -> None:
        self.total_ranks = total_ranks
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._live = sys.stderr.isatty()
        self._console = Console(stderr=True, highlight=False, soft_wrap=not self._live)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the bar."""
        if self._live and state.is_world_process_zero:
            columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=self._console)
            self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step)
            self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show what the trainer logged."""
        if not logs or not state.is_world_process_zero or "train_runtime" in logs:
            return
        text = described(logs, self.total_ranks)
        if not text:
            return
        evaluated = any(key.startswith("eval_") for key in logs)
        if self._progress is not None and self._task is not None:
            if evaluated:
                self._progress.console.print(f"step {state.global_step}  {text}")
            else:
                self._progress.update(self._task, description=text)
        else:
            self._console.print(f"step {state.global_step}/{state.max_steps}  {text}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the bar."""
        self.stop()

    def stop(self) -> None:
        """Give the terminal back; safe to call twice, and needed when training raises."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def described(logs: Mapping[str, Any], total_ranks: int) -> str:
    """The trainer's log as a few words: ``loss 0.412  rate 4.1e-04  lambda 0.1  ranks 212/288 (74%)``."""
    parts: list[str] = []
    for key in SHOWN:
        value = logs.get(key)
        if not isinstance(value, int | float):
            continue
        if key == "live_ranks":
            if total_ranks:
                parts.append(f"ranks {value:.0f}/{total_ranks} ({100.0 * value / total_ranks:.0f}%)")
        elif key == "learning_rate":
            parts.append(f"rate {value:.1e}")
        else:
            parts.append(f"{key} {value:.4g}")
    skipped = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "num_tokens")
    for key, value in logs.items():
        if key.startswith("eval_") and not key.endswith(skipped) and isinstance(value, int | float) and not math.isnan(value):
            parts.append(f"{key} {value:.4g}")
    return "  ".join(parts)
