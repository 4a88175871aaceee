"""What a command refuses at once, in a sentence about what the user gave; and what it prints, readable as it is."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import paring
from paring.cli.commands import demo
from paring.cli.commands.inspect import shortest
from paring.cli.commands.verify import grouped, worded
from paring.cli.data.read import read
from paring.cli.run.outputs import check_chat, continuations
from paring.core.adapter import Adapter, Metadata
from paring.core.errors import DataError, SettingError
from paring.core.factors import Factors
from paring.exchange.engines import Finding

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
Said = Callable[..., tuple[int, str]]


@pytest.fixture
def said(run: Run, capsys: Capture) -> Said:
    """Runs a command; returns its status and what it says on stderr, in one sentence and no foreign words."""

    def command(*words: object, **flags: object) -> tuple[int, str]:
        status = run(*words, **flags)
        text = capsys.readouterr().err.strip()
        assert "unexpected" not in text
        assert text.count("paring: error: ") == (status != 0)
        return status, text

    return command


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a base model fails the test."""

    def loaded(*args: Any, **kwargs: Any) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("paring.cli.run.loaded.load_trained", loaded)


@pytest.fixture
def language(trained: Path, tmp_path: Path) -> Path:
    """The folder of an adapter that says it is a language model's, with a tokenizer that has no chat template."""
    folder = Path(shutil.copytree(trained / "adapter", tmp_path / "language"))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [b\n", ["no valid YAML", "line 2", "begins in line 1"]),
        (b"rank: 4\na: b: c\n", ["no valid YAML", "line 2, column 5"]),
        (b"- a\n", ["a list", "learning_rate: 0.001"]),
        (b"", ["holds nothing"]),
        (b"\xff\xfe", ["UTF-8"]),
    ],
)
@pytest.mark.parametrize("spelling", ["two words", "one"])
def test_a_configuration_that_is_none(content: bytes, words: list[str], spelling: str, said: Said, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    status, text = said("train", *(["--config", path] if spelling == "two words" else [f"--config={path}"]))
    assert status == 2
    assert all(word in text for word in ("bad.yaml", *words)), text


def test_a_setting_of_another_method(said: Said, tmp_path: Path) -> None:
    status, text = said("train", method="lora", penalty=0.3)
    assert status == 2
    assert "--penalty is a setting of gs_lora, s2_lora, sora, not of lora" in text
    (tmp_path / "c.yaml").write_text("method: lora\npenalty: 0.3\n", encoding="utf-8")
    assert "--penalty is a setting of gs_lora, s2_lora, sora, not of lora" in said("train", config=tmp_path / "c.yaml")[1]
    assert "Unknown flag or key 'nope'" in said("train", nope=1)[1]


def test_an_unknown_method_is_a_wrong_command_line(said: Said) -> None:
    status, text = said("train", method="sorra")
    assert status == 2
    assert "Did you mean 'sora'" in text


@pytest.mark.parametrize("words", [["--config"], ["--config", "nowhere.yaml"]])
def test_sentences_of_the_parser_end_before_the_next_begins(words: list[str], said: Said) -> None:
    status, text = said("train", *words)
    assert status == 2
    assert ". See paring train --help." in text


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["batch_size", "max_length", "max_new_tokens"])
def test_counts_below_one(name: str, trained: Path, moods: Path, said: Said) -> None:
    assert f"--{name} 0: give at least 1" in said("predict", trained / "adapter", "fine", **{name: 0})[1]
    if name != "max_new_tokens":
        assert f"--{name} 0: give at least 1" in said("eval", trained / "adapter", moods, **{name: 0})[1]


@pytest.mark.usefixtures("no_model")
def test_chat_with_what_cannot_chat(trained: Path, language: Path, said: Said) -> None:
    assert "--chat is for language models" in said("predict", trained / "adapter", "fine", "--chat")[1]
    assert "no chat template" in said("predict", language, "fine", "--chat")[1]


@pytest.mark.usefixtures("no_model")
def test_predicting_texts_and_a_file(trained: Path, said: Said) -> None:
    assert "texts on the command line and --file a.tsv" in said("predict", trained / "adapter", "--file", "a.tsv", "fine")[1]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("text", "word"), [("", "Text 2"), ("  ", "Text 2"), ("fine\t", "one side of its tab")])
def test_predicting_an_empty_text(text: str, word: str, trained: Path, said: Said) -> None:
    status, sentence = said("predict", trained / "adapter", "fine", text)
    assert status == 1
    assert word in sentence


def test_a_prompt_without_tokens_and_a_tokenizer_without_template(llama: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    with pytest.raises(DataError, match=r"Text 2 \(''\)"):
        list(continuations(model, tokenizer, ["fine", ""], 1, chat=False))
    check_chat(tokenizer, "x")
    tokenizer.chat_template = None
    with pytest.raises(SettingError, match=r"chat_template\.jinja"):
        check_chat(tokenizer, "x")


def test_evaluating_says_what_can_be_done_when_evaluating(trained: Path, said: Said, tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_text("text,mood\nfine,good\n", encoding="utf-8")
    text = said("eval", trained / "adapter", tmp_path / "bare.csv")[1]
    assert "--label_column" in text
    assert "--task" not in text
    (tmp_path / "new.csv").write_text("text,label\nfine,good\nfair,so-so\n", encoding="utf-8")
    text = said("eval", trained / "adapter", tmp_path / "new.csv")[1]
    assert "'so-so' (row 2)" in text
    assert "bad, good" in text
    assert "training data" not in text


def test_a_conversation_to_evaluate_without_a_template(language: Path, jsonl: Callable[..., Path], said: Said, monkeypatch: Any) -> None:
    from paring.cli.run.loaded import Trained

    model = torch.nn.Linear(1, 1)
    model.config = torch.nn.Module()
    trained: Any = Trained(
        adapter=paring.read(language),
        source=str(language),
        model=model,  # type: ignore[arg-type]
        tokenizer=AutoTokenizer.from_pretrained(language),
        kind="causal-lm",
        names=(),
    )
    monkeypatch.setattr("paring.cli.run.loaded.load_trained", lambda *args, **kwargs: trained)
    data = jsonl("chat.jsonl", {"messages": [{"role": "user", "content": "fine?"}, {"role": "assistant", "content": "great"}]})
    text = said("eval", language, data)[1]
    assert "chat_template.jinja" in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": "awf\n{"text": "sad"}\n', ["a.jsonl", "line 2", "column", "mend it"]),
        ("a.jsonl", b'{"text": "fine"}\n\n3\n', ["a.jsonl", "line 3", "no object"]),
        ("a.json", b'[{"text": "fine"},\n {"text": "sad" 3}]\n', ["a.json", "line 2", "Mend"]),
        ("a.parquet", b"no parquet at all", ["a.parquet", "Write the file again"]),
        ("a.tsv", "text\tlabel\nfine\tgood\n".encode("utf-16"), ["UTF-16", "iconv -f utf-16 "]),
        ("a.tsv", "text\tlabel\nfine\tgood\n".encode("utf-16-be"), ["UTF-16BE", "iconv -f utf-16be "]),
        ("a.tsv", "text\tlabel\nfine\tgood\n".encode("utf-32"), ["UTF-32", "iconv -f utf-32 "]),
        ("a.csv", b"text,label\n,good\n  ,bad\n", ["no text in any of its 2 rows", "'text'"]),
        ("a.csv", b"sentence1,sentence2,label\n,,good\n,,bad\n", ["no text in any"]),
    ],
)
def test_data_that_cannot_be_read(name: str, content: bytes, words: list[str], tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(str(path), "train")
    assert all(word in str(error.value) for word in words), error.value
    assert "Failed to" not in capsys.readouterr().err


def test_a_row_that_the_reader_counts_from_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise ValueError("JSON parse error: Column(/label) changed from number to string in row 1")

    monkeypatch.setattr("paring.cli.data.read.load_dataset", load)
    (tmp_path / "a.jsonl").write_text('{"label": 1}\n{"label": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"to string in row 2\. Give all rows the same columns"):
        read(str(tmp_path / "a.jsonl"), "train")


def test_rows_without_text_are_counted(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.csv").write_text("text,body,label\nfine,,good\n,,bad\n ,x,bad\n", encoding="utf-8")
    assert len(read(str(tmp_path / "a.csv"), "train")) == 3
    assert "2 of 3 rows" in capsys.readouterr().err
    read(str(tmp_path / "a.csv"), "train", texts=["body"])
    assert "the first is row 1" in capsys.readouterr().err
    (tmp_path / "b.csv").write_text("text,label\nfine,good\n", encoding="utf-8")
    read(str(tmp_path / "b.csv"), "train")
    assert "have no text" not in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"rows": 0}, {"rows": -5}, {"seed": -1}, {"num_train_epochs": 0.0}, {"num_train_epochs": -2.0}])
def test_a_demo_of_nothing(change: dict[str, float], said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "found", lambda *package: pytest.fail("it began"))
    name, value = next(iter(change.items()))
    assert f"--{name} {value}: give" in said("demo", output_dir=tmp_path / "demo", **change)[1]
    assert not (tmp_path / "demo").exists()


def test_a_hint_at_a_package_that_is_not_needed_is_dropped_and_no_other(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run("--version")
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "No module named 'kernels'")
    logger.warning("Something else")
    assert caplog.messages == ["Something else"]


def test_a_demo_of_one_label(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["sentiment,confidence,text", *(f"{'good' if number % 2 else 'bad'},1.0,text {number}" for number in range(20))]
    (tmp_path / "tweets.csv").write_text("\n".join(lines) + "\n", encoding="latin-1")
    monkeypatch.setattr(demo, "found", lambda *package: tmp_path / "tweets.csv")
    monkeypatch.setattr(demo, "HELD_OUT", 4)
    assert "--rows 1: all the tweets" in said("demo", output_dir=tmp_path / "demo", rows=1)[1]
    assert not list((tmp_path / "demo").iterdir())


def test_findings_that_differ_in_names_and_numbers_are_said_once() -> None:
    def finding(module: str | None, message: str) -> Finding:
        return Finding(engine="x", level="error", module=module, message=message)

    kinds = [finding(None, f"It refuses: a.*.{kind} has ranks {ranks}, no.") for kind, ranks in (("q", [1, 2]), ("k", [1, 2, 3]))]
    ratios = [finding(f"m.{rank}", f"It applies {4 / rank:.4g} times the update (alpha 4 over the rank {rank}).") for rank in (1, 2, 3)]
    assert [worded(group) for group in grouped([*kinds, *ratios, finding(None, "It refuses: use_dora is set.")])] == [
        "It refuses: a.*.q has ranks [1, 2], no. (And 1 more like it; --json has all.)",
        "m.1 and 2 more like it: It applies 4 times the update (alpha 4 over the rank 1).",
        "It refuses: use_dora is set.",
    ]


def test_verify_prints_each_sentence_whole(trained: Path, run: Run, capsys: Capture) -> None:
    run("verify", trained / "adapter")
    shown = capsys.readouterr().out.splitlines()
    for group in grouped(paring.verify(trained / "adapter")):
        assert sum(worded(group) in line for line in shown) == 1


LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
BERT = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


@pytest.mark.parametrize("width", [80, 30])
@pytest.mark.parametrize("kinds", [LLAMA, BERT, tuple(f"block.a_rather_long_name_{index}" for index in range(6))])
def test_inspect_breaks_no_word(
    kinds: tuple[str, ...], width: int, run: Run, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = Factors(a=torch.ones(2, 4), b=torch.ones(4, 2))
    modules = {f"model.layers.{layer}.{kind}": factors for layer in range(2) for kind in kinds}
    monkeypatch.setattr(paring, "read", lambda folder: Adapter(modules={**modules, "bert.pooler.dense": factors}, metadata=Metadata()))
    monkeypatch.setenv("COLUMNS", str(width))
    assert run("inspect", tmp_path) == 0
    shown = capsys.readouterr().out
    words = {part for name in shortest(kinds).values() for part in name.split(".")}
    assert [word for word in (*words, "layer", "sum", "bert.pooler.dense") if word not in shown] == []
    assert "…" not in shown
    if width == 80:
        assert max(map(len, shown.splitlines()[1:])) <= 80  # the first names the folder
