"""What a run needs before its first step: the data, the task, the frozen model with its adapter."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, Trainer, set_seed

import paring
from paring.attach.find import config_of
from paring.cli.console import say
from paring.cli.data.read import ROW, held_out_split, read
from paring.cli.data.task import Task, infer
from paring.cli.flags import listed
from paring.cli.run.base import Base, check_folder, load_base
from paring.cli.run.checkpoints import check_targets, check_task
from paring.cli.run.checks import targets
from paring.cli.run.heads import start_at_mean, take_heads
from paring.cli.run.options import DataOptions, TrainOptions
from paring.cli.run.trainer import Rows
from paring.core.errors import DataError, SettingError
from paring.method import Method
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Share


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that is ready to be trained.

    Attributes:
        task: what is learnt.
        rows: to train on, and to evaluate on.
        base: the model as it was loaded, and its tokenizer.
        model: what is trained: the model with an adapter, or the model itself.
        ranks: those of all modules at the start.
    """

    task: Task
    rows: Rows
    base: Base
    model: PeftModel | PreTrainedModel
    ranks: int = 0

    @property
    def adapted(self) -> PeftModel:
        """The model with its adapter, where there is one."""
        assert isinstance(self.model, PeftModel)
        return self.model


def load(options: TrainOptions, resume: Path | None, *, drawn: int | None = None) -> Prepared:
    """Read the data, tell the task, load the model.

    Args:
        options: all options of the run.
        resume: the checkpoint that the run goes on from, to which all of this must fit.
        drawn: as for :func:`split`.

    Raises:
        ParingError: bad options, data or model.
    """
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
    rows, held_out, origin = split(rows, data, options.training.seed, drawn)
    say(f"task: {task.describe()} (--task, --text_columns and --label_column say otherwise)")
    if task.kind == "causal-lm" and (unread := [name for name in rows.column_names if name not in (*task.texts, ROW)]):
        more = " (--text_columns PROMPT,COMPLETION reads two)" if task.form == "text" else ""
        say(f"columns that are not read: {', '.join(unread)}{more}")
    say(f"data: {len(rows)} rows to train on, {len(held_out) if held_out is not None else 'none'} to evaluate on")
    set_seed(options.training.seed)
    base = load_base(options.model, task, options.training.seed)
    if template is not None:
        base.tokenizer.chat_template = template
    parts = Rows(train=rows, held_out=held_out, origin=origin)
    if options.adapter.init_adapter is None:  # whose head it may start with
        start_at_mean(base, task, parts)
    return Prepared(task=task, rows=parts, base=base, model=base.model)


def prepare(options: TrainOptions, method: Method, resume: Path | None) -> Prepared:
    """Read the data, tell the task, load the model, attach the adapter.

    Args:
        options: all options of the run.
        method: how modules are adapted.
        resume: the checkpoint that the run goes on from, to which all of this must fit.

    Raises:
        ParingError: bad options, data or model.
    """
    found = attach(options, method, load(options, resume))
    if resume is not None:
        check_targets(resume, config_of(found.adapted).target_modules)
    return found


def attach(options: TrainOptions, method: Method, loaded: Prepared, *, headed: bool = True) -> Prepared:
    """The same with the adapter on the model.

    Args:
        options: all options of the run.
        method: how modules are adapted.
        loaded: the model.
        headed: whether it has the head of its task.

    Raises:
        ParingError: modules that cannot be adapted.
    """
    base, task = loaded.base, loaded.task
    wanted = targets(options.adapter.target_modules)
    if options.adapter.init_adapter is not None:
        start = paring.read(options.adapter.init_adapter)
        if not take_heads(base, start, options.adapter.init_adapter, task):
            start_at_mean(base, task, loaded.rows)
        if wanted == "all-linear":
            wanted = [path for path, rank in start.ranks.items() if rank]
            say(f"adapter: on the {len(wanted)} modules that {options.adapter.init_adapter!r} has (--target_modules says otherwise)")
    model = paring.adapt(
        base.model,
        method,
        target_modules=wanted,
        exclude_modules=None if options.adapter.exclude_modules is None else targets(options.adapter.exclude_modules),
        modules_to_save=listed(options.adapter.modules_to_save),
        task_type=task.task_type if headed else None,
        seed=options.training.seed,
    )
    # The very commit, where the model came from the hub: a branch may move before the adapter is loaded again.
    model.peft_config["default"].revision = vars(base.model.config).get("_commit_hash") or options.model.model_revision
    ranks = sum(factors.rank for factors in paring.snapshot(model).modules.values())
    return replace(loaded, model=model, ranks=ranks)


def read_template(path: Path) -> str:
    """The text of a chat template.

    Raises:
        SettingError: no such file, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"--chat_template_path {str(path)!r} cannot be read ({error}); give a Jinja file in UTF-8.") from error


def has_split(options: DataOptions) -> bool:
    """Whether the data have rows of their own to evaluate on, so that none are held out of those to train on."""
    return options.eval_dataset_name is not None or _own_split(options) is not None


def _own_split(options: DataOptions) -> str | None:
    return options.dataset_test_split or held_out_split(options.dataset_name, options.dataset_config)


def split(rows: Dataset, options: DataOptions, seed: int, drawn: int | None = None) -> tuple[Dataset, Dataset | None, str]:
    """The rows to train on, those to evaluate on, and where the latter come from.

    Args:
        rows: to train on, and to hold some out of where there is nothing else to evaluate on.
        options: of the data.
        seed: of what is drawn.
        drawn: the seed of the rows to evaluate on, where that is another one, so that runs with other seeds have the same.

    Raises:
        DataError: something cannot be read, or is too small to split.
    """
    drawn = seed if drawn is None else drawn
    held_out: Dataset | None = None
    origin = "evaluation"
    if options.eval_dataset_name is not None:
        name = options.dataset_test_split or held_out_split(options.eval_dataset_name) or options.dataset_train_split
        held_out = read(options.eval_dataset_name, name, texts=listed(options.text_columns))
    else:
        found = _own_split(options)
        if found is not None:
            held_out = read(options.dataset_name, found, options.dataset_config, listed(options.text_columns))
    if held_out is None and options.eval_share != 0.0:
        if not 0.0 < options.eval_share < 1.0:
            raise SettingError(f"--eval_share {options.eval_share}: give a share of the rows between 0 and 1; 0 evaluates on none.")
        if len(rows) < 2:
            raise DataError("A single row cannot be split into training and evaluation; give more rows, or --eval_share 0.")
        parts = rows.train_test_split(test_size=max(1, round(options.eval_share * len(rows))), seed=drawn)
        rows, held_out, origin = parts["train"], parts["test"], "training"
    if held_out is not None:
        held_out = _some(held_out, options.max_eval_samples, drawn)
    return _some(rows, options.max_train_samples, seed), held_out, origin


def _some(rows: Dataset, count: int | None, seed: int) -> Dataset:
    return rows if count is None or count >= len(rows) else rows.shuffle(seed=seed).select(range(count))


def describe(trainer: Trainer, prepared: Prepared, method: Method) -> None:
    """Say what is about to be trained."""
    model, base, total = prepared.model, prepared.base, prepared.ranks
    adapter = paring.snapshot(model)
    ranks = f"{total} ranks, " if total else ""
    say(
        f"model: {method.about.title} on {len(adapter.updates)} modules, {ranks}{adapter.parameters:,} adapter parameters"
        + (f", {adapter.head_parameters:,} in a {'new' if base.unset else 'found'} head" if adapter.heads else "")
        + f"; {where(trainer)}"
    )
    if isinstance(method, Spectral) and method.budget.known and method.budget != Share(share=1.0):
        start = adapter.parameters
        if method.budget.parameters(start) >= start:
            say(f"budget: no smaller than the {start:,} parameters that the adapter starts with, so nothing will be cut")


def where(trainer: Trainer) -> str:
    """On what, and in which precision, is computed."""
    return f"{trainer.args.device.type}{', bf16' if trainer.args.bf16 else ', fp16' if trainer.args.fp16 else ''}"
