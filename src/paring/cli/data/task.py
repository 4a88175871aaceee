"""What a data set is for: told by its columns and labels, unless the user says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from datasets import ClassLabel, Dataset

from paring.cli.data.read import ROW
from paring.core.errors import DataError, near

Kind: TypeAlias = Literal["classification", "regression", "causal-lm"]
Form: TypeAlias = Literal["text", "prompt-completion", "chat"]

PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"), ("question", "sentence"))
SINGLES = ("text", "sentence", "content", "review", "tweet", "question", "utterance")
ANSWERED = (("question", "answer"), ("instruction", "output"), ("instruction", "response"), ("input", "output"), ("prompt", "response"))
LABELS = ("label", "labels", "class", "target", "intent", "sentiment", "score")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt from a data set.

    Attributes:
        kind: the head that is trained.
        texts: one column, or two for a pair; for causal-lm the columns of ``form``.
        label: the column with the label; ``None`` for causal-lm.
        names: the labels by class index, as they stand in the data or as the user named them.
        values: the same as they stand in the data.
        form: how a causal-lm row is laid out.
    """

    kind: Kind
    texts: tuple[str, ...]
    label: str | None = None
    names: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    form: Form = "text"

    @property
    def task_type(self) -> str:
        """PEFT's name of the task."""
        return "CAUSAL_LM" if self.kind == "causal-lm" else "SEQ_CLS"

    @property
    def id2label(self) -> dict[int, str]:
        """Class index to label, for the model's configuration."""
        return dict(enumerate(self.names))

    def describe(self) -> str:
        """One line for the user."""
        columns = " + ".join(map(repr, self.texts))
        if self.kind == "classification":
            return f"classification of {columns} into the {len(self.names)} labels of column {self.label!r}: {_shortened(self.names)}"
        if self.kind == "regression":
            return f"regression of {columns} onto the numbers of column {self.label!r}"
        loss = {"text": "loss on all tokens", "prompt-completion": "loss on the completion", "chat": "loss on the assistant's answers"}
        return f"causal-lm, {self.form} from {columns}, {loss[self.form]}"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that a task reads.

    Attributes:
        texts: one column, or two for a pair; for causal-lm those of ``form``.
        label: the column with the label; ``None`` for causal-lm.
        form: how a causal-lm row is laid out.
    """

    texts: tuple[str, ...]
    label: str | None = None
    form: Form = "text"


def columns_for(
    columns: Sequence[str], kind: Kind | Literal["auto"], texts: Sequence[str] | None = None, label: str | None = None
) -> Columns:
    """The columns of a data set that a task of this kind reads; with ``"auto"``, causal-lm's if no column can be a label.

    Raises:
        DataError: a column that was named is missing, or none fits.
    """
    for name in (*(texts or ()), *([label] if label else ())):
        if name not in columns:
            raise DataError(f"The data has no column {name!r}.{near(name, columns)} Its columns: {', '.join(columns)}.")
    if texts is not None and len(texts) not in (1, 2):
        raise DataError(f"text_columns={list(texts)}: give one column, or two for a pair.")
    if kind == "causal-lm" or (kind == "auto" and label is None and _no_labels(columns)):
        return _causal(columns, texts)
    found = label or next((name for name in LABELS if name in columns), None)
    if found is None:
        raise DataError(
            f"The data has no column with labels (looked for {', '.join(LABELS)}); its columns: {', '.join(columns)}. "
            "Name it with --label_column; or train a language model with --task causal-lm, on one column of text (--text_columns TEXT) or "
            f"on completions of prompts (--text_columns PROMPT,COMPLETION{_example(columns)})."
        )
    if texts is not None and found in texts:
        raise DataError(
            f"text_columns={','.join(texts)} has column {found!r}, which is the label to be learnt; leave it out there, or name another "
            "--label_column."
        )
    return Columns(texts=tuple(texts) if texts is not None else _texts(columns, found), label=found)


def _example(columns: Sequence[str]) -> str:
    return next((f", such as {prompt},{answer}" for prompt, answer in ANSWERED if prompt in columns and answer in columns), "")


def infer(
    rows: Dataset,
    *,
    kind: Kind | Literal["auto"] = "auto",
    texts: Sequence[str] | None = None,
    label: str | None = None,
    names: Sequence[str] | None = None,
    source: str | None = None,
) -> Task:
    """The task of the training rows.

    Args:
        rows: the rows.
        kind: what to learn; ``"auto"`` tells by columns and labels.
        texts: the columns with text.
        label: the column with the label.
        names: names for the labels, in their order.
        source: where the rows are from, for errors.

    Raises:
        DataError: a column that was named is missing, no column fits, or the labels make no task.
    """
    found = columns_for([name for name in rows.column_names if name != ROW], kind, texts, label)
    if found.label is None:
        return Task(kind="causal-lm", texts=found.texts, form=found.form)
    if kind == "regression" or (kind == "auto" and _numbers(rows, found.label)):
        numbers(rows[found.label], found.label, "training")
        return Task(kind="regression", texts=found.texts, label=found.label)
    values = _values(rows, found.label, source)
    names = _names(rows, found.label, values, names)
    return Task(kind="classification", texts=found.texts, label=found.label, names=tuple(names), values=values)


def _no_labels(columns: Sequence[str]) -> bool:
    conversation = "messages" in columns or ("prompt" in columns and "completion" in columns)
    return conversation or (not any(name in columns for name in LABELS) and len(columns) == 1 and columns[0] in SINGLES)


def _causal(columns: Sequence[str], texts: Sequence[str] | None) -> Columns:
    if texts is not None:
        return Columns(texts=tuple(texts), form="prompt-completion" if len(texts) == 2 else "chat" if texts[0] == "messages" else "text")
    if "messages" in columns:
        return Columns(texts=("messages",), form="chat")
    if "prompt" in columns and "completion" in columns:
        return Columns(texts=("prompt", "completion"), form="prompt-completion")
    single = next((name for name in SINGLES if name in columns), None)
    if single is None:
        raise DataError(
            f"causal-lm needs a column 'messages', the columns 'prompt' and 'completion', or a column 'text'; found "
            f"{', '.join(columns)}. Name one with --text_columns, or two for prompt and completion."
        )
    return Columns(texts=(single,))


def _texts(columns: Sequence[str], label: str) -> tuple[str, ...]:
    for pair in PAIRS:
        if pair[0] in columns and pair[1] in columns:
            return pair
    single = next((name for name in SINGLES if name in columns and name != label), None)
    if single is None:
        raise DataError(
            f"No column with text was found (looked for {', '.join(SINGLES)} and pairs such as sentence1, sentence2); the "
            f"columns are {', '.join(columns)}. Name it with --text_columns."
        )
    return (single,)


def _numbers(rows: Dataset, label: str) -> bool:
    """Whether the labels are measurements: numbers of which some have a fractional part, or that are stored as floats."""
    feature = rows.features[label]
    if isinstance(feature, ClassLabel):
        return False
    if str(feature.dtype).startswith(("float", "double")):
        return True
    if feature.dtype != "string":
        return False
    cells = list(rows[label])
    return all(_number(cell) is not None for cell in cells) and any("." in cell for cell in cells)


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _values(rows: Dataset, label: str, source: str | None) -> tuple[str, ...]:
    """The distinct labels as text, numbers by size and words by alphabet; a ClassLabel's in its own order."""
    feature = rows.features[label]
    cells = list(rows[label])
    for row, cell in enumerate(cells, start=1):
        if _missing(cell) or (isinstance(feature, ClassLabel) and cell < 0):
            place = f" of {source!r}" if source else ""
            raise DataError(f"Row {row}{place} has no label in column {label!r}; label it, or leave the row out.")
    if isinstance(feature, ClassLabel):
        return tuple(str(index) for index in range(feature.num_classes))
    distinct = {str(cell) for cell in cells}
    numbers = {value: _number(value) for value in distinct}
    if all(number is not None for number in numbers.values()):
        ordered = sorted(distinct, key=lambda value: (numbers[value] or 0.0, value))
    else:
        ordered = sorted(distinct)
    if len(ordered) < 2:
        raise DataError(f"All rows have the same label {ordered[0]!r} in column {label!r}; there is nothing to tell apart.")
    if len(ordered) > 20 and len(ordered) > 0.5 * len(cells):
        raise DataError(
            f"Column {label!r} holds {len(ordered)} different labels in {len(cells)} rows, which looks like no classification. "
            "Name the right column with --label_column, or give --task regression if they are measurements."
        )
    return tuple(ordered)


def _names(rows: Dataset, label: str, values: Sequence[str], names: Sequence[str] | None) -> tuple[str, ...]:
    feature = rows.features[label]
    if names is None:
        return tuple(feature.names) if isinstance(feature, ClassLabel) else tuple(values)
    if len(names) != len(values) or len(set(names)) != len(names):
        raise DataError(f"label_names={list(names)}: give {len(values)} different names, in the order of the labels {_shortened(values)}.")
    return tuple(names)


def indices(task: Task, cells: Sequence[Any], where: str, rows: Sequence[int] | None = None) -> list[int]:
    """Labels as class indices.

    Args:
        task: knows the labels.
        cells: what stands in the label column.
        where: which data, for errors.
        rows: the rows' numbers, for errors; by default from 1.

    Raises:
        DataError: a label that the training rows do not have, or none.
    """
    # A test file may spell the labels by their names as well.
    known: Mapping[str, int] = {**{name: i for i, name in enumerate(task.names)}, **{value: i for i, value in enumerate(task.values)}}
    found: list[int] = []
    unseen: dict[str, int] = {}
    for row, cell in zip(rows or range(1, len(cells) + 1), cells, strict=True):
        if _missing(cell):
            raise DataError(f"Row {row} of the {where} data has no label in column {task.label!r}; label it, or leave the row out.")
        if str(cell) in known:
            found.append(known[str(cell)])
        else:
            unseen.setdefault(str(cell), row)
    if unseen:
        shown = ", ".join(f"{value!r} (row {row})" for value, row in list(unseen.items())[:5])
        raise DataError(
            f"The {where} data has labels that the training data does not: {shown}; known are {_shortened(task.names)}. "
            "Add such rows to the training data, or leave them out here."
        )
    return found


def numbers(cells: Sequence[Any], label: str, where: str, rows: Sequence[int] | None = None) -> list[float]:
    """Labels of a regression; arguments as for :func:`indices`.

    Raises:
        DataError: a label that is no finite number.
    """
    found: list[float] = []
    for row, cell in zip(rows or range(1, len(cells) + 1), cells, strict=True):
        value = _number(cell)
        if value is None:
            raise DataError(f"Row {row} of the {where} data has {cell!r} in column {label!r}, where regression needs a number.")
        found.append(value)
    return found


def _shortened(names: Sequence[str], limit: int = 6) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"
