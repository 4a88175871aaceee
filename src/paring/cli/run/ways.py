"""What the flags of a path ask for: the way down, the rows to choose by, the length of a stage; and how its stages are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from paring.cli.console import say
from paring.cli.data.metrics import FIRST
from paring.cli.flags import listed
from paring.cli.run.budgets import tolerated
from paring.cli.run.options import TrainingOptions, TrainOptions
from paring.cli.run.output import FAMILY
from paring.cli.run.prepare import Prepared
from paring.cli.run.trainer import Rows
from paring.core.errors import DataError, SettingError
from paring.core.records import PathRecord, Point, StageRecord
from paring.path import Walked
from paring.train import Descent, Halve, Rise, Stage
from paring.train.family import SETTINGS

FEWEST = 3
"""Rows that a standard error can be told from."""


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


def chosen_by(options: TrainOptions, rows: Rows) -> tuple[Rows, Dataset]:
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
    if count < FEWEST and options.path.tolerance is not None:
        raise DataError(f"{count} rows are too few to choose an adapter by; give more rows, or a larger --choose_share.")
    parts = rows.train.train_test_split(test_size=count, seed=options.training.seed)
    say(f"path: {count} of the training rows are held out to choose by (--choose_share)")
    return replace(rows, train=parts["train"]), parts["test"]


def shortened(options: TrainOptions, index: int) -> TrainingOptions:
    """The training of a later stage: a share of the first one's length, warm-up included, with another order of rows."""
    training, share = options.training, options.path.stage_share
    # Below 1 it is a share of the steps already.
    warmup = training.warmup_steps if training.warmup_steps < 1 else max(1, round(share * training.warmup_steps))
    training = replace(training, warmup_steps=warmup, seed=(training.seed + index) % 2**32)
    if training.max_steps > 0:
        return replace(training, max_steps=max(1, round(share * training.max_steps)))
    return replace(training, num_train_epochs=share * training.num_train_epochs)


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


def told(path: PathRecord) -> None:
    """The stages as a table, the chosen one marked."""
    from rich.console import Console
    from rich.table import Table

    shown = Table("stage", "parameters", "ranks", f"{path.metric}, held out", "memorization", "generalization", "")
    for index, stage in enumerate(path.stages):
        shown.add_row(
            str(index),
            f"{stage.parameters:,}",
            str(stage.live_ranks),
            f"{stage.held_out:.4f}" + ("" if stage.error is None else f" +- {stage.error:.4f}"),
            f"{stage.memorization:.1f}",
            f"{stage.generalization:.1f}",
            path.verdict(index),
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
