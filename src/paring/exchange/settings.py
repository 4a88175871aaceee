"""``adapter_config.json``: what its keys mean for the update, and which of them cannot be read."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paring.core.coding import is_whole
from paring.core.errors import AdapterError
from paring.core.reading import json_object
from paring.exchange.expressions import Clock, Keys
from paring.exchange.layout import CONFIG
from paring.exchange.patterns import Selection

_HIGHEST = 2**31 - 1
"""The highest rank that is read: no tensor has more rows."""

# Keys that this module reads, and keys of PEFT that say nothing of a trained adapter's update: how training went, where
# megatron lives, how a starting value was found.
_READ = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "fan_in_fan_out",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "bias",
        "init_lora_weights",
    }
)
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "peft_version",
        "inference_mode",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "runtime_config",
        "qalora_group_size",
        "velora_config",
        "enable_lora",
        "merge_weights",
    }
)
# Keys that change the update into something that A, B and a scale do not say.
_VARIANTS = {
    "lora_bias": "a bias on lora_B",
    "layer_replication": "replicated layers",
    "target_parameters": "adapted bare parameters (mixture-of-experts tensors)",
    "trainable_token_indices": "retrained token embeddings",
    "alora_invocation_tokens": "activated LoRA, which switches on at a token",
    "use_qalora": "QA-LoRA, which pools its input",
    "use_bdlora": "block-diagonal factors",
    "arrow_config": "a router over adapters",
    "kasa_config": "KaSA, which truncates the base weight",
    "monteclora_config": "MonteCLoRA, which samples its factors",
    "ensure_weight_tying": "tied adapters of embeddings",
}
# Initialisers after which the factors are relative to a base weight that PEFT changed as well.
_MOVED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def load(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        AdapterError: the file is missing, too large, not UTF-8, or not a JSON object.
    """
    if not path.is_file():
        raise AdapterError(f"There is no {path.name} in {str(path.parent)!r}; give the folder of a PEFT adapter, or its id on the hub.")
    return json_object(path)


def refuse(config: Mapping[str, Any]) -> None:
    """Refuse a configuration whose update is more than ``s B A``, or may be.

    Raises:
        AdapterError: names the key, and says what to do.
    """
    kind = config.get("peft_type")
    if kind == "PARING":
        raise AdapterError("This folder is a paring training checkpoint, not an export: load it with PEFT, then paring.export it.")
    if kind != "LORA":
        raise AdapterError(f"peft_type is {kind!r}; only 'LORA' adapters, and 'SHIRA' ones that paring wrote, can be read.")
    for key, what in _VARIANTS.items():
        if config.get(key):
            raise AdapterError(f"{key} is set: the adapter has {what}, which a plain LoRA cannot hold. Merge it into its base model.")
    if config.get("bias", "none") not in ("none", None):
        raise AdapterError(f"bias is {config['bias']!r}: the adapter retrained biases of the base model; only bias='none' can be read.")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_MOVED_BASE):
        raise AdapterError(
            f"init_lora_weights is {start!r}: the factors are relative to a base weight that this initialiser changed. Save the adapter "
            "again with PEFT's path_initial_model_for_weight_conversion, which turns it into a plain LoRA."
        )
    for key, value in config.items():
        if key not in _READ and key not in _HARMLESS and key not in _VARIANTS and value:
            raise AdapterError(
                f"Unknown key {key!r} = {str(value)[:60]!r} in {CONFIG}: it may change what the adapter does. A newer PEFT wrote it; "
                "upgrade paring, or remove the key if it is of no account."
            )


class Scales:
    r"""Rank and scale of every module, as a configuration has it.

    .. math:: s_m = \alpha_m / r_m \quad\text{or, with rsLoRA,}\quad \alpha_m / \sqrt{r_m}

    with :math:`r_m` and :math:`\alpha_m` from the first matching pattern, else the global ones.

    Raises:
        AdapterError: a number is missing or makes no sense, or a pattern's key is not a regular expression.
    """

    def __init__(self, config: Mapping[str, Any], clock: Clock | None = None) -> None:
        clock = clock or Clock()
        self.rank = _rank("r", config.get("r"))
        self.alpha = _alpha("lora_alpha", config.get("lora_alpha"))
        self.rslora = _flag(config, "use_rslora")
        ranks, alphas = _table(config, "rank_pattern"), _table(config, "alpha_pattern")
        self._ranks = {key: _rank(f"rank_pattern[{key!r}]", value) for key, value in ranks.items()}
        self._alphas = {key: _alpha(f"alpha_pattern[{key!r}]", value) for key, value in alphas.items()}
        self._rank_keys, self._alpha_keys = Keys(ranks, clock), Keys(alphas, clock)

    def rank_of(self, module: str) -> int:
        """The rank that the configuration gives to a module."""
        key = self._rank_keys.first(module)
        return self.rank if key is None else self._ranks[key]

    def scale_of(self, module: str) -> float:
        """The scale that the configuration gives to a module."""
        key = self._alpha_keys.first(module)
        return scale(self.alpha if key is None else self._alphas[key], self.rank_of(module), self.rslora)

    @property
    def largest_rank(self) -> int:
        """The largest rank that the configuration names, the global one included."""
        return max((self.rank, *self._ranks.values()))

    @property
    def patterned(self) -> list[str]:
        """The pattern keys whose value differs from the global one, sorted."""
        ranks = {key for key, value in self._ranks.items() if value != self.rank}
        return sorted(ranks | {key for key, value in self._alphas.items() if value != self.alpha})


def scale(alpha: float, rank: int, rslora: bool) -> float:
    """``alpha / rank``, or ``alpha / sqrt(rank)`` with rsLoRA."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def selection(config: Mapping[str, Any], clock: Clock | None = None) -> Selection:
    """Which modules a configuration adapts.

    Raises:
        AdapterError: there is no target, or an entry is not of the kind that PEFT writes.
    """
    targets = names(config, "target_modules")
    if not targets:
        raise AdapterError(f"{CONFIG} has no target_modules, so it does not say what is adapted.")
    layers = config.get("layers_to_transform")
    layers = [] if layers is None else layers if isinstance(layers, list) else [layers]
    if not all(is_whole(layer, 0) for layer in layers):
        raise AdapterError(f"layers_to_transform = {layers!r} is not a list of layer numbers.")
    lists = names(config, "layers_pattern")
    return Selection(
        target_modules=targets,
        exclude_modules=names(config, "exclude_modules"),
        modules_to_save=heads(config),
        layers_to_transform=layers,
        layers_pattern=[lists] if isinstance(lists, str) and lists else lists,
        clock=clock,
    )


def heads(config: Mapping[str, Any]) -> list[str]:
    """The entries of ``modules_to_save``.

    Raises:
        AdapterError: not a list of names.
    """
    entries = names(config, "modules_to_save")
    return [entries] if isinstance(entries, str) and entries else list(entries)


def names(config: Mapping[str, Any], key: str) -> list[str] | str:
    """A key that holds a list of names, or one string; missing and null are an empty list.

    Raises:
        AdapterError: anything else.
    """
    value = config.get(key)
    if value is None:
        return []
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return value
    raise AdapterError(f"{key} = {str(value)[:60]!r} in {CONFIG} is neither a list of names nor a string.")


def text(config: Mapping[str, Any], key: str) -> str | None:
    """A key that holds a string or nothing.

    Raises:
        AdapterError: anything else.
    """
    value = config.get(key)
    if value is None or isinstance(value, str):
        return value or None
    raise AdapterError(f"{key} = {str(value)[:60]!r} in {CONFIG} is not a string.")


def use_dora(config: Mapping[str, Any]) -> bool:
    """Whether the adapter says the direction of the weights, and has magnitudes beside it.

    Raises:
        AdapterError: neither true nor false.
    """
    return _flag(config, "use_dora")


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key, False)
    if isinstance(value, bool) or value is None:
        return bool(value)
    raise AdapterError(f"{key} = {value!r} in {CONFIG} is neither true nor false.")


def fan_in_fan_out(config: Mapping[str, Any]) -> bool:
    """Whether the adapted weights are stored transposed.

    Raises:
        AdapterError: neither true nor false.
    """
    return _flag(config, "fan_in_fan_out")


def _rank(key: str, value: object) -> int:
    if not is_whole(value, 1, _HIGHEST):
        raise AdapterError(f"{key} = {value!r} in {CONFIG}: a rank is a whole number of at least 1, and at most {_HIGHEST}.")
    return value


def _alpha(key: str, value: object) -> float:
    # Written so that NaN is refused, and a whole number that no float holds.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise AdapterError(f"{key} = {value!r} in {CONFIG}: an alpha is a finite number.")
    return float(value)


def _table(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise AdapterError(f"{key} = {str(value)[:60]!r} in {CONFIG} is not a table of module patterns.")
    return value
