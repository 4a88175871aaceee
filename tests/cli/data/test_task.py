"""What a data set is for, told by its columns and labels."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from paring.cli.data.task import Task, indices, infer
from paring.core.errors import DataError


def rows(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


@pytest.mark.parametrize(
    ("data", "kind", "texts", "names"),
    [
        (rows(text=["a", "b"], label=["x", "y"]), "classification", ("text",), ("x", "y")),
        (rows(text=["a", "b", "c"], label=["10", "9", "10"]), "classification", ("text",), ("9", "10")),
        (rows(sentence1=["a", "b"], sentence2=["c", "d"], label=[1, 0]), "classification", ("sentence1", "sentence2"), ("0", "1")),
        (rows(text=["a", "b"], label=["1.5", "2"]), "regression", ("text",), ()),
        (rows(review=["a", "b"], score=[0.5, 1.0]), "regression", ("review",), ()),
        (rows(text=["a", "b"], label=[True, False]), "classification", ("text",), ("False", "True")),
        (rows(messages=[[{"role": "user", "content": "a"}]]), "causal-lm", ("messages",), ()),
        (rows(prompt=["a"], completion=["b"], label=[1]), "causal-lm", ("prompt", "completion"), ()),
        (rows(text=["a"]), "causal-lm", ("text",), ()),
    ],
)
def test_the_task_follows_from_the_data(data: Dataset, kind: str, texts: tuple[str, ...], names: tuple[str, ...]) -> None:
    task = infer(data)
    assert (task.kind, task.texts, task.names) == (kind, texts, names)


def test_the_user_has_the_last_word() -> None:
    data = rows(text=["a", "b", "c"], title=["d", "e", "f"], stars=["1", "2", "1"])
    task = infer(data, label="stars", texts=["title", "text"], names=["bad", "good"])
    assert (task.texts, task.names, task.id2label) == (("title", "text"), ("bad", "good"), {0: "bad", 1: "good"})
    assert infer(data, kind="regression", label="stars").kind == "regression"
    assert infer(data, kind="causal-lm", texts=["title"]).form == "text"


def test_names_of_a_class_label_are_kept() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "neu", "pos"])})
    task = infer(Dataset.from_dict({"text": ["a", "b"], "label": [0, 2]}, features=features))
    assert task.names == ("neg", "neu", "pos")
    assert indices(task, [2, 0], "evaluation") == [2, 0]


def test_labels_may_be_spelled_by_name_or_as_in_the_data() -> None:
    task = Task(kind="classification", texts=("text",), label="label", names=("bad", "good"), values=("0", "1"))
    assert indices(task, ["good", "0", 1], "evaluation") == [1, 0, 1]
    with pytest.raises(DataError, match=r"'fair' \(row 9\)"):
        indices(task, ["fair"], "evaluation", [9])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (rows(text=["a", "b"], label=["x", None]), "Row 2 has no label"),
        (rows(text=["a", "b"], label=["x", "x"]), "same label"),
        (rows(text=[str(i) for i in range(60)], label=[f"id{i}" for i in range(60)]), "no classification"),
        (rows(text=["a", "b"], mood=["x", "y"]), "no column with labels"),
        (rows(words=["a", "b"], label=["x", "y"]), "No column with text"),
    ],
)
def test_data_that_makes_no_task(data: Dataset, words: str) -> None:
    with pytest.raises(DataError, match=words):
        infer(data)
