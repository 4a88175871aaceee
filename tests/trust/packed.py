"""A small decoder in full precision, and the same with its weights quantised in each of the ways that there are."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import paring
from tests.trust import language, proof

_place: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def folder() -> Path:
    """Where the model lies in full precision, as long as this process lives. bitsandbytes packs 4-bit weights in blocks of 64."""
    _place.append(tempfile.TemporaryDirectory(prefix="trust-"))
    place = Path(_place[-1].name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        tokens = {"vocab_size": len(language.SPECIAL) + len(language.WORDS), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
        LlamaForCausalLM(LlamaConfig(max_position_embeddings=64, initializer_range=0.1, **sizes, **tokens)).save_pretrained(place)
    return place


def whole() -> nn.Module:
    """In full precision."""
    return _read()


def _read(config: BitsAndBytesConfig | None = None) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder(), quantization_config=config)
    assert isinstance(model, nn.Module)
    return model.eval()


def _bitsandbytes(config: Callable[[], BitsAndBytesConfig]) -> nn.Module:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return _read(config())


def eight_bit() -> nn.Module:
    """LLM.int8() of bitsandbytes."""
    return _bitsandbytes(lambda: BitsAndBytesConfig(load_in_8bit=True))


def four_bit() -> nn.Module:
    """NF4 of bitsandbytes."""
    return _bitsandbytes(lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32))


def torchao() -> nn.Module:
    """The int8 weights of torchao: a tensor subclass in plain linear modules."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = whole()
    # All but the output layer, as transformers does it: TRL computes with its weight as a matrix.
    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda module, name: isinstance(module, nn.Linear) and name != "lm_head")
    return model


KINDS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {"bitsandbytes, 8 bit": eight_bit, "bitsandbytes, 4 bit (NF4)": four_bit, "torchao, int8 weights": torchao}
)
"""By the row of the grid."""


def attach(base: nn.Module, **settings: object) -> PeftModel:
    """An adapter that has an effect, with lone gates; settings are SoRA's."""
    model = paring.adapt(base, proof.method(**settings), task_type="CAUSAL_LM", seed=language.SEED)
    proof.start(model)
    return model


def bits(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the base model's tensors as they lie in memory: of packed ones, all parts."""
    return {
        f"{name}{part}": value.clone()
        for name, tensor in model.state_dict().items()
        if "paring_slot." not in name
        for part, value in _parts(tensor)
    }


def _parts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if not is_traceable_wrapper_subclass(tensor):
        yield "", tensor.detach()
        return
    for name in tensor.__tensor_flatten__()[0]:
        for part, value in _parts(vars(tensor)[name]):
            yield f".{name}{part}", value


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """What a model says to a few texts."""
    found: Tensor = model.eval()(input_ids=language.tokens(6, seed=99)).logits
    return found
