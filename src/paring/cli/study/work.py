"""One run of a study, in a process of its own: trained and scored as ``paring train`` does it, with nothing left on disk."""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import paring
from paring.attach.find import adapters
from paring.cli.console import calm_libraries, sentence
from paring.cli.data.metrics import METRICS
from paring.cli.run.finish import final_metrics
from paring.cli.study import contestants, memory
from paring.cli.study.code import code_versions
from paring.cli.study.defaults import Defaults
from paring.cli.study.faults import fault_of
from paring.cli.study.made import Made, make
from paring.cli.study.planted import METRICS as PLANTED
from paring.core.errors import ExportError, ParingError, SettingError, StepError
from paring.study.plan import Estimate
from paring.study.records import Fault, Job, Metric, Outcome, Phase, State
from paring.study.search import EVALUATED, Asked, Cut, logged
from paring.train import Recorder, guards
from paring.train.recorder import machine, points

PROBED = 6
"""Steps that are timed; the first one is left out."""

SCORED = 64
"""Rows that scoring is timed on."""


class Looks(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Evaluates so many times in a training, the last time at its end, and ends it early where the others were better.

    Args:
        count: evaluations.
        cut: when to end it; ``None`` never does.
    """

    def __init__(self, count: int, cut: Cut | None) -> None:
        self.count, self.cut = count, cut
        self.seen: list[float] = []
        self.pruned = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Is an evaluation due?"""
        steps = {math.ceil(part * state.max_steps / self.count) for part in range(1, self.count + 1)}
        control.should_evaluate = state.global_step in steps

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Is it worth going on?"""
        if self.cut is None or metrics is None:
            return
        name = logged(self.cut.metric)
        if name in metrics:
            self.seen.append(float(metrics[name]))
            if self.cut.is_due(self.seen):
                self.pruned = control.should_training_stop = True


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Makes runs.

    Attributes:
        definitions: what stands for each ``$name`` that the study's file leaves open.
    """

    definitions: Mapping[str, str]

    def __call__(self, asked: Asked) -> Outcome | Fault:
        """Train and score; a fault of the machine is no outcome."""
        calm_libraries()
        begun = datetime.now(UTC).isoformat(timespec="seconds")
        about: dict[str, Any] = {"started": begun, "versions": code_versions(), "machine": machine()}
        recorder = Recorder()
        try:
            about["defaults"] = Defaults(definitions=self.definitions)(asked.job)
            with _quiet(), tempfile.TemporaryDirectory(prefix="paring-study-") as folder:
                outcome = _run(asked, self.definitions, recorder, Path(folder))
        except (ParingError, MemoryError, torch.OutOfMemoryError, OSError, RuntimeError, ValueError) as error:
            fault = fault_of(error)
            if fault is not None:
                return Fault(error=fault)
            return Outcome(state=State.FAILED, error=sentence(error), history=recorder.history, **about)
        return replace(outcome, **about)


@dataclass(frozen=True, kw_only=True)
class Prober:
    """Times runs.

    Attributes:
        definitions: as for :class:`Worker`.
        metrics: of each task, which the few rows are to be scored in.
    """

    definitions: Mapping[str, str]
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    def __call__(self, job: Job) -> Estimate:
        """Time a few steps, and the scoring of a few rows.

        Raises:
            SettingError: the task's metric is not measured of it.
        """
        calm_libraries()
        begun = time.perf_counter()
        with _quiet(), tempfile.TemporaryDirectory(prefix="paring-study-") as folder:
            made = make(job, self.definitions, Recorder(), Path(folder), steps=PROBED)
            held = made.prepared.rows.held_out
            clock = _Clock()
            made.trainer.add_callback(clock)
            setup = time.perf_counter() - begun
            made.trainer.train()
            scored = time.perf_counter()
            rows = 0 if held is None else len(held)
            if held is not None and isinstance(made.trainer.eval_dataset, type(held)):
                made.trainer.eval_dataset = made.trainer.eval_dataset.select(range(min(SCORED, rows)))
                found = made.trainer.evaluate()
                if job.task in self.metrics:
                    _check_metric(self.metrics[job.task], made, found)
            scored = time.perf_counter() - scored
            return Estimate(
                setup=setup,
                step=clock.mean,
                steps=made.steps,
                score=scored * rows / max(1, min(SCORED, rows)),
                details={"steps": PROBED, "rows": min(SCORED, rows)},
            )


def _check_metric(metric: Metric, made: Made, found: Mapping[str, float]) -> None:
    names = {name.removeprefix(EVALUATED) for name in found}
    if made.prepared.task.kind == "causal-lm":
        names.add("perplexity")
    if metric.name not in names:
        known = sorted(
            name for name in names if name in {*PLANTED, *(one for measured in METRICS.values() for one in measured), "perplexity"}
        )
        raise SettingError(f"There is no {metric.name!r} of this; its metric may be {', '.join(known)}.")


class _Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """The mean time of a step, the first one left out."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    @property
    def mean(self) -> float:
        """In seconds."""
        return (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is said of a single run; several at a time would talk across each other."""
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        yield


def _run(asked: Asked, definitions: Mapping[str, str], recorder: Recorder, folder: Path) -> Outcome:
    job = asked.job
    measured = memory.forget()
    made = make(job, definitions, recorder, folder)
    trainer, model = made.trainer, made.prepared.model
    looks = Looks(job.settings["search"]["evaluations"], asked.cut) if job.phase is Phase.SEARCH else None
    if looks is not None:
        trainer.add_callback(looks)
    start = _parameters(made, start=True)
    used = time.process_time()
    trainer.train()
    used = time.process_time() - used
    most = memory.most() if measured else None
    _check_finite(made)
    history = points(trainer.state.log_history)
    spent = sum(point.values.get("eval_runtime", 0.0) for point in history)
    done: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "seconds": recorder.seconds - spent,
        "setup_seconds": made.seconds,
        "cpu_seconds": used,
        "memory": most,
        "start_parameters": start,
    }
    if looks is not None and looks.pruned:
        return Outcome(state=State.PRUNED, history=history, **done)
    metrics = final_metrics(trainer, made.prepared.task)
    if made.prepared.task.kind == "causal-lm":
        metrics.setdefault("perplexity", math.inf)  # which is left out where it cannot be computed
    _check_finite(made)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return Outcome(
        state=State.FINISHED,
        metrics=metrics,
        history=history,
        parameters=_parameters(made),
        file_bytes=_written(made, folder / "written"),
        **done,
    )


def _check_finite(made: Made) -> None:
    """Refuse a run that has diverged, whoever's adapter it is: paring's own trainers stop there, and others would score by chance.

    Raises:
        StepError: a loss that was logged, or a parameter that was trained, is not finite.
    """
    state = made.trainer.state
    for entry in state.log_history:
        for name in ("loss", f"{EVALUATED}loss"):
            if not math.isfinite(entry.get(name, 0.0)):
                raise StepError(guards.diverged(f"the loss is {entry[name]}", int(entry["step"])))
    trained = {
        name: parameter.detach()
        for name, parameter in made.prepared.model.named_parameters()
        if parameter.is_floating_point() and (parameter.requires_grad or made.whole is not None)
    }
    # Trainer leaves a loss that is not finite out of what it logs, so the weights are what tells.
    broken = [name for name, values in trained.items() if not bool(torch.isfinite(values).all())]
    if broken:
        said = f"{len(broken)} of {len(trained)} trained parameters hold NaN or infinity (first: {broken[0]!r})"
        raise StepError(guards.diverged(said, state.global_step))


def _parameters(made: Made, *, start: bool = False) -> int:
    model = made.prepared.model
    if made.whole is not None:
        return made.whole.trained(model, max(1, made.trainer.state.global_step)).parameters
    if adapters(model):
        return paring.snapshot(model).parameters
    return contestants.parameters(made.prepared.adapted, start=start)


def _written(made: Made, place: Path) -> int | None:
    """Bytes of the weights as they are saved; ``None`` if no rank is left to be saved."""
    model = made.prepared.model
    try:
        if made.whole is None and adapters(model):
            paring.export(made.prepared.adapted, place)
        else:
            model.save_pretrained(str(place))
    except ExportError as error:
        if fault_of(error) is not None:
            raise
        return None
    return sum(file.stat().st_size for file in place.rglob("*.safetensors"))
