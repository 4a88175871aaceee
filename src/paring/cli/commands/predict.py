"""``paring predict``: texts in, one line of JSON a text out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paring.cli.flags import listed, option, simple
from paring.cli.run.options import DType
from paring.core.errors import DataError, SettingError

if TYPE_CHECKING:
    from paring.cli.run.loaded import Ready


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring predict``."""

    adapter: str = option("folder or hub id of an exported adapter, or folder of a whole model", positional=True)
    texts: list[str] = option("texts; without any, and without --file, the lines of stdin. A tab parts a pair", positional=True, many=True)
    file: str | None = option("a .txt file with a text a line, or a .tsv, .csv, .jsonl, .parquet file with --text_columns", default=None)
    text_columns: str | list[str] = option("the column with the text, or two for a pair", default="text")
    model_name_or_path: str | None = option("the base model, if not the one that the adapter names", default=None)
    dtype: DType = option("precision of the base's weights", default="auto")
    max_length: int | None = option("tokens a text is cut at; by default as in training, 256", default=None)
    batch_size: int = option("texts at a time", default=32)
    max_new_tokens: int = option("tokens to write (causal-lm)", default=64)
    chat: bool = option("lay each text out as what a user says in a chat (causal-lm)", default=False)


def run(options: Options) -> int:
    """Predict."""
    from paring.cli.console import calm_libraries

    calm_libraries()
    texts = _texts(options)
    if not texts:
        raise DataError("There are no texts to predict; give them as words on the command line, with --file, or on stdin, one a line.")
    from paring.cli.run.loaded import load_any
    from paring.cli.run.outputs import check_counts

    check_counts(max_length=options.max_length, batch_size=options.batch_size, max_new_tokens=options.max_new_tokens)
    if options.chat:
        _check_chat(options)
    trained = load_any(options.adapter, base=options.model_name_or_path, dtype=options.dtype)
    for line in _lines(trained, texts, options):
        print(json.dumps(line, ensure_ascii=False), flush=True)
    return 0


def _check_chat(options: Options) -> None:
    """What --chat needs, told before the model is loaded: an adapter of a language model, and a chat template.

    Raises:
        SettingError: one of them is not there.
    """
    import paring
    from paring.cli.run.base import load_tokenizer
    from paring.cli.run.output import check_exported
    from paring.cli.run.outputs import check_chat
    from paring.cli.run.pair import class_of, is_model, read_config

    base: str | None = options.adapter
    if is_model(options.adapter):
        _, task_type = class_of(read_config(options.adapter), options.adapter)
    else:
        check_exported(options.adapter)
        metadata = paring.read(options.adapter).metadata
        task_type, base = metadata.task_type, metadata.base_model
    if task_type == "SEQ_CLS":
        raise SettingError(f"--chat is for language models, and {options.adapter!r} has a head that labels or scores texts; leave it out.")
    own = (Path(options.adapter) / "tokenizer_config.json").is_file()
    name = options.adapter if own else options.model_name_or_path or base
    # Without a base that is there, loading it says so.
    if name is not None and (own or Path(name).is_dir()):
        check_chat(load_tokenizer(name), options.adapter)


def _texts(options: Options) -> list[tuple[str, ...]]:
    if options.texts:
        if options.file is not None:
            raise SettingError(f"There are texts on the command line and --file {options.file}; give one or the other.")
        for number, text in enumerate(options.texts, start=1):
            if not all(part.strip() for part in text.split("\t")):
                half = " on one side of its tab" if text.strip() else ""
                raise DataError(f"Text {number} of the command line ({text!r}) is empty{half}; give some words, or leave it out.")
        return [tuple(text.split("\t")) for text in options.texts]
    if options.file is None:
        return [tuple(line.rstrip("\r\n").split("\t")) for line in sys.stdin if line.strip()]
    from paring.cli.data.encode import row_numbers, texts_of
    from paring.cli.data.read import read

    columns = listed(options.text_columns) or []
    rows = read(options.file, "train", texts=columns)
    for name in columns:
        if name not in rows.column_names:
            raise DataError(
                f"{options.file!r} has no column {name!r}, only {', '.join(rows.column_names[:-1])}; name it with --text_columns."
            )
    where = Path(options.file).name
    return list(zip(*(texts_of(list(rows[name]), name, where, row_numbers(rows)) for name in columns), strict=True))


def _lines(trained: Ready, texts: Sequence[tuple[str, ...]], options: Options) -> Iterator[dict[str, Any]]:
    from paring.cli.run.arguments import length_limit
    from paring.cli.run.outputs import check_chat, continuations, logits

    if {len(text) for text in texts} not in ({1}, {2}):
        raise DataError("Give either single texts, or two texts with a tab between them, the same for all.")
    if options.chat:
        check_chat(trained.tokenizer, options.adapter)
    model = trained.joined()
    if trained.kind == "causal-lm":
        prompts = [text[0] for text in texts]
        written = continuations(model, trained.tokenizer, prompts, options.max_new_tokens, options.chat)
        yield from ({"prompt": prompt, "completion": completion} for prompt, completion in zip(prompts, written, strict=True))
        return
    limit = length_limit(options.max_length, trained.kind, trained.tokenizer.model_max_length, trained.model.config)
    scores = logits(model, trained.tokenizer, list(zip(*texts, strict=True)), limit, options.batch_size)
    for text, row in zip(texts, scores, strict=True):
        said = {"text": text[0]} if len(text) == 1 else {"text": text[0], "pair": text[1]}
        if trained.kind == "regression":
            yield {**said, "value": float(row[0])}
            continue
        shares = row.softmax(-1).tolist()
        best = max(range(len(shares)), key=shares.__getitem__)
        scored = {name: round(share, 6) for name, share in zip(trained.names, shares, strict=True)}
        yield {**said, "label": trained.names[best], "score": round(shares[best], 6), "scores": scored}


COMMAND = simple("predict", "predict texts with an exported adapter or a whole model, as lines of JSON", Options, run)
