"""A path from options to files: the training in full, stages with ever smaller adapters, and the choice of one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import Trainer

from paring.cli.console import first, say
from paring.cli.data.metrics import FIRST
from paring.cli.flags import listed
from paring.cli.run.arguments import logged_every
from paring.cli.run.attempt import Stopped, attempt, stopped_at
from paring.cli.run.budgets import tolerated
from paring.cli.run.checkpoints import TaskFile, last_checkpoint
from paring.cli.run.checks import check_options
from paring.cli.run.finish import Finished, digests, export_adapter, final_metrics, finish, recorded
from paring.cli.run.options import TrainingOptions, TrainOptions
from paring.cli.run.output import FAMILY, check_output, checkpoints, no_empty, set_aside
from paring.cli.run.prepare import Prepared, describe, prepare
from paring.cli.run.progress import Bar
from paring.cli.run.scores import Scorer
from paring.cli.run.trainer import Rows, make_trainer
from paring.core.errors import DataError, SettingError
from paring.core.records import PathRecord, Point, RunRecord, StageRecord
from paring.method import Method
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Share
from paring.path import Walked, descend
from paring.train import Descent, Halve, Recorder, Rise, Scores, Stage
from paring.train.family import SETTINGS
from paring.train.recorder import points


class _Interrupted(Exception):
    """Somebody has stopped the training of a stage."""


def fit_path(options: TrainOptions, method: Method, command: str) -> Finished | Stopped:
    """Walk down, choose, export and report.

    Args:
        options: all options of the run.
        method: how modules are adapted.
        command: the command line that repeats the run.

    Raises:
        ParingError: bad options, data, model or adapter; whatever existed before is left as it was.
    """
    check_options(options)
    check_path(options)
    if isinstance(method, Spectral) and method.budget != Share(share=1.0):
        raise SettingError("--budget says how big the adapter is to be, and a path finds that out; leave out --budget, or the path.")
    folder = Path(options.output.output_dir)
    resume = asked_to_resume(options.output.resume_from_checkpoint, folder)
    check_output(folder, overwrite=options.output.overwrite, resumes=resume)
    with no_empty(folder):
        prepared = prepare(options, method, None)
        return _Descent(options, method, command, prepared, resume=resume).walk()


def check_path(options: TrainOptions) -> None:
    """Refuse what cannot be before anything is read.

    Raises:
        SettingError: names the flag.
    """
    path, watch = options.path, options.watch
    if path.tolerance is not None:
        tolerated(path.tolerance)
    if path.stages < 1:
        raise SettingError(f"--stages {path.stages}: give at least 1.")
    if not 0.0 < path.stage_share <= 1.0:
        raise SettingError(f"--stage_share {path.stage_share}: give a share of the training in full, above 0 and at most 1.")
    if not 0.0 <= path.choose_share < 1.0:
        raise SettingError(f"--choose_share {path.choose_share}: give a share of the training rows below 1; 0 chooses by the evaluation's.")
    if watch.load_best_model_at_end or watch.early_stopping_patience is not None:
        raise SettingError(
            "--load_best_model_at_end and --early_stopping_patience choose among the checkpoints of one training; a path chooses among "
            "its stages, so leave them out."
        )
    if options.output.push_to_hub and path.tolerance is None:
        raise SettingError(
            "--push_to_hub: a path without a --tolerance chooses no adapter to upload; give one, or upload a stage's by hand."
        )
    descent(options)


def descent(options: TrainOptions) -> Descent:
    """How the adapter becomes smaller.

    Raises:
        SettingError: a penalty is no number, or they do not ascend.
    """
    given = options.path.penalties
    if given is None:
        return Halve(factor=options.path.stage_factor, stages=options.path.stages)
    try:
        penalties = tuple(float(value) for value in (listed(given) if isinstance(given, str) else given) or ())
    except ValueError as error:
        raise SettingError(f"--penalties {given}: give numbers, such as 0.1,0.3,0.9.") from error
    return Rise(penalties=penalties)


def asked_to_resume(asked: str | None, folder: Path) -> bool:
    """Whether the path in the folder is to be gone on with.

    Raises:
        SettingError: there is none, or a checkpoint was named: where a path goes on follows from its stages.
    """
    if asked is None or asked.lower() in ("false", "no"):
        return False
    if asked.lower() not in ("last", "true", "yes"):
        raise SettingError(f"--resume_from_checkpoint {asked}: a path goes on where it was; give `last`, and its --output_dir.")
    if not (folder / FAMILY / SETTINGS).is_file():
        raise SettingError(
            f"--resume_from_checkpoint {asked}: {str(folder)!r} holds no path to go on with; leave the flag out to begin one."
        )
    return True


class _Descent:
    """One path, from the prepared model to the report."""

    def __init__(self, options: TrainOptions, method: Method, command: str, prepared: Prepared, *, resume: bool) -> None:
        self.options, self.method, self.command, self.prepared, self.resume = options, method, command, prepared, resume
        self.folder = Path(options.output.output_dir)
        self.rows, choose = chosen_by(options, prepared.rows)
        self.scorer = Scorer(options, prepared, self.rows.train, choose)
        self.recorder, self.bar = Recorder(), Bar(prepared.ranks)
        self.trainer: Trainer | None = None
        self.settings: dict[str, Any] = {
            "task": asdict(prepared.task),
            "model": options.model.model_name_or_path,
            "training": asdict(options.training),
            "stage_share": options.path.stage_share,
            "rows": [len(self.rows.train), len(choose)],
            "files": list(digests(options.data).values()),
        }

    def trainer_of(self, index: int) -> Trainer:
        """A new trainer, with a schedule and a folder of its own."""
        place = self.folder / FAMILY / f"stage-{index:02d}"
        options = replace(self.options, output=replace(self.options.output, output_dir=str(place)))
        every = options.watch.logging_steps or logged_every(options.training, len(self.rows.train))
        options = replace(options, watch=replace(options.watch, logging_steps=every))
        if index:
            options = replace(options, training=shortened(options, index))
        task = self.prepared.task
        callbacks = [self.recorder, self.bar, TaskFile(task, asdict(options.model))]
        return make_trainer(options, task, self.prepared.base, self.prepared.model, self.rows, callbacks)

    def train(self, index: int, goal: float) -> Sequence[Point]:
        """Train one stage, from its last checkpoint if it has one."""
        trainer = self.trainer_of(index)
        self.trainer = trainer
        if index == 0:
            describe(trainer, self.prepared, self.method)
        what = f"at most {goal:,.0f} parameters" if self.options.path.penalties is None else f"penalty {goal:g}"
        say(f"stage {index}: {what}")
        place = Path(trainer.args.output_dir or ".")
        checkpoint = last_checkpoint(place) if self.resume else None
        if attempt(trainer, self.bar, checkpoint, over_is_fine=True):
            raise _Interrupted
        return points(trainer.state.log_history)

    def evaluate(self) -> Scores:
        """Score the model after a stage; what comes out of it answers in the training's precision."""
        assert self.trainer is not None
        trainer, model = self.trainer, self.prepared.model
        metrics = final_metrics(trainer, self.prepared.task)
        # For mixed precision Trainer has put autocast around the forward, and the next one would put it around that.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        train, held_out, error = self.scorer(model)
        say(f"held-out rows: {metric_name(self.prepared)} {held_out:.4f} +- {error:.4f}")
        return Scores(train=train, validation=held_out, error=error, others=metrics)

    def export(self, place: Path) -> Path:
        """Write a stage's adapter."""
        return export_adapter(self.options, self.prepared, self.command, place, overwrite=True)

    def walk(self) -> Finished | Stopped:
        """Train all stages, choose, write."""
        options = self.options
        earlier = set_aside(self.folder) if options.output.overwrite and not self.resume and self.folder.is_dir() else None
        tolerance = None if options.path.tolerance is None else tolerated(options.path.tolerance)
        try:
            walked = descend(
                self.prepared.model,
                self.train,
                self.evaluate,
                folder=self.folder / FAMILY,
                tolerance=tolerance,
                descent=descent(options),
                resume=self.resume,
                settings=self.settings,
                write=self.export,
                writes=first(),
            )
        except _Interrupted:
            stopped = self.folder / FAMILY
            return stopped_at(stopped, f"{self.command} --resume_from_checkpoint last")
        except BaseException:
            if earlier is not None:
                say(f"paring: the files of the earlier run are in {earlier}")
            raise
        record = self.written(walked)
        if first():
            told(walked, metric_name(self.prepared))
            for stage in walked.stages:
                for checkpoint in checkpoints(self.folder / FAMILY / f"stage-{stage.index:02d}"):
                    shutil.rmtree(checkpoint)  # The stage itself is kept; what an optimizer remembered is not needed any more.
            if earlier is not None:
                shutil.rmtree(earlier)
        return Finished(folder=self.folder, record=record, model=self.prepared.model, tokenizer=self.prepared.base.tokenizer)

    def written(self, walked: Walked) -> RunRecord:
        """Export what was chosen, and write the record and the report."""
        last = walked.chosen or walked.stages[-1]

        def complete(record: RunRecord) -> RunRecord:
            seconds = sum(stage.seconds for stage in walked.stages)
            return replace(record, path=path_record(self.options, self.prepared, walked), history=joined(walked.stages), seconds=seconds)

        settings = recorded(self.options, self.rows, chosen_by=self.settings["rows"][1])
        if not first():
            model, seed = self.prepared.model, self.options.training.seed
            return self.recorder.record(model, title="", command=self.command, seed=seed, settings=settings, metrics=last.scores.others)
        exports = walked.chosen is not None
        return finish(
            self.options,
            self.prepared,
            self.recorder,
            self.command,
            last.scores.others,
            settings,
            exports=exports,
            complete=complete,
        )


def chosen_by(options: TrainOptions, rows: Rows) -> tuple[Rows, Any]:
    """The rows to train on and to evaluate on, and those that the adapter is chosen by.

    Raises:
        DataError: there are too few rows.
    """
    share = options.path.choose_share
    if share == 0.0:
        if rows.held_out is None:
            raise DataError(
                "--choose_share 0 chooses by the rows that are evaluated on, and there are none; give some, or a share above 0."
            )
        say("paring: the adapter is chosen by the evaluation's rows (--choose_share 0), so its metrics on them are too good to be true")
        return rows, rows.held_out
    count = max(1, round(share * len(rows.train)))
    if len(rows.train) < 2 or count >= len(rows.train):
        raise DataError(
            f"{len(rows.train)} training rows are too few to hold out {count} to choose by; give more rows, or --choose_share 0."
        )
    parts = rows.train.train_test_split(test_size=count, seed=options.training.seed)
    say(f"path: {count} of the training rows are held out to choose by (--choose_share)")
    return replace(rows, train=parts["train"]), parts["test"]


def shortened(options: TrainOptions, index: int) -> TrainingOptions:
    """The training of a later stage: a share of the first one's length, with another order of rows."""
    training, share = options.training, options.path.stage_share
    seed = (training.seed + index) % 2**32
    if training.max_steps > 0:
        return replace(training, max_steps=max(1, round(share * training.max_steps)), seed=seed)
    return replace(training, num_train_epochs=share * training.num_train_epochs, seed=seed)


def metric_name(prepared: Prepared) -> str:
    """What stages are compared by."""
    return "token probability" if prepared.task.kind == "causal-lm" else FIRST[prepared.task.kind]


def joined(stages: Sequence[Stage]) -> tuple[Point, ...]:
    """What was logged in all stages, one after the other."""
    found: list[Point] = []
    for stage in stages:
        before = found[-1].step if found else 0
        found += [replace(point, step=before + point.step) for point in stage.history]
    return tuple(found)


def told(walked: Walked, metric: str) -> None:
    """The stages as a table, the chosen one marked."""
    from rich.console import Console
    from rich.table import Table

    shown = Table("stage", "parameters", "ranks", f"{metric}, held out", "memorization", "generalization", "")
    for stage in walked.stages:
        error = "" if stage.scores.error is None else f" +- {stage.scores.error:.4f}"
        inside = walked.floor is not None and (stage.index == 0 or stage.scores.validation >= walked.floor)
        word = "chosen" if walked.chosen is stage else "inside" if inside else "outside" if walked.floor is not None else ""
        shown.add_row(
            str(stage.index),
            f"{stage.parameters:,}",
            str(sum(stage.adapter.ranks.values())),
            f"{stage.scores.validation:.4f}{error}",
            f"{stage.memorization:.1f}",
            f"{stage.generalization:.1f}",
            word,
        )
    Console(stderr=True, highlight=False).print(shown)


def path_record(options: TrainOptions, prepared: Prepared, walked: Walked) -> PathRecord:
    """The stages as the report shows them."""
    root = Path(options.output.output_dir)
    return PathRecord(
        metric=metric_name(prepared),
        stages=tuple(
            StageRecord(
                goal=stage.goal,
                parameters=stage.parameters,
                live_ranks=sum(stage.adapter.ranks.values()),
                train=stage.scores.train,
                held_out=stage.scores.validation,
                error=stage.scores.error,
                memorization=stage.memorization,
                generalization=stage.generalization,
                seconds=stage.seconds,
                metrics=dict(stage.scores.others),
                folder=walked.adapter(stage).relative_to(root).as_posix() if stage.parameters else None,
            )
            for stage in walked.stages
        ),
        tolerance=options.path.tolerance,
        floor=walked.floor,
        chosen=None if walked.chosen is None else walked.chosen.index,
    )
