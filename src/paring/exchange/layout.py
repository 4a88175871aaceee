"""The names of PEFT's adapter folder: its files and the keys of its tensors.

.. code-block:: text

    adapter_config.json          ranks, alphas, targets
    adapter_model.safetensors    base_model.model.<module path>.lora_A.weight   (r, in)
                                 base_model.model.<module path>.lora_B.weight   (out, r)
                                 base_model.model.<module path>.lora_magnitude_vector   (out,), with use_dora
                                 base_model.model.<head tensor>                 modules_to_save
    README.md                    the model card
    paring.json                  where the adapter comes from; no loader reads it but paring's own
"""

from __future__ import annotations

import re
from typing import Literal

Layout = Literal["compact", "uniform"]
"""``compact``: every module has its own rank, dead modules are left out. ``uniform``: all modules zero-padded to one rank."""

LAYOUTS: tuple[Layout, ...] = ("compact", "uniform")

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
CARD = "README.md"
SIDE = "paring.json"
TOKENIZER = "tokenizer_config.json"
"""What every tokenizer of transformers writes, if one is exported along."""
OWN_FILES = frozenset({CONFIG, WEIGHTS, CARD, SIDE})
COMPANIONS = (
    *("config.json", "generation_config.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
)
"""What transformers writes beside an adapter; whatever else lies in a folder is not the adapter's."""

PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"

_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<which>[AB])\.weight")
_INDEX = re.compile(r"(?:(?P<before>.*?)\.)?(?P<index>\d{1,9})(?:\.(?P<after>.*))?")


def factor_key(module: str, which: Literal["A", "B"]) -> str:
    """The key of a module's factor on disk.

    >>> factor_key("encoder.layer.0.attention.self.query", "A")
    'base_model.model.encoder.layer.0.attention.self.query.lora_A.weight'
    """
    return f"{PREFIX}{module}.lora_{which}.weight"


def magnitude_key(module: str) -> str:
    """The key of the lengths of a module's rows on disk."""
    return f"{PREFIX}{module}.{MAGNITUDE}"


def magnitude_keys(module: str) -> tuple[str, str]:
    """The keys that those lengths may have: releases of PEFT differ."""
    return magnitude_key(module), f"{magnitude_key(module)}.weight"


def split_key(key: str) -> tuple[str, str] | None:
    """The module path and ``"A"`` or ``"B"`` of a factor's key; ``None`` if the key is of something else.

    >>> split_key("base_model.model.fc.lora_B.weight")
    ('fc', 'B')
    """
    match = _FACTOR.fullmatch(key)
    return None if match is None else (match["module"], match["which"])


def split_layer(path: str) -> tuple[str, int | None, str]:
    """Where the layers are counted, which layer, and which module in it; a number of ten digits or more counts no layers.

    >>> split_layer("model.layers.11.self_attn.q_proj")
    ('model.layers', 11, 'self_attn.q_proj')
    >>> split_layer("lm_head")
    ('', None, 'lm_head')
    """
    match = _INDEX.fullmatch(path)
    return ("", None, path) if match is None else (match["before"] or "", int(match["index"]), match["after"] or "")
