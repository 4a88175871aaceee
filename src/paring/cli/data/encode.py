"""Rows as token ids: texts and pairs for a head, conversations with the loss on the answers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from paring.cli.data.read import ROW
from paring.cli.data.task import Task, indices, numbers
from paring.core.errors import DataError, near

IGNORED = -100
"""The label of a token that does not count in the loss."""


def for_head(rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, where: str) -> Dataset:
    """Texts (or pairs) with their labels, tokenised; padding is left to the collator.

    Raises:
        DataError: a column is missing, a text is null, or a label does not fit the task.
    """
    texts, labels = labelled(rows, task, where)

    def tokenise(batch: Mapping[str, list[str]]) -> Mapping[str, Any]:
        encoded: Mapping[str, Any] = tokenizer(*(batch[name] for name in fields), truncation=True, max_length=max_length)
        return encoded

    fields = ["first", "second"][: len(texts)]
    table = Dataset.from_dict({**dict(zip(fields, texts, strict=True)), "labels": labels})
    return table.map(tokenise, batched=True, remove_columns=fields)


def labelled(rows: Dataset, task: Task, where: str) -> tuple[list[list[str]], list[int] | list[float]]:
    """The columns of texts, and the labels.

    Raises:
        DataError: a column is missing, a text is null, or a label does not fit the task.
    """
    columns, at = columns_of(rows, task, where), row_numbers(rows)
    labels = labels_of(task, columns[-1], where, at)
    return [texts_of(column, name, where, at) for column, name in zip(columns, task.texts, strict=False)], labels


def for_language(rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, where: str) -> Dataset:
    """Rows as token ids with the labels of those that count in the loss, as TRL's SFTTrainer takes them; not cut yet.

    Raises:
        DataError: a column is missing, a cell is null or malformed, or the chat template cannot say which tokens are answers.
    """
    columns = columns_of(rows, task, where)
    pairs: list[tuple[list[int], list[int]]] = []
    for row, *cells in zip(row_numbers(rows), *columns, strict=True):
        place = f"row {row} of the {where} data"
        if task.form == "chat":
            pairs.append(conversation(cells[0], tokenizer, place))
        elif isinstance(cells[0], list):
            pairs.append(conversation([*cells[0], *cells[1]], tokenizer, place, first_answer=len(cells[0])))
        else:
            texts = [texts_of([cell], name, where, [row])[0] for cell, name in zip(cells, task.texts, strict=True)]
            pairs.append(_continued("" if len(texts) == 1 else texts[0], texts[-1], tokenizer))
    return Dataset.from_dict({"input_ids": [ids for ids, _ in pairs], "labels": [labels for _, labels in pairs]})


def _continued(prompt: str, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """A prompt with its continuation and the end token; only what follows the prompt counts in the loss."""
    ids = list(tokenizer(prompt + text)["input_ids"])
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    if not prompt:
        return ids, list(ids)
    opening = list(tokenizer(prompt)["input_ids"])
    # A token may span the end of the prompt and the start of its continuation; it counts as continuation.
    start = common(opening, ids)
    return ids, [IGNORED] * start + ids[start:]


def conversation(messages: Any, tokenizer: PreTrainedTokenizerBase, where: str, first_answer: int = 0) -> tuple[list[int], list[int]]:
    """A conversation's tokens, and the same with everything but the assistant's answers replaced by -100.

    An answer is what the template adds to the conversation before it, opened for the assistant; this needs no marks inside the
    template, only that a longer conversation begins with the tokens of a shorter one.

    Args:
        messages: mappings with ``role`` and ``content``.
        tokenizer: has the template.
        where: the row, for errors.
        first_answer: answers before this turn are part of the prompt.

    Raises:
        DataError: no template, no list of messages, no answer in it, or a template that rewrites earlier turns.
    """
    if tokenizer.chat_template is None:
        raise DataError("The tokenizer has no chat template, so conversations cannot be laid out; give one with --chat_template_path.")
    fits = isinstance(messages, Sequence) and all(isinstance(item, Mapping) and "role" in item and "content" in item for item in messages)
    if not fits or not messages:
        raise DataError(f"The conversation in {where} is no list of messages with 'role' and 'content': {str(messages)[:80]!r}.")
    ids = _rendered(messages, tokenizer, opened=False)
    labels = [IGNORED] * len(ids)
    for turn in range(first_answer, len(messages)):
        if messages[turn]["role"] != "assistant":
            continue
        earlier = _rendered(messages[:turn], tokenizer, opened=False) if turn else []
        through = _rendered(messages[: turn + 1], tokenizer, opened=False)
        if ids[: len(through)] != through or through[: len(earlier)] != earlier:
            raise DataError(
                f"The chat template lays out earlier turns of {where} differently once later ones follow, so its answers cannot be told "
                "from the rest. Split the conversations so that each ends with its only answer, or give a plainer --chat_template_path."
            )
        # A token may span the end of the opening and the start of the answer; it counts as answer.
        start = max(common(_rendered(messages[:turn], tokenizer, opened=True), through) if turn else 0, len(earlier))
        labels[start : len(through)] = through[start:]
    if all(label == IGNORED for label in labels):
        raise DataError(f"The conversation in {where} has no answer of the role 'assistant', so there is nothing to learn from it.")
    return ids, labels


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _rendered(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, opened: bool) -> list[int]:
    text = tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, add_generation_prompt=opened)
    assert isinstance(text, str)
    # The template writes the special tokens itself.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def row_numbers(rows: Dataset) -> list[int]:
    """Where each row stands in its file, counted from 1."""
    return list(rows[ROW]) if ROW in rows.column_names else list(range(1, len(rows) + 1))


def labels_of(task: Task, cells: Sequence[Any], where: str, rows: Sequence[int]) -> list[int] | list[float]:
    """Class indices, or numbers for a regression.

    Raises:
        DataError: a label that the task does not know, or none.
    """
    return indices(task, cells, where, rows) if task.kind == "classification" else numbers(cells, task.label or "", where, rows)


def texts_of(column: Sequence[Any], name: str, where: str, rows: Sequence[int]) -> list[str]:
    """A column of texts; numbers are written out.

    Raises:
        DataError: a cell is null.
    """
    for row, cell in zip(rows, column, strict=True):
        if cell is None:
            raise DataError(f"Row {row} of the {where} data has no text in column {name!r}; fill it, or leave the row out.")
    return [str(cell) for cell in column]


def columns_of(rows: Dataset, task: Task, where: str) -> list[list[Any]]:
    """The cells of the columns that a task reads, the labels last.

    Raises:
        DataError: a column is missing.
    """
    wanted = [*task.texts, *([task.label] if task.label else [])]
    known = [name for name in rows.column_names if name != ROW]
    for name in wanted:
        if name not in known:
            raise DataError(f"The {where} data has no column {name!r}.{near(name, known)} Its columns: {', '.join(known)}.")
    return [list(rows[name]) for name in wanted]
