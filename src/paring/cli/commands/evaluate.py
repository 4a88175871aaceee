"""``paring eval``: the metrics of an exported adapter, or of a whole model, on a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paring.cli.flags import listed, option, simple
from paring.cli.run.options import DType
from paring.core.errors import DataError, near

if TYPE_CHECKING:
    from paring.cli.data.task import Task
    from paring.cli.run.loaded import Ready


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring eval``."""

    adapter: str = option("folder or hub id of an exported adapter, or folder of a whole model", positional=True)
    dataset_name: str = option("a file, a folder with data files, or a hub id", positional=True)
    dataset_config: str | None = option("configuration of a hub data set", default=None)
    dataset_test_split: str | None = option("the split; by default validation, dev or test if there is one, else train", default=None)
    text_columns: str | list[str] | None = option("the column with the text, or two for a pair", default=None)
    label_column: str | None = option("the column with the label", default=None)
    model_name_or_path: str | None = option("the base model, if not the one that the adapter names", default=None)
    dtype: DType = option("precision of the base's weights", default="auto")
    max_length: int | None = option("tokens a row is cut at; by default as in training, 256, or 1024 for causal-lm", default=None)
    batch_size: int = option("rows at a time", default=32)


def run(options: Options) -> int:
    """Evaluate, and print the metrics as JSON."""
    import torch

    from paring.cli.console import calm_libraries, say
    from paring.cli.data.encode import columns_of, for_language, labelled, row_numbers
    from paring.cli.data.metrics import score
    from paring.cli.data.read import ROW, held_out_split, read
    from paring.cli.data.task import columns_for
    from paring.cli.run.arguments import length_limit
    from paring.cli.run.loaded import load_any
    from paring.cli.run.outputs import check_chat, check_counts, language_scores, logits

    calm_libraries()
    check_counts(max_length=options.max_length, batch_size=options.batch_size)
    split = options.dataset_test_split or held_out_split(options.dataset_name, options.dataset_config) or "train"
    rows = read(options.dataset_name, split, options.dataset_config, listed(options.text_columns))
    trained = load_any(options.adapter, base=options.model_name_or_path, dtype=options.dtype)
    names = [name for name in rows.column_names if name != ROW]
    if trained.kind != "causal-lm" and options.label_column is None:
        _check_labelled(names, trained)
    found = columns_for(names, trained.kind, listed(options.text_columns), options.label_column)
    task = trained.task(found)
    limit = length_limit(options.max_length, trained.kind, trained.tokenizer.model_max_length, trained.model.config)
    say(f"evaluating {len(rows)} rows: {task.describe()}")
    if trained.kind == "causal-lm":
        if task.form == "chat" or isinstance(rows[task.texts[0]][0], list):
            check_chat(trained.tokenizer, options.adapter)
        metrics = language_scores(trained.joined(), for_language(rows, task, trained.tokenizer, "evaluation"), limit)
    else:
        if trained.kind == "classification":
            _check_known(task, columns_of(rows, task, "evaluation")[-1], row_numbers(rows))
        texts, labels = labelled(rows, task, "evaluation")
        scores = logits(trained.joined(), trained.tokenizer, texts, limit, options.batch_size)
        metrics = score(trained.kind, scores.numpy(), torch.tensor(labels).numpy())
    print(json.dumps({"rows": len(rows), **metrics}, indent=2))
    return 0


def _check_labelled(columns: Sequence[str], trained: Ready) -> None:
    """Refuse data in which no column can be the label; the sentence of training names a flag that is not there when evaluating.

    Raises:
        DataError: says what was looked for.
    """
    from paring.cli.data.task import LABELS

    if not any(name in columns for name in LABELS):
        raise DataError(
            f"The data has no column with labels (looked for {', '.join(LABELS)}), which an adapter for {trained.kind} is scored by; its "
            f"columns: {', '.join(columns)}. Name it with --label_column."
        )


def _check_known(task: Task, cells: Sequence[Any], rows: Sequence[int]) -> None:
    """Refuse labels that the adapter was not trained on; it is too late to add them to the training data.

    Raises:
        DataError: names them.
    """
    known = {*task.names, *task.values}
    unseen: dict[str, int] = {}
    for row, cell in zip(rows, cells, strict=True):
        if cell is not None and cell != "" and str(cell) not in known:
            unseen.setdefault(str(cell), row)
    if unseen:
        shown = ", ".join(f"{value!r} (row {row})" for value, row in list(unseen.items())[:5])
        raise DataError(
            f"The data has labels that the adapter does not know: {shown}; it knows {', '.join(task.names[:6])}"
            f"{', ...' if len(task.names) > 6 else ''}.{near(next(iter(unseen)), task.names)} Spell them so, leave these rows out, or name "
            "another --label_column."
        )


COMMAND = simple("eval", "score an exported adapter or a whole model on a data set", Options, run)
