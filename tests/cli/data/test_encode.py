"""Which tokens count in the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from paring.cli.data.encode import IGNORED, conversation, for_head, for_language
from paring.cli.data.task import Task
from paring.core.errors import DataError
from tests.cli.data.test_task import rows

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "the film was"},
    {"role": "assistant", "content": "great"},
    {"role": "user", "content": "a day"},
    {"role": "assistant", "content": "awful and grey"},
]


@pytest.fixture
def tokenizer(llama: Path) -> PreTrainedTokenizerBase:
    loaded = AutoTokenizer.from_pretrained(llama)
    assert isinstance(loaded, PreTrainedTokenizerBase)
    return loaded


def counted(tokenizer: PreTrainedTokenizerBase, labels: list[int]) -> str:
    return str(tokenizer.decode([label for label in labels if label != IGNORED]))


def test_only_answers_count_and_each_with_its_end(tokenizer: PreTrainedTokenizerBase) -> None:
    ids, labels = conversation(TALK, tokenizer, "row 1")
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(TALK, tokenize=False)
    assert counted(tokenizer, labels).replace(" ", "") == "great</s>awfulandgrey</s>"
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


def test_answers_inside_a_prompt_do_not_count(tokenizer: PreTrainedTokenizerBase) -> None:
    _, labels = conversation(TALK, tokenizer, "row 1", first_answer=3)
    assert counted(tokenizer, labels).replace(" ", "") == "awfulandgrey</s>"


def test_a_template_that_rewrites_the_past_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ messages | length }}" + str(tokenizer.chat_template)
    with pytest.raises(DataError, match="lays out earlier turns of row 7 differently"):
        conversation(TALK, tokenizer, "row 7")


@pytest.mark.parametrize("messages", [[], "hello", [{"role": "user"}], None])
def test_what_is_no_conversation(messages: object, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="no list of messages"):
        conversation(messages, tokenizer, "row 1")


def test_completions_count_and_prompts_do_not(tokenizer: PreTrainedTokenizerBase) -> None:
    task = Task(kind="causal-lm", texts=("prompt", "completion"), form="prompt-completion")
    encoded = for_language(rows(prompt=["the film was"], completion=[" great"]), task, tokenizer, "training")
    assert counted(tokenizer, encoded[0]["labels"]) == " great</s>"
    assert tokenizer.decode(encoded[0]["input_ids"]) == "the film was great</s>"


def test_all_of_a_plain_text_counts(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = for_language(rows(text=["a day"]), Task(kind="causal-lm", texts=("text",)), tokenizer, "training")
    assert encoded[0]["labels"] == encoded[0]["input_ids"]
    assert encoded[0]["input_ids"][-1] == tokenizer.eos_token_id


def test_pairs_are_two_segments_and_rows_are_cut(bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert)
    task = Task(kind="classification", texts=("a", "b"), label="label", names=("x", "y"), values=("x", "y"))
    encoded = for_head(rows(a=["the film", "day " * 50], b=["was great", "book"], label=["y", "x"]), task, tokenizer, 12, "training")
    assert tokenizer.decode(encoded[0]["input_ids"]) == "[CLS] the film [SEP] was great [SEP]"
    assert [len(row["input_ids"]) for row in encoded] == [7, 12]
    assert list(encoded["labels"]) == [1, 0]
