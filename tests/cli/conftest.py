"""Tiny models with real tokenizers, and data files, for the commands."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paring.cli.main import main

TRAIN = {"rank": 4, "penalty": 0.5, "num_train_epochs": 2, "learning_rate": 0.01, "per_device_train_batch_size": 16, "seed": 0}
"""Flags of a run that takes a second: 8 steps on moods."""

GOOD = ("fine", "great", "lovely", "happy", "bright")
BAD = ("awful", "sad", "dull", "poor", "grey")
REST = ("the", "film", "was", "a", "day", "and", "book", "it", "seemed")

CHAT = (
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences whose mood follows from one word, with the mood."""
    chooser = random.Random(seed)
    rows = []
    for index in range(count):
        mood = index % 2
        words = chooser.sample(REST, 4)
        words.insert(chooser.randrange(5), chooser.choice(GOOD if mood else BAD))
        rows.append((" ".join(words), "good" if mood else "bad"))
    return rows


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer BERT encoder, no head, and a WordPiece tokenizer trained on the sentences."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator([text for text, _ in sentences(200)], trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide_bert(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, 64 wide: bitsandbytes packs 4-bit weights in blocks of 32 rows and 64 columns where the processor computes in bfloat16."""
    folder = tmp_path_factory.mktemp("wide-bert")
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(bert)
    config.hidden_size, config.intermediate_size = 64, 128
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer Llama (grouped-query attention) and a byte-level BPE tokenizer with a plain chat template."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.train_from_iterator(
        [text for text, _ in sentences(200)],
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=64)
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def moods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.tsv and dev.tsv: text, label ("good" or "bad")."""
    folder = tmp_path_factory.mktemp("moods")
    for name, count, seed in (("train", 64, 0), ("dev", 32, 1)):
        lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in sentences(count, seed))]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as a .jsonl file."""

    def write(name: str, *rows: object) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No hub, and no data cache that outlives the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets-cache"))
        yield


@pytest.fixture(autouse=True)
def whole_programs(unchecked: None) -> None:
    """Shapes and types are checked where each part has its tests; here whole programs run, in which that is a quarter of the time."""


@pytest.fixture(autouse=True)
def plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the report takes longer than all the rest of a tiny run; the one of ``trained`` is real."""
    monkeypatch.setattr("paring.report.write_report", lambda record, path, overwrite: Path(path).write_text(record.title, encoding="utf-8"))


@pytest.fixture(scope="session")
def run() -> Callable[..., int]:
    """Runs ``paring`` in this process: ``run("train", "--seed", 0)``, with flags by keyword as well: ``seed=0``."""

    def command(*words: object, **flags: object) -> int:
        spelled = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        with warnings.catch_warnings():  # the command line puts its own way of showing warnings in place
            return main([*map(str, words), *spelled])

    return command


@pytest.fixture(scope="session")
def trained(bert: Path, moods: Path, run: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on moods."""
    folder = tmp_path_factory.mktemp("runs") / "moods"
    # Gates start within reach of the steps that there are, so that some ranks die and some live.
    assert run("train", **TRAIN, model_name_or_path=bert, dataset_name=moods, output_dir=folder) == 0
    return folder
