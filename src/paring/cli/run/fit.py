"""One training run from options to files; ``paring train`` is this, and ``paring demo`` runs it twice."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from paring.cli.console import say
from paring.cli.run.attempt import Stopped, attempt, stopped_at
from paring.cli.run.checkpoints import TaskFile, check_resume, resume_point
from paring.cli.run.checks import check_options
from paring.cli.run.finish import Finished, digests, exported_step, final_metrics, finish, recorded
from paring.cli.run.options import TrainOptions
from paring.cli.run.output import check_output, no_empty, set_aside
from paring.cli.run.prepare import describe, prepare
from paring.cli.run.progress import Bar
from paring.cli.run.start import calibrated
from paring.cli.run.trainer import make_trainer
from paring.core.errors import SettingError
from paring.method import Method
from paring.train import Recorder
from paring.train.checkpoints import last_checkpoint


def fit(options: TrainOptions, method: Method, command: str) -> Finished | Stopped:
    """Train, export and report.

    Args:
        options: all options of the run.
        method: how modules are adapted.
        command: the command line that repeats the run.

    Raises:
        ParingError: bad options, data, model or adapter; whatever existed before is left as it was.
    """
    check_options(options)
    best = options.watch.load_best_model_at_end or options.watch.early_stopping_patience is not None
    if method.budgeted and best:
        raise SettingError(
            "--load_best_model_at_end and --early_stopping_patience may export a checkpoint from before the last cut, which is larger "
            f"than {method.name} is to be; leave them out."
        )
    with no_empty(Path(options.output.output_dir)):
        return _fit(options, method, command)


def _fit(options: TrainOptions, method: Method, command: str) -> Finished | Stopped:
    folder = Path(options.output.output_dir)
    resume = resume_point(options.output.resume_from_checkpoint, folder)
    if resume is not None:
        check_resume(resume, method)
    check_output(folder, overwrite=options.output.overwrite, resumes=resume is not None)
    prepared = prepare(options, method, resume)
    task, base, model, rows = prepared.task, prepared.base, prepared.model, prepared.rows
    recorder = Recorder()
    bar = Bar(prepared.ranks)
    callbacks = [recorder, bar, TaskFile(task, asdict(options.model))]
    trainer = make_trainer(options, task, base, model, rows, callbacks)
    describe(trainer, prepared, method)
    if resume is None:
        calibrated(trainer, model, options.adapter.calibration_batches)
    earlier: Path | None = None
    if options.output.overwrite and resume is None and folder.is_dir() and trainer.is_world_process_zero():
        # The exported adapter is replaced when the new one is complete; the rest is deleted then, and not while the run may still fail.
        earlier = set_aside(folder)
    try:
        stopped = attempt(trainer, bar, resume)
    except BaseException:
        if earlier is not None:
            say(f"paring: the files of the earlier run are in {earlier}")
        raise
    if stopped:
        checkpoint = last_checkpoint(folder)
        return stopped_at(checkpoint, f"{command} --resume_from_checkpoint {checkpoint}")
    metrics = final_metrics(trainer, task)
    exported, last = exported_step(trainer), trainer.state.global_step
    if exported != last:
        best = trainer.args.metric_for_best_model
        say(f"paring: the run ended at step {last}; the adapter is that of step {exported}, the best by {best}")
    # For mixed precision Trainer has put autocast around the forward; what comes out of here answers in the model's own precision.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    settings = recorded(options, rows, digests(options.data), exported_step=exported)
    if not trainer.is_world_process_zero():
        record = recorder.record(model, title="", command=command, seed=options.training.seed, settings=settings, metrics=metrics)
        return Finished(folder=folder, record=record, model=model, tokenizer=base.tokenizer)
    record = finish(options, prepared, recorder, command, metrics, settings)
    if earlier is not None:
        shutil.rmtree(earlier)
    return Finished(folder=folder, record=record, model=model, tokenizer=base.tokenizer)
