"""From a trained model to files: the metrics, the export, run.json and the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

import paring
from paring.cli.data.files import data_files
from paring.cli.data.metrics import FIRST
from paring.cli.data.task import Task
from paring.cli.run.base import DTYPES
from paring.cli.run.options import DataOptions, TrainOptions
from paring.cli.run.output import ADAPTER, REPORT, RUN
from paring.cli.run.prepare import Prepared
from paring.cli.run.trainer import Rows
from paring.core.errors import ExportError
from paring.core.records import RunRecord
from paring.exchange.folder import digest, replace_file
from paring.train import Recorder
from paring.train.whole import Whole


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
    model: PeftModel | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def recorded(options: TrainOptions, rows: Rows, sha256: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """The options by flag, without their groups, and what they led to: numbers of rows, and the digests of the files."""
    return {
        **{name: value for group in asdict(options).values() for name, value in group.items()},
        "rows": {"train": len(rows.train), "eval": 0 if rows.held_out is None else len(rows.held_out)},
        "sha256": dict(sha256),
        **more,
    }


def final_metrics(trainer: Trainer, task: Task) -> dict[str, float]:
    """The metrics of the model that is exported, evaluated once more only if its step was not.

    An evaluation after the best checkpoint was loaded would be logged as that of the run's last step.
    """
    if trainer.eval_dataset is None:
        return {}
    step = exported_step(trainer)
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


def exported_step(trainer: Trainer) -> int:
    """The step whose weights the model has when training has ended: the best checkpoint's, if that was loaded."""
    state = trainer.state
    best = state.best_global_step if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None else None
    return state.global_step if best is None else best


def export_adapter(
    options: TrainOptions, prepared: Prepared, command: str, place: Path, *, overwrite: bool, metrics: Mapping[str, float] | None = None
) -> Path:
    """Export the model's adapter as the options ask for.

    Raises:
        ExportError: no rank is left, or the disk is full.
    """
    dtype = DTYPES[options.output.export_dtype]
    return paring.export(
        prepared.adapted,
        place,
        layout=options.output.layout,
        dtype=dtype if isinstance(dtype, torch.dtype) else None,
        overwrite=overwrite,
        tokenizer=prepared.base.tokenizer,
        command=command,
        metrics=metrics,
    )


def saves_adapter(options: TrainOptions, prepared: Prepared, command: str, metrics: Mapping[str, float]) -> Callable[[], Path]:
    """What exports the model's adapter into the run's folder, for :func:`finish`."""
    place = Path(options.output.output_dir) / ADAPTER
    return partial(export_adapter, options, prepared, command, place, overwrite=options.output.replaces, metrics=metrics)


def finish(
    options: TrainOptions,
    prepared: Prepared,
    recorder: Recorder,
    command: str,
    metrics: Mapping[str, float],
    settings: Mapping[str, Any],
    *,
    save: Callable[[], Path] | None,
    whole: Whole | None = None,
    complete: Callable[[RunRecord], RunRecord] = lambda record: record,
) -> RunRecord:
    """Save what was trained, and write the record and the report; these two also if there is nothing to export, since they say why.

    Args:
        options: all options of the run.
        prepared: what was trained.
        recorder: has the log and the clock.
        command: the command line that repeats the run.
        metrics: of what is saved.
        settings: what the record keeps.
        save: writes what was trained, and returns its folder; ``None`` if nothing is to be kept.
        whole: how the model's own weights were trained, where there is no adapter.
        complete: adds to the record what the recorder does not know.

    Raises:
        ExportError: no rank is left, or the disk is full.
    """
    folder, model, main = Path(options.output.output_dir), prepared.model, FIRST[prepared.task.kind]
    saved, failed = None, None
    try:
        saved = None if save is None else save()
    except ExportError as error:
        failed = error
    record = complete(
        recorder.record(
            model,
            title=options.watch.run_name or folder.name or "run",
            command=command,
            seed=options.training.seed,
            settings=settings,
            metrics=metrics,
            main_metric="perplexity" if "perplexity" in metrics else main if main in metrics else None,
            files={} if saved is None else {file.name: file.stat().st_size for file in sorted(saved.iterdir()) if file.is_file()},
            base_model=options.model.model_name_or_path,
            whole=whole,
        )
    )
    try:
        replace_file(folder / RUN, record.to_json().encode())
        from paring.report import write_report

        write_report(record, folder / REPORT, overwrite=True)
    except OSError:
        if failed is None:
            raise
    if failed is not None:
        raise failed
    return record


def digests(options: DataOptions) -> dict[str, str]:
    """SHA-256 of the data files that were read, so that a repetition can tell whether they are the same."""
    places = [Path(name) for name in (options.dataset_name, options.eval_dataset_name) if name is not None]
    return {str(file): digest(file) for place in places for file in data_files(place)}
