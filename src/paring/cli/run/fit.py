"""One training run from options to files; ``paring train`` is this, and ``paring demo`` runs it twice."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

import paring
from paring.attach.find import config_of
from paring.cli.console import INTERRUPTED, say
from paring.cli.data.metrics import FIRST
from paring.cli.data.read import ROW, held_out_split, read
from paring.cli.data.task import Task, infer
from paring.cli.flags import listed
from paring.cli.run.base import DTYPES, Base, check_folder, load_base
from paring.cli.run.checkpoints import TaskFile, check_resume, check_targets, check_task, last_checkpoint, resume_point
from paring.cli.run.checks import check_options, targets
from paring.cli.run.interrupt import Interruption
from paring.cli.run.loaded import labels_of
from paring.cli.run.options import DataOptions, TrainOptions
from paring.cli.run.output import ADAPTER, REPORT, RUN, check_output, no_empty, set_aside, write_text
from paring.cli.run.progress import Bar
from paring.cli.run.trainer import Rows, make_trainer
from paring.core.errors import DataError, ExportError, ParingError, SettingError
from paring.core.records import RunRecord
from paring.exchange.folder import digest
from paring.method import Method
from paring.train import Recorder


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that went to its end.

    Attributes:
        folder: the run's folder.
        record: what run.json holds.
        model: the trained model, in memory.
        tokenizer: its tokenizer.
    """

    folder: Path
    record: RunRecord
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A run that was interrupted.

    Attributes:
        checkpoint: where it can be resumed from; ``None`` if no step was saved.
        status: what the command exits with.
    """

    checkpoint: Path | None
    status: int = INTERRUPTED


class Begun(TrainerCallback):
    """Knows whether training has begun; what fails before that is the checkpoint that is resumed from.

    Args:
        resume: that checkpoint.
    """

    def __init__(self, resume: Path | None) -> None:
        self.resume = resume
        self.begun = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The checkpoint has been read; refuse one with no step to follow, whose metrics would be passed off as this run's."""
        self.begun = True
        if self.resume is not None and state.global_step >= state.max_steps:
            asked = f"--max_steps {args.max_steps}" if args.max_steps > 0 else f"--num_train_epochs {args.num_train_epochs:g}"
            raise SettingError(
                f"{str(self.resume)!r} is at step {state.global_step}, and {asked} ends at step {state.max_steps}, so there is nothing "
                f"left to train. Give a larger one, or write the checkpoint as an adapter: paring export {self.resume} FOLDER."
            )


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
            f"than the budget of {method.name}; leave them out."
        )
    with no_empty(Path(options.output.output_dir)):
        return _fit(options, method, command)


def _fit(options: TrainOptions, method: Method, command: str) -> Finished | Stopped:
    folder = Path(options.output.output_dir)
    resume = resume_point(options.output.resume_from_checkpoint, folder)
    if resume is not None:
        check_resume(resume, method)
    check_output(folder, overwrite=options.output.overwrite, resumes=resume is not None)
    check_folder(options.model.model_name_or_path)
    data = options.data
    template = None if data.chat_template_path is None else read_template(Path(data.chat_template_path))
    rows = read(data.dataset_name, data.dataset_train_split, data.dataset_config, listed(data.text_columns))
    task = infer(
        rows,
        kind=data.task,
        texts=listed(data.text_columns),
        label=data.label_column,
        names=listed(data.label_names),
        source=data.dataset_name,
    )
    if resume is not None:
        check_task(resume, task, asdict(options.model))
    rows, held_out, origin = split(rows, data, options.training.seed)
    say(f"task: {task.describe()} (--task, --text_columns and --label_column say otherwise)")
    if task.kind == "causal-lm" and (unread := [name for name in rows.column_names if name not in (*task.texts, ROW)]):
        more = " (--text_columns PROMPT,COMPLETION reads two)" if task.form == "text" else ""
        say(f"columns that are not read: {', '.join(unread)}{more}")
    say(f"data: {len(rows)} rows to train on, {len(held_out) if held_out is not None else 'none'} to evaluate on")
    set_seed(options.training.seed)
    base = load_base(options.model, task, options.training.seed)
    if template is not None:
        base.tokenizer.chat_template = template
    if options.adapter.init_adapter is not None:
        take_heads(base, options.adapter.init_adapter, task)
    model = paring.adapt(
        base.model,
        method,
        target_modules=targets(options.adapter.target_modules),
        exclude_modules=None if options.adapter.exclude_modules is None else targets(options.adapter.exclude_modules),
        modules_to_save=listed(options.adapter.modules_to_save),
        task_type=task.task_type,
        seed=options.training.seed,
    )
    if resume is not None:
        check_targets(resume, config_of(model).target_modules)
    # The very commit, where the model came from the hub: a branch may move before the adapter is loaded again.
    model.peft_config["default"].revision = vars(base.model.config).get("_commit_hash") or options.model.model_revision
    recorder = Recorder()
    total = sum(factors.rank for factors in paring.snapshot(model).modules.values())
    bar = Bar(total)
    callbacks = [recorder, bar, TaskFile(task, asdict(options.model))]
    trainer = make_trainer(options, task, base, model, Rows(train=rows, held_out=held_out, origin=origin), callbacks)
    _describe(trainer, model, method, base, total)
    earlier: Path | None = None
    if options.output.overwrite and resume is None and folder.is_dir() and trainer.is_world_process_zero():
        # The exported adapter is replaced when the new one is complete; the rest is deleted then, and not while the run may still fail.
        earlier = set_aside(folder)
    try:
        stopped = _train(trainer, bar, resume, command)
    except BaseException:
        if earlier is not None:
            say(f"paring: the files of the earlier run are in {earlier}")
        raise
    if stopped is not None:
        return stopped
    metrics = _metrics(trainer, task)
    exported, last = _exported(trainer), trainer.state.global_step
    if exported != last:
        best = trainer.args.metric_for_best_model
        say(f"paring: the run ended at step {last}; the adapter is that of step {exported}, the best by {best}")
    # For mixed precision Trainer has put autocast around the forward; what comes out of here answers in the model's own precision.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    settings = {
        **flat(options),
        "rows": {"train": len(rows), "eval": 0 if held_out is None else len(held_out)},
        "exported_step": exported,
        "sha256": _digests(options.data),
    }
    if not trainer.is_world_process_zero():
        record = recorder.record(model, title="", command=command, seed=options.training.seed, settings=settings, metrics=metrics)
        return Finished(folder=folder, record=record, model=model, tokenizer=base.tokenizer)
    record = _export(options, model, base, recorder, command, metrics, settings, main=FIRST[task.kind])
    if earlier is not None:
        shutil.rmtree(earlier)
    return Finished(folder=folder, record=record, model=model, tokenizer=base.tokenizer)


@torch.no_grad()
def take_heads(base: Base, source: str, task: Task) -> None:
    """Begin with the trained heads of the adapter that is started from, where they are for the same labels."""
    adapter = paring.read(source)
    if not adapter.heads:
        return
    own = dict(base.model.named_parameters())
    names = tuple(task.id2label.values()) if task.kind == "classification" else ()
    same = task.kind != "classification" or tuple(labels_of(Path(source), len(names)).values()) == names
    if not same or any(name not in own or own[name].shape != tensor.shape for name, tensor in adapter.heads.items()):
        say(f"head: starts anew, since that of {source!r} is for other labels")
        return
    for name, tensor in adapter.heads.items():
        own[name].copy_(tensor)
    say(f"head: starts as that of {source!r}")


def read_template(path: Path) -> str:
    """The text of a chat template.

    Raises:
        SettingError: no such file, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"--chat_template_path {str(path)!r} cannot be read ({error}); give a Jinja file in UTF-8.") from error


def flat(options: TrainOptions) -> dict[str, Any]:
    """The options by flag, without their groups."""
    return {name: value for group in asdict(options).values() for name, value in group.items()}


def split(rows: Dataset, options: DataOptions, seed: int) -> tuple[Dataset, Dataset | None, str]:
    """The rows to train on, those to evaluate on, and where the latter come from.

    Raises:
        DataError: something cannot be read, or is too small to split.
    """
    held_out: Dataset | None = None
    origin = "evaluation"
    if options.eval_dataset_name is not None:
        name = options.dataset_test_split or held_out_split(options.eval_dataset_name) or options.dataset_train_split
        held_out = read(options.eval_dataset_name, name, texts=listed(options.text_columns))
    else:
        found = options.dataset_test_split or held_out_split(options.dataset_name, options.dataset_config)
        if found is not None:
            held_out = read(options.dataset_name, found, options.dataset_config, listed(options.text_columns))
    if held_out is None and options.eval_share != 0.0:
        if not 0.0 < options.eval_share < 1.0:
            raise SettingError(f"--eval_share {options.eval_share}: give a share of the rows between 0 and 1; 0 evaluates on none.")
        if len(rows) < 2:
            raise DataError("A single row cannot be split into training and evaluation; give more rows, or --eval_share 0.")
        parts = rows.train_test_split(test_size=max(1, round(options.eval_share * len(rows))), seed=seed)
        rows, held_out, origin = parts["train"], parts["test"], "training"
    if held_out is not None:
        held_out = _some(held_out, options.max_eval_samples, seed)
    return _some(rows, options.max_train_samples, seed), held_out, origin


def _some(rows: Dataset, count: int | None, seed: int) -> Dataset:
    return rows if count is None or count >= len(rows) else rows.shuffle(seed=seed).select(range(count))


def _describe(trainer: Trainer, model: PeftModel, method: Method, base: Base, total: int) -> None:
    adapter = paring.snapshot(model)
    say(
        f"model: {method.about.title} on {len(adapter.modules)} modules, {total} ranks, {adapter.parameters:,} adapter parameters"
        + (f", {adapter.head_parameters:,} in a {'new' if base.new_head else 'found'} head" if adapter.heads else "")
        + f"; {trainer.args.device.type}{', bf16' if trainer.args.bf16 else ', fp16' if trainer.args.fp16 else ''}"
    )


def _train(trainer: Trainer, bar: Bar, resume: Path | None, command: str) -> Stopped | None:
    folder = Path(trainer.args.output_dir or ".")
    interruption = Interruption()
    trainer.add_callback(interruption)
    if resume is not None:
        say(f"resuming from {resume}")
    begun, stopped = Begun(resume), False
    trainer.add_callback(begun)
    try:
        with interruption:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        stopped = interruption.asked and trainer.state.global_step < trainer.state.max_steps
    except KeyboardInterrupt:
        stopped = True
    except (ParingError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if resume is None or begun.begun:
            raise
        # Nothing has run yet but reading the checkpoint; torch, safetensors and pickle each have errors of their own.
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise SettingError(
            f"The checkpoint {str(resume)!r} cannot be read, or does not fit the model ({said}). "
            "It is damaged, or from another run: use another checkpoint-* folder of this one, or start anew."
        ) from error
    finally:
        bar.stop()
    if not stopped:
        return None
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        say("paring: interrupted before the first checkpoint; there is nothing to resume.")
    else:
        say(f"paring: stopped; {checkpoint} holds everything. Go on with:\n  {command} --resume_from_checkpoint {checkpoint}")
    return Stopped(checkpoint=checkpoint)


def _metrics(trainer: Trainer, task: Task) -> dict[str, float]:
    """The metrics of the model that is exported, evaluated once more only if its step was not.

    An evaluation after the best checkpoint was loaded would be logged as that of the run's last step.
    """
    if trainer.eval_dataset is None:
        return {}
    step = _exported(trainer)
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry and entry.get("step") == step]
    values = logged[-1] if logged else trainer.evaluate()
    skipped = ("runtime", "per_second", "preparation_time", "num_tokens")
    metrics = {
        key.removeprefix("eval_"): float(value)
        for key, value in values.items()
        if key.startswith("eval_") and not key.endswith(skipped) and isinstance(value, int | float)
    }
    if task.kind == "causal-lm" and "loss" in metrics:
        with suppress(OverflowError):
            metrics["perplexity"] = math.exp(metrics["loss"])
    return metrics


def _exported(trainer: Trainer) -> int:
    """The step whose weights the model has when training has ended: the best checkpoint's, if that was loaded."""
    state = trainer.state
    best = state.best_global_step if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None else None
    return state.global_step if best is None else best


def _export(
    options: TrainOptions,
    model: PeftModel,
    base: Base,
    recorder: Recorder,
    command: str,
    metrics: Mapping[str, float],
    settings: Mapping[str, Any],
    main: str,
) -> RunRecord:
    """Export, and write the record and the report; these two also if there is nothing to export, since they say why.

    Raises:
        ExportError: no rank is left, or the disk is full.
    """
    folder = Path(options.output.output_dir)
    dtype = DTYPES[options.output.export_dtype]
    adapter, failed = None, None
    try:
        adapter = paring.export(
            model,
            folder / ADAPTER,
            layout=options.output.layout,
            dtype=dtype if isinstance(dtype, torch.dtype) else None,
            overwrite=options.output.overwrite or options.output.resume_from_checkpoint is not None,
            tokenizer=base.tokenizer,
            command=command,
            metrics=metrics,
        )
    except ExportError as error:
        failed = error
    record = recorder.record(
        model,
        title=options.watch.run_name or folder.name or "run",
        command=command,
        seed=options.training.seed,
        settings=settings,
        metrics=metrics,
        main_metric="perplexity" if "perplexity" in metrics else main if main in metrics else None,
        files={} if adapter is None else {file.name: file.stat().st_size for file in sorted(adapter.iterdir()) if file.is_file()},
        base_model=options.model.model_name_or_path,
    )
    try:
        write_text(folder / RUN, record.to_json())
        from paring.report import write_report

        write_report(record, folder / REPORT, overwrite=True)
    except OSError:
        if failed is None:
            raise
    if failed is not None:
        raise failed
    return record


def _digests(options: DataOptions) -> dict[str, str]:
    """SHA-256 of the data files that were read, so that a repetition can tell whether they are the same."""
    found: dict[str, str] = {}
    for name in (options.dataset_name, options.eval_dataset_name):
        path = Path(name) if name is not None else None
        if path is None:
            continue
        for file in [path] if path.is_file() else sorted(path.glob("*")) if path.is_dir() else []:
            if file.is_file():
                found[str(file)] = digest(file)
    return found
