"""The configuration that PEFT, transformers and TRL pass around: ``ParingConfig(method=SoRA(...), target_modules=...)``."""

from __future__ import annotations

import copy
import dataclasses
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from peft import PeftConfig, TaskType

from paring.attach.peft_type import PARING
from paring.core.coding import is_whole
from paring.core.errors import SettingError, near
from paring.core.reading import json_object
from paring.method import Method, decode

LORA = {
    "r": "a setting of the method: method=SoRA(rank=...)",
    "lora_alpha": "a setting of the method: method=SoRA(alpha=...)",
    "lora_dropout": "a setting of the method: method=SoRA(dropout=...)",
    "use_rslora": "a setting of the method: method=SoRA(scaling='rs')",
    "init_lora_weights": "a setting of the method, with two values: method=SoRA(init=KaimingZero()), the default, which is True, and "
    "method=SoRA.from_adapter(...), which starts from a trained LoRA (FromAdapter). PiSSA, OLoRA and LoRAGA are methods of their own",
    "use_dora": "a method of its own, method=DoRA(rank=..., alpha=...)",
    "lora_ga_config": "a method of its own, method=LoRAGA(...), with paring.calibrate(model, batches)",
    "rank_pattern": "found: every module starts with SoRA(rank=...), and the export writes the ranks that are left",
    "alpha_pattern": "one scale for all modules, SoRA(alpha=...)",
    "fan_in_fan_out": "told by the module itself, so leave it out",
}
"""Where the settings of a LoraConfig went; docs/from-lora-config.md has all of them."""

_VARIANT = "it would be another update than a sum of ranks"
_START = "a start that changes the base weights is not available; method=SoRA.from_adapter(...) starts from a trained LoRA"
_EMBEDDINGS = "embeddings are not adapted; name them in modules_to_save to train them fully"
_PARALLEL = "Megatron's parallel layers are not adapted"
NOT_HERE = {
    "bias": "biases stay frozen; name a whole module in modules_to_save to train it",
    "lora_bias": _VARIANT,
    "use_qalora": _VARIANT,
    "qalora_group_size": _VARIANT,
    "use_bdlora": _VARIANT,
    "kasa_config": _VARIANT,
    "monteclora_config": _VARIANT,
    "velora_config": _VARIANT,
    "arrow_config": _VARIANT,
    "alora_invocation_tokens": _VARIANT,
    "eva_config": _START,
    "corda_config": _START,
    "loftq_config": _START,
    "target_parameters": "bare parameters (fused experts) are not adapted; name linear modules in target_modules",
    "trainable_token_indices": _EMBEDDINGS,
    "ensure_weight_tying": _EMBEDDINGS,
    "layer_replication": "layers are not replicated; give paring a model that has them",
    "megatron_config": _PARALLEL,
    "megatron_core": _PARALLEL,
    "runtime_config": "how a LoRA is computed cannot be set",
}
"""The fields of a LoraConfig that have no counterpart, and why or what to do instead."""


@dataclass
class ParingConfig(PeftConfig):
    """Which modules are adapted, and by which method.

    PEFT writes into its configurations, so this one cannot be frozen; the method inside is.

    Attributes:
        method: what is put beside each module, ``SoRA(rank=8)``. A mapping, as read from a file, is decoded.
        target_modules: module names or suffixes, a regular expression over full names, or ``"all-linear"`` (the default:
            every linear module but the output layer). The method finds out which modules need ranks, so give it all of them.
        exclude_modules: names, suffixes or a regular expression of modules to leave out.
        modules_to_save: modules that are trained fully and saved along, a list of names or one; PEFT adds the head for
            classification tasks.
        layers_to_transform: indices of the layers to adapt; ``None`` for all.
        layers_pattern: name of the list of layers, where ``layers_to_transform`` is used and PEFT cannot tell.
        seed: seed of the factors' start. ``None`` draws one from torch's default generator when the adapter is attached, and
            keeps it here; each module's start depends on this seed and its own name alone.

    Raises:
        SettingError: no method, one that cannot be decoded, a setting that makes no sense, or an unknown key.
    """

    method: Any = None
    target_modules: Any = "all-linear"
    exclude_modules: Any = None
    modules_to_save: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    seed: int | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse keys that this release does not know.

        A dataclass would raise a TypeError, which PEFT answers by dropping the key with a warning: however a configuration is read, it
        comes through here.

        Raises:
            SettingError: an unknown key, with near names; of a LoraConfig's keys, where it went or why it is not there.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        for key, value in kwargs.items():
            if key not in known:
                given = f"{key}={reprlib.repr(value)}"
                if key in LORA:
                    raise SettingError(f"{given}: {key} is a key of LoraConfig. Here it is {LORA[key]}.")
                if key in NOT_HERE:
                    raise SettingError(f"{given}: {key} is a key of LoraConfig that paring does not have: {NOT_HERE[key]}. Leave it out.")
                raise SettingError(
                    f"Unknown key {key!r} in the adapter's configuration.{near(key, known)} "
                    "If a newer release of paring wrote it, upgrade paring."
                )
        return super().__new__(cls)

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """What a checkpoint's file says; PEFT makes the configuration of it.

        Raises:
            SettingError: it is no JSON object, or is of another kind of adapter.
        """
        data = json_object(Path(path_json_file), SettingError)
        if data.get("peft_type") != PARING:
            raise SettingError(
                f"{path_json_file!r} has the peft_type {data.get('peft_type')!r}, and ParingConfig reads {PARING.value!r} only. An export "
                "is read by paring.read, or with PEFT's own PeftConfig."
            )
        return data

    def __post_init__(self) -> None:
        if self.task_type is not None and self.task_type not in list(TaskType):
            raise SettingError(f"task_type={self.task_type!r}: PEFT knows {', '.join(TaskType)}.")
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PARING
        if isinstance(self.method, Mapping):
            self.method = decode(self.method)
        if not isinstance(self.method, Method):
            raise SettingError(f"method={self.method!r}: give ParingConfig a method, such as method=SoRA(rank=8, alpha=16).")
        if self.target_modules is None:
            raise SettingError(
                "target_modules=None: paring has no table of targets by architecture. Leave it out for 'all-linear', every linear module, "
                "or name modules."
            )
        _check_seed(self.seed)
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
            _check_kind(name, vars(self)[name], str)
        _check_kind("layers_to_transform", self.layers_to_transform, int)
        if isinstance(self.modules_to_save, str):
            # PEFT would go through its letters.
            self.modules_to_save = [self.modules_to_save]
        for name in ("target_modules", "exclude_modules"):
            value = vars(self)[name]
            if isinstance(value, list | tuple):
                setattr(self, name, set(value))
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None and self.target_modules != "all-linear":
            raise SettingError("layers_to_transform needs target_modules as a list of names; a regular expression can name layers itself.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise SettingError("layers_pattern is given without layers_to_transform; give both or neither.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the method as ``{"name", "version", fields}`` and sets as sorted lists."""
        data = {item.name: vars(self)[item.name] for item in dataclasses.fields(self) if item.name != "method"}
        data = {key: sorted(value) if isinstance(value, set) else copy.deepcopy(value) for key, value in data.items()}
        return {**data, "method": self.method.encode()}


def _check_kind(name: str, value: object, kind: type) -> None:
    """Refuse a value that a file may hold and that is neither one of a kind nor several."""
    several = isinstance(value, list | tuple | set) and all(isinstance(item, kind) for item in value)
    if value is not None and not isinstance(value, kind) and not several:
        raise SettingError(f"{name}={reprlib.repr(value)}: give a {kind.__name__} or a list of them.")


def _check_seed(seed: object) -> None:
    if seed is not None and not is_whole(seed, 0):
        raise SettingError(f"seed={seed!r}: give a whole number of at least 0, or None to draw one.")
