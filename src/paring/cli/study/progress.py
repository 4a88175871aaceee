"""One line on how a study goes: runs made, runs that failed, time left, what is under way."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from paring.core.errors import SettingError
from paring.report.words import duration
from paring.study.plan import Estimate, Study
from paring.study.records import Job, Outcome, Phase, State
from paring.study.search import Asked


def workers_for(asked: int | None, threads: int) -> int:
    """How many runs are made at a time; by default one on an accelerator, and else as many as fit the cores.

    Raises:
        SettingError: none.
    """
    if asked is not None and asked < 1:
        raise SettingError(f"--workers {asked}: give at least 1.")
    if asked is None and torch.accelerator.is_available():
        return 1
    return asked or max(1, (os.cpu_count() or 1) // threads)


class Line:
    """A live line on a terminal; elsewhere a line for each run that ends.

    Args:
        study: what is conducted.
        estimates: how long a final run takes, by cell.
        workers: runs at a time.
    """

    def __init__(self, study: Study, estimates: Mapping[str, Estimate], workers: int) -> None:
        self.study, self.estimates, self.workers = study, estimates, workers
        self.seen: dict[str, list[float]] = {}
        self.left = {cell.name: study.runs_of(cell) for cell in study.cells}
        self.cells = {(cell.contestant, cell.task, cell.budget): cell.name for cell in study.cells}
        self.done, self.failed = 0, 0
        self.begun_at: dict[str, float] = {}
        self._live = sys.stderr.isatty()
        self._console = Console(stderr=True, highlight=False, soft_wrap=not self._live)
        self._progress: Progress | None = None

    def __enter__(self) -> Line:
        if self._live:
            columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=self._console)
            self._task = self._progress.add_task("", total=self.study.runs)
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def begun(self, asked: Asked) -> None:
        """A run has begun."""
        self.begun_at[asked.job.label] = time.perf_counter()
        self._show()

    def ended(self, asked: Asked, outcome: Outcome, *, found: bool) -> None:
        """A run has ended, or was found among those that had."""
        job = asked.job
        name = self.cells[job.contestant, job.task, job.budget]
        begun = self.begun_at.pop(job.label, None)
        self.done, self.failed = self.done + 1, self.failed + (outcome.state is State.FAILED)
        # With the first final run it is known how many trials there were.
        self.left[name] = min(self.left[name], len(self.study.seeds)) - 1 if job.phase is Phase.FINAL else self.left[name] - 1
        if not found and begun is not None:
            self.seen.setdefault(name, []).append(time.perf_counter() - begun)
        if not found:
            self._say(f"{self._count()}  {self._told(job, outcome)}")
        self._show()

    def outdated(self, asked: Asked, changed: Mapping[str, tuple[Any, Any]]) -> None:
        """A run that was found had other defaults."""
        said = ", ".join(f"{name} {then} (today {now})" for name, (then, now) in changed.items())
        self._say(f"{asked.job.label} was made with the defaults of another release, {said}; it is made again")

    def _told(self, job: Job, outcome: Outcome) -> str:
        values = ", ".join(f"{name} {value:g}" for name, value in job.settings.get("values", {}).items())
        if outcome.state is State.FAILED:
            said = f"failed: {outcome.error}"
        elif outcome.state is State.PRUNED:
            said = f"cut short at step {outcome.steps}"
        else:
            metric = self.study.metrics[job.task].name
            said = f"{metric} {outcome.metrics.get(metric, float('nan')):.4f}"
        kind = "search" if job.phase is Phase.SEARCH else "final"
        return f"{job.label} ({kind}{f', {values}' if values else ''}): {said}, {outcome.seconds:.0f} s"

    def seconds_left(self) -> float | None:
        """Until the end, by the runs so far or by the estimates; ``None`` where neither says anything."""
        total = 0.0
        for name, count in self.left.items():
            if not count:
                continue
            if name in self.seen:
                each = fmean(self.seen[name])
            elif name in self.estimates:
                each = self.estimates[name].seconds
            else:
                known = [fmean(times) for times in self.seen.values()]
                if not known:
                    return None
                each = fmean(known)
            total += count * each
        return total / self.workers

    def _count(self) -> str:
        left = self.seconds_left()
        more = [f"{self.failed} failed"] if self.failed else []
        if left:
            more.append(f"about {duration(left)} left")
        return f"{self.done} of at most {self.study.runs} runs{', ' if more else ''}{', '.join(more)}"

    def _say(self, text: str) -> None:
        (self._console if self._progress is None else self._progress.console).print(text, markup=False)

    def _show(self) -> None:
        if self._progress is not None:
            under_way = "; ".join(self.begun_at)
            left = self.seconds_left()
            shown = f"about {duration(left)} left  " if left else ""
            self._progress.update(self._task, completed=self.done, description=f"{shown}{under_way}")
