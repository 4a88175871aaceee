"""One training run from options to files; ``paring train`` is this, and ``paring demo`` runs it twice."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from paring.cli.console import say
from paring.cli.run.attempt import Stopped, attempt, stopped_at
from paring.cli.run.checkpoints import resume_point, task_file
from paring.cli.run.checks import check_options
from paring.cli.run.finish import Finished, digests, exported_step, final_metrics, recorded
from paring.cli.run.options import TrainOptions
from paring.cli.run.output import check_output, no_empty, set_aside
from paring.cli.run.progress import Bar
from paring.cli.run.subject import Adapting, Subject
from paring.cli.run.trainer import make_trainer
from paring.cli.run.whole import OwnWeights
from paring.method import Method
from paring.train import Recorder
from paring.train.checkpoints import last_checkpoint
from paring.train.whole import Whole


def fit(options: TrainOptions, method: Method | Whole, command: str) -> Finished | Stopped:
    """Train, save and report.

    Args:
        options: all options of the run.
        method: how modules are adapted, or how the model's own weights are trained.
        command: the command line that repeats the run.

    Raises:
        ParingError: bad options, data, model or adapter; whatever existed before is left as it was.
    """
    check_options(options)
    subject = OwnWeights(options, method) if isinstance(method, Whole) else Adapting(options, method)
    subject.check()
    with no_empty(Path(options.output.output_dir)):
        return _fit(subject, command)


def _fit(subject: Subject, command: str) -> Finished | Stopped:
    options = subject.options
    folder = Path(options.output.output_dir)
    resume = resume_point(options.output.resume_from_checkpoint, folder)
    check_output(folder, overwrite=options.output.overwrite, resumes=resume is not None)
    prepared = subject.prepare(resume)
    task, base, model, rows = prepared.task, prepared.base, prepared.model, prepared.rows
    recorder = Recorder()
    bar = Bar(prepared.ranks)
    beside = task_file(task, asdict(options.model), subject.whole)
    trainer = make_trainer(options, task, base, model, rows, [recorder, bar, *subject.callbacks()], beside)
    subject.begin(trainer, prepared, resumes=resume is not None)
    earlier: Path | None = None
    if options.output.overwrite and resume is None and folder.is_dir() and trainer.is_world_process_zero():
        # What was exported is replaced when the new one is complete; the rest is deleted then, and not while the run may still fail.
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
        say(f"paring: the run ended at step {last}; what is saved is that of step {exported}, the best by {best}")
    # For mixed precision Trainer has put autocast around the forward; what comes out of here answers in the model's own precision.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    settings = recorded(options, rows, digests(options.data), exported_step=exported)
    if trainer.is_world_process_zero():
        record = subject.finish(prepared, recorder, command, metrics, settings)
        if earlier is not None:
            shutil.rmtree(earlier)
    else:
        record = recorder.record(model, title="", command=command, seed=options.training.seed, settings=settings, metrics=metrics)
    return Finished(folder=folder, record=record, model=model, tokenizer=base.tokenizer)
