"""A path from options to files: the training in full, stages with ever smaller adapters, and the choice of one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import Trainer

from paring.cli.console import first, say
from paring.cli.run.arguments import logged_every
from paring.cli.run.attempt import Stopped, attempt, stopped_at
from paring.cli.run.budgets import tolerated
from paring.cli.run.checkpoints import task_file
from paring.cli.run.checks import check_options
from paring.cli.run.finish import Finished, digests, export_adapter, final_metrics, finish, recorded, saves_adapter
from paring.cli.run.options import TrainOptions
from paring.cli.run.output import FAMILY, check_output, checkpoints, no_empty, set_aside
from paring.cli.run.prepare import Prepared, describe, prepare
from paring.cli.run.progress import Bar
from paring.cli.run.scores import Scorer
from paring.cli.run.trainer import make_trainer
from paring.cli.run.ways import asked_to_resume, check_path, chosen_by, descent, joined, metric_name, path_record, shortened, told
from paring.core.errors import SettingError
from paring.core.records import Point, RunRecord
from paring.method import Method
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Share
from paring.path import Walked, descend
from paring.train import Recorder, Scores
from paring.train.checkpoints import last_checkpoint
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


class _Descent:
    """One path, from the prepared model to the report."""

    def __init__(self, options: TrainOptions, method: Method, command: str, prepared: Prepared, *, resume: bool) -> None:
        self.options, self.method, self.command, self.prepared, self.resume = options, method, command, prepared, resume
        self.folder = Path(options.output.output_dir)
        self.rows, choose = chosen_by(options, prepared.rows)
        self.scorer = Scorer(options, prepared, self.rows.train, choose)
        self.recorder, self.bar = Recorder(), Bar(prepared.ranks)
        self.trainer: Trainer | None = None
        self.digests = digests(options.data)
        self.settings: dict[str, Any] = {
            "task": asdict(prepared.task),
            "model": asdict(options.model),
            # What the files hold is told by their digests, wherever they lie.
            "data": {**asdict(options.data), "dataset_name": None, "eval_dataset_name": None, "chat_template_path": None},
            "chat_template": prepared.base.tokenizer.chat_template,
            "modules_to_save": options.adapter.modules_to_save,
            "training": asdict(options.training),
            "stage_share": options.path.stage_share,
            "rows": [len(self.rows.train), len(choose)],
            "files": list(self.digests.values()),
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
        beside = task_file(task, asdict(options.model))
        return make_trainer(options, task, self.prepared.base, self.prepared.model, self.rows, [self.recorder, self.bar], beside)

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
                self.prepared.adapted,
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
            assert record.path is not None
            told(record.path)
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

        settings = recorded(self.options, self.rows, self.digests, chosen_by=self.settings["rows"][1])
        if not first():
            model, seed = self.prepared.model, self.options.training.seed
            return self.recorder.record(model, title="", command=self.command, seed=seed, settings=settings, metrics=last.scores.others)
        save = saves_adapter(self.options, self.prepared, self.command, last.scores.others)
        return finish(
            self.options,
            self.prepared,
            self.recorder,
            self.command,
            last.scores.others,
            settings,
            save=None if walked.chosen is None else save,
            complete=complete,
        )
