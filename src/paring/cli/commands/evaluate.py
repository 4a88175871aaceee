"""``paring eval``: the metrics of an exported adapter on a data set."""

from __future__ import annotations

import json
from dataclasses import dataclass

from paring.cli.flags import listed, option, simple
from paring.cli.run.options import DType


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring eval``."""

    adapter: str = option("folder or hub id of the exported adapter", positional=True)
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
    from paring.cli.data.encode import columns_of, for_language, labels_of, row_numbers, texts_of
    from paring.cli.data.metrics import score
    from paring.cli.data.read import ROW, held_out_split, read
    from paring.cli.data.task import columns_for
    from paring.cli.run.arguments import length_limit
    from paring.cli.run.loaded import load_trained
    from paring.cli.run.outputs import language_scores, logits

    calm_libraries()
    split = options.dataset_test_split or held_out_split(options.dataset_name, options.dataset_config) or "train"
    rows = read(options.dataset_name, split, options.dataset_config)
    trained = load_trained(options.adapter, base=options.model_name_or_path, dtype=options.dtype)
    found = columns_for(
        [name for name in rows.column_names if name != ROW], trained.kind, listed(options.text_columns), options.label_column
    )
    task = trained.task(found)
    limit = length_limit(options.max_length, trained.kind, trained.tokenizer.model_max_length, trained.model.config)
    say(f"evaluating {len(rows)} rows: {task.describe()}")
    if trained.kind == "causal-lm":
        metrics = language_scores(trained.joined(), for_language(rows, task, trained.tokenizer, "evaluation"), limit)
    else:
        columns, at = columns_of(rows, task, "evaluation"), row_numbers(rows)
        labels = labels_of(task, columns[-1], "evaluation", at)
        texts = [texts_of(column, name, "evaluation", at) for column, name in zip(columns, task.texts, strict=False)]
        scores = logits(trained.joined(), trained.tokenizer, texts, limit, options.batch_size)
        metrics = score(trained.kind, scores.numpy(), torch.tensor(labels).numpy())
    print(json.dumps({"rows": len(rows), **metrics}, indent=2))
    return 0


COMMAND = simple("eval", "score an exported adapter on a data set", Options, run)
