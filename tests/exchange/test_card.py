"""The model card."""

from __future__ import annotations

import pytest
import torch
import yaml

from paring.exchange.card import TASKS, model_card, rank_table
from tests.exchange.helpers import adapter


def front(card: str) -> dict[str, object]:
    """The card's front matter."""
    loaded: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return loaded


def test_front_matter() -> None:
    card = model_card(adapter({"layer.0.q": 2}, base_model="org/base", task_type="SEQ_CLS", method={"name": "sora"}), license="mit")
    head = front(card)
    assert (head["base_model"], head["library_name"], head["license"]) == ("org/base", "peft", "mit")
    assert head["pipeline_tag"] == "text-classification"
    assert {"lora", "sora"} <= set(head["tags"])  # type: ignore[call-overload]


def test_a_path_of_this_machine_is_not_published() -> None:
    card = model_card(adapter({"fc": 2}, base_model="/home/me/models/base"))
    assert "base_model" not in front(card)
    assert "/home/me" not in card


def test_ranks_by_layer_and_module() -> None:
    ranks = {f"layer.{index}.{name}": index % 3 for index in range(11) for name in ("query", "key")}
    table = rank_table(adapter({**ranks, "head": 2})).splitlines()
    assert table[0] == "| layer | `head` | `key` | `query` |" or table[0] == "| layer | `key` | `query` | `head` |"
    assert [row.split(" | ")[0] for row in table[2:]].count("| 10") == 1
    assert sum(int(cell) for row in table[2:] for cell in row.strip("| ").split("|")[1:] if cell.strip()) == sum(ranks.values()) + 2


def test_a_model_without_layers_lists_modules() -> None:
    assert rank_table(adapter({"a": 1, "b": 2})).splitlines()[2:] == ["| `a` | 1 |", "| `b` | 2 |"]


@pytest.mark.parametrize("task", [*TASKS, None])
def test_five_lines_load_it(task: str | None) -> None:
    heads = {"classifier.dense.weight": torch.ones(8, 8), "classifier.out_proj.weight": torch.ones(5, 8)}
    card = model_card(adapter({"fc": 2}, heads=heads, base_model="org/base", task_type=task, revision="v2"), command="paring train --x 1")
    code = card.split("```python\n")[1].split("\n```")[0]
    assert len(code.splitlines()) == 5
    compile(code, "card", "exec")
    assert "revision='v2'" in code
    assert ("num_labels=5" in code) == (task in ("SEQ_CLS", "TOKEN_CLS"))
    assert "paring train --x 1" in card


def test_labels_and_metrics() -> None:
    card = model_card(adapter({"fc": 2}, task_type="SEQ_CLS"), metrics={"accuracy": 0.91234}, labels=["no", "yes"])
    assert "id2label={0: 'no', 1: 'yes'}" in card
    assert "| accuracy | 0.9123 |" in card


@pytest.mark.parametrize(("base", "shown"), [("org/base", "org/base"), ("/home/me/base", "path/to/the/base/model")])
@pytest.mark.parametrize("revision", [None, "v2"])
def test_the_tokenizer_comes_from_where_it_is(base: str, shown: str, revision: str | None) -> None:
    trained = adapter({"fc": 2}, base_model=base, task_type="SEQ_CLS", revision=revision)
    pinned = "" if revision is None else f", revision={revision!r}"
    assert f"AutoTokenizer.from_pretrained({shown!r}{pinned})\n" in model_card(trained, labels=["no", "yes"])
    assert 'AutoTokenizer.from_pretrained("path/to/this/folder")\n' in model_card(trained, labels=["no", "yes"], tokenizer=True)
