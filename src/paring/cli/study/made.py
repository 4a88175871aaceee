"""A run of a study up to its first step: data, model, adapter and trainer, the same for all contestants but for what each one is."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, Trainer, TrainerCallback, set_seed

from paring.cli.flags import listed
from paring.cli.run.checks import targets
from paring.cli.run.options import TrainOptions, WatchOptions
from paring.cli.run.prepare import Prepared, attach, load
from paring.cli.run.start import calibrate_for, first_batches
from paring.cli.run.trainer import Rows, make_trainer
from paring.cli.run.whole import precise
from paring.cli.study import contestants
from paring.cli.study.flags import Run, flags_of, parsed
from paring.cli.study.planted import load_planted, planted_options, planted_trainer, planting
from paring.core.errors import DataError, SettingError
from paring.method import Method
from paring.study.records import Job, Phase
from paring.train import Recorder
from paring.train.whole import Whole


@dataclass(frozen=True, kw_only=True)
class Made:
    """A run that is ready for its first step; ``steps`` are those of a whole one, ``seconds`` what making the adapter took."""

    run: Run
    steps: int
    prepared: Prepared
    trainer: Trainer
    whole: Whole | None
    seconds: float


def steps_of(options: TrainOptions, rows: int) -> int:
    """Optimizer steps of a training on one device, as transformers counts them."""
    training = options.training
    if training.max_steps > 0:
        return training.max_steps
    batches = math.ceil(rows / training.per_device_train_batch_size)
    return math.ceil(training.num_train_epochs * max(1, math.ceil(batches / training.gradient_accumulation_steps)))


def make(job: Job, definitions: Mapping[str, str], recorder: Recorder, folder: Path, *, steps: int | None = None) -> Made:
    """Everything up to the first step, of the first few steps alone if so asked."""
    run = parsed({**flags_of(job, definitions), "seed": job.seed}, str(folder))
    # Nothing is saved, and what is evaluated when is the study's to say.
    quiet = WatchOptions(eval_strategy="no", save_strategy="no")
    options = replace(run.options, watch=quiet)
    whole = run.method if isinstance(run.method, Whole) else None
    if whole is not None:
        options = precise(options)
    what = None if "planted" not in job.settings else planting(job.settings["planted"])
    drawn = job.settings.get("drawn")
    prepared = load(options, None, drawn=drawn) if what is None else load_planted(options, drawn)
    if what is not None:
        options = planted_options(options, prepared.model)
    rows = _rows(job, prepared.rows)
    total = steps_of(options, len(rows.train))
    if steps is not None:
        options = replace(options, training=replace(options.training, max_steps=min(steps, total)))
    prepared = replace(prepared, rows=rows)
    extra: list[TrainerCallback] = [recorder]
    begun = time.perf_counter()
    if isinstance(run.method, Method):
        prepared = attach(options, run.method, prepared, headed=what is None)
    elif whole is not None:
        extra.append(whole.callback())
    else:
        assert run.peft is not None
        model = _with_peft(options, run.peft, prepared, steps=total, seed=job.seed, planted=what is not None)
        extra += contestants.callbacks(model)
        prepared = replace(prepared, model=model)
    spent = time.perf_counter() - begun
    # The order of rows and dropout are the same for all contestants, whatever each has drawn for its start.
    set_seed(job.seed)
    if what is None:
        trainer = make_trainer(options, prepared.task, prepared.base, prepared.model, rows, extra)
    else:
        trainer = planted_trainer(options, what, prepared, prepared.model, extra)
    begun = time.perf_counter()
    if isinstance(run.method, Method):
        calibrate_for(trainer, prepared.adapted, options.adapter.calibration_batches)
    spent += time.perf_counter() - begun
    return Made(run=replace(run, options=options), steps=total, prepared=prepared, trainer=trainer, whole=whole, seconds=spent)


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
