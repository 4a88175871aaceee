"""One run of a study, in a process of its own: trained and scored as ``paring train`` does it, with nothing left on disk."""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

import paring
from paring.attach.find import adapters
from paring.cli.console import calm_libraries, sentence
from paring.cli.flags import listed
from paring.cli.run.checks import targets
from paring.cli.run.finish import final_metrics
from paring.cli.run.options import TrainOptions, WatchOptions
from paring.cli.run.prepare import Prepared, attach, load
from paring.cli.run.start import calibrate_for, first_batches
from paring.cli.run.trainer import Rows, make_trainer
from paring.cli.run.whole import precise
from paring.cli.study import contestants, memory
from paring.cli.study.flags import Run, filled, parsed
from paring.cli.study.planted import load_planted, planted_options, planted_trainer, planting
from paring.core.errors import DataError, ExportError, ParingError, SettingError
from paring.method import Method
from paring.study.plan import Estimate
from paring.study.records import Job, Outcome, Phase, State
from paring.study.search import Asked, Cut, logged
from paring.train import Recorder
from paring.train.recorder import machine, points, versions
from paring.train.whole import Whole

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
class Made:
    """A run that is ready for its first step; ``steps`` are those of a whole one."""

    run: Run
    steps: int
    prepared: Prepared
    trainer: Trainer
    whole: Whole | None


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Makes runs.

    Attributes:
        definitions: what stands for each ``$name`` that the study's file leaves open.
    """

    definitions: Mapping[str, str]

    def __call__(self, asked: Asked) -> Outcome:
        """Train and score."""
        calm_libraries()
        begun = datetime.now(UTC).isoformat(timespec="seconds")
        about: dict[str, Any] = {"started": begun, "versions": versions(), "machine": machine()}
        recorder = Recorder()
        try:
            with _quiet(), tempfile.TemporaryDirectory(prefix="paring-study-") as folder:
                outcome = _run(asked, self.definitions, recorder, Path(folder))
        except (ParingError, MemoryError, torch.OutOfMemoryError, OSError, RuntimeError, ValueError) as error:
            return Outcome(state=State.FAILED, error=sentence(error), history=recorder.history, **about)
        return replace(outcome, **about)


@dataclass(frozen=True, kw_only=True)
class Prober:
    """Times runs.

    Attributes:
        definitions: as for :class:`Worker`.
    """

    definitions: Mapping[str, str]

    def __call__(self, job: Job) -> Estimate:
        """Time a few steps, and the scoring of a few rows."""
        calm_libraries()
        begun = time.perf_counter()
        with _quiet(), tempfile.TemporaryDirectory(prefix="paring-study-") as folder:
            made = _made(job, self.definitions, Recorder(), Path(folder), steps=PROBED)
            held = made.prepared.rows.held_out
            clock = _Clock()
            made.trainer.add_callback(clock)
            setup = time.perf_counter() - begun
            made.trainer.train()
            scored = time.perf_counter()
            rows = 0 if held is None else len(held)
            if held is not None and isinstance(made.trainer.eval_dataset, type(held)):
                made.trainer.eval_dataset = made.trainer.eval_dataset.select(range(min(SCORED, rows)))
                made.trainer.evaluate()
            scored = time.perf_counter() - scored
            return Estimate(
                setup=setup,
                step=clock.mean,
                steps=made.steps,
                score=scored * rows / max(1, min(SCORED, rows)),
                details={"steps": PROBED, "rows": min(SCORED, rows)},
            )


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


def steps_of(options: TrainOptions, rows: int) -> int:
    """Optimizer steps of a training on one device, as transformers counts them."""
    training = options.training
    if training.max_steps > 0:
        return training.max_steps
    batches = math.ceil(rows / training.per_device_train_batch_size)
    return math.ceil(training.num_train_epochs * max(1, math.ceil(batches / training.gradient_accumulation_steps)))


def _made(job: Job, definitions: Mapping[str, str], recorder: Recorder, folder: Path, *, steps: int | None = None) -> Made:
    """Everything up to the first step, of the first few steps alone if so asked."""
    given = filled({**job.settings["flags"], **job.settings["values"], "seed": job.seed}, definitions)
    run = parsed(given, str(folder))
    # Nothing is saved, and what is evaluated when is the study's to say.
    quiet = WatchOptions(eval_strategy="no", save_strategy="no")
    options = replace(run.options, watch=quiet)
    whole = run.method if isinstance(run.method, Whole) else None
    if whole is not None:
        options = precise(options)
    what = None if "planted" not in job.settings else planting(job.settings["planted"])
    prepared = load(options, None) if what is None else load_planted(options)
    if what is not None:
        options = planted_options(options, prepared.model)
    rows = _rows(job, prepared.rows)
    total = steps_of(options, len(rows.train))
    if steps is not None:
        options = replace(options, training=replace(options.training, max_steps=min(steps, total)))
    prepared = replace(prepared, rows=rows)
    extra: list[TrainerCallback] = [recorder]
    if isinstance(run.method, Method):
        prepared = attach(options, run.method, prepared, headed=what is None)
    elif whole is not None:
        extra.append(whole.callback())
    else:
        assert run.peft is not None
        model = _with_peft(options, run.peft, prepared, steps=total, seed=job.seed, planted=what is not None)
        extra += contestants.callbacks(model)
        prepared = replace(prepared, model=model)
    # The order of rows and dropout are the same for all contestants, whatever each has drawn for its start.
    set_seed(job.seed)
    if what is None:
        trainer = make_trainer(options, prepared.task, prepared.base, prepared.model, rows, extra)
    else:
        trainer = planted_trainer(options, what, prepared, prepared.model, extra)
    if isinstance(run.method, Method):
        calibrate_for(trainer, prepared.adapted, options.adapter.calibration_batches)
    return Made(run=replace(run, options=options), steps=total, prepared=prepared, trainer=trainer, whole=whole)


def _with_peft(options: TrainOptions, given: Mapping[str, Any], prepared: Prepared, *, steps: int, seed: int, planted: bool) -> PeftModel:
    """The model with an adapter of PEFT's own, and the batches that its start may be read off."""
    assert isinstance(prepared.model, PreTrainedModel)
    batches = []
    if contestants.needs_batches(given):
        if planted:
            raise SettingError("peft: starts that are read off batches need a task with a loss of its own, and a planted one has none.")
        plain = make_trainer(options, prepared.task, prepared.base, prepared.model, prepared.rows, [])
        batches = first_batches(plain, options.adapter.calibration_batches)
    return contestants.adapt(
        prepared.model,
        given,
        steps=steps,
        targets=targets(options.adapter.target_modules),
        task_type=None if planted else prepared.task.task_type,
        saved=listed(options.adapter.modules_to_save),
        seed=seed,
        batches=batches,
    )


def _rows(job: Job, rows: Rows) -> Rows:
    """A trial is scored on a part of the training rows, and never sees those that the study is scored on."""
    if job.phase is Phase.FINAL:
        if rows.held_out is None:
            raise DataError("There are no rows to score on; give the task an eval_dataset_name or a dataset_test_split.")
        return rows
    search = job.settings["search"]
    count = max(1, round(search["held"] * len(rows.train)))
    if count >= len(rows.train):
        raise DataError(f"{len(rows.train)} training rows are too few to choose by a part of them.")
    parts = rows.train.train_test_split(test_size=count, seed=search["held_seed"])
    return Rows(train=parts["train"], held_out=parts["test"], origin="training")


def _run(asked: Asked, definitions: Mapping[str, str], recorder: Recorder, folder: Path) -> Outcome:
    job = asked.job
    measured = memory.forget()
    made = _made(job, definitions, recorder, folder)
    trainer, model = made.trainer, made.prepared.model
    looks = Looks(job.settings["search"]["evaluations"], asked.cut) if job.phase is Phase.SEARCH else None
    if looks is not None:
        trainer.add_callback(looks)
    start = _parameters(made, start=True)
    used = time.process_time()
    trainer.train()
    used = time.process_time() - used
    most = memory.most() if measured else None
    history = points(trainer.state.log_history)
    spent = sum(point.values.get("eval_runtime", 0.0) for point in history)
    done: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "seconds": recorder.seconds - spent,
        "cpu_seconds": used,
        "memory": most,
        "start_parameters": start,
    }
    if looks is not None and looks.pruned:
        return Outcome(state=State.PRUNED, history=history, **done)
    metrics = final_metrics(trainer, made.prepared.task)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return Outcome(
        state=State.FINISHED,
        metrics=metrics,
        history=history,
        parameters=_parameters(made),
        file_bytes=_written(made, folder / "written"),
        **done,
    )


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
    except ExportError:
        return None
    return sum(file.stat().st_size for file in place.rglob("*.safetensors"))
