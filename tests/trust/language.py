"""A tiny decoder with its tokenizer and texts, made on the spot, for trainers that want a language model."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import paring
from tests.trust import proof

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
WORDS = ("a", "sad", "old", "tale", "of", "two", "good", "cats", "and", "dogs", "runs", "home")
SEED = 7


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, split at blanks."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate((*SPECIAL, *WORDS))}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    unknown, begin, end, pad = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token=unknown, bos_token=begin, eos_token=end, pad_token=pad)


def texts(count: int, length: int = 6, seed: int = 0) -> list[str]:
    """Words in no order."""
    generator = torch.Generator().manual_seed(seed)
    return [" ".join(WORDS[int(index)] for index in torch.randint(len(WORDS), (length,), generator=generator)) for _ in range(count)]


def tokens(rows: int = 4, seed: int = 0) -> Tensor:
    """A batch of texts of equal length."""
    found = tokenizer()(texts(rows, seed=seed), return_tensors="pt")["input_ids"]
    assert isinstance(found, Tensor)
    return found


@functools.cache
def _llama() -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=len(SPECIAL) + len(WORDS), max_position_embeddings=64, initializer_range=0.2, **sizes, **ends)
        )
    return model.eval()


def llama() -> LlamaForCausalLM:
    """A fresh copy of the base model."""
    return copy.deepcopy(_llama())


def adapted(**settings: object) -> PeftModel:
    """The base model with an adapter that has an effect and lone gates; settings are SoRA's."""
    model = paring.adapt(llama(), proof.method(**settings), task_type="CAUSAL_LM", seed=SEED)
    proof.start(model)
    return model


_place: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def bert() -> Path:
    """The folder of a small encoder with its tokenizer, which lives as long as this process."""
    _place.append(tempfile.TemporaryDirectory(prefix="trust-"))
    folder = Path(_place[-1].name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
        BertModel(
            BertConfig(vocab_size=len(SPECIAL) + len(WORDS), max_position_embeddings=32, initializer_range=0.2, pad_token_id=3, **sizes)
        ).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
