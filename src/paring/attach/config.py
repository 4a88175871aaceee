"""The configuration that PEFT, transformers and TRL pass around: ``ParingConfig(method=SoRA(...), target_modules=...)``."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from peft import PeftConfig

from paring.attach.peft_type import PARING
from paring.core.errors import SettingError, near
from paring.method import Method, decode

LORA = {
    "r": "SoRA(rank=...)",
    "lora_alpha": "SoRA(alpha=...)",
    "lora_dropout": "SoRA(dropout=...)",
    "use_rslora": "SoRA(scaling='rs')",
    "init_lora_weights": "SoRA(init=...)",
}
"""Where the settings of a LoraConfig went; docs/from-lora-config.md has all of them."""


@dataclass
class ParingConfig(PeftConfig):
    """Which modules are adapted, and by which method.

    PEFT writes into its configurations, so this one cannot be frozen; the method inside is.

    Attributes:
        method: what is put beside each module, ``SoRA(rank=8)``. A mapping, as read from a file, is decoded.
        target_modules: module names or suffixes, a regular expression over full names, or ``"all-linear"`` (the default:
            every linear module but the output layer). The method finds out which modules need ranks, so give it all of them.
        exclude_modules: names, suffixes or a regular expression of modules to leave out.
        modules_to_save: modules that are trained fully and saved along; PEFT adds the head for classification tasks.
        layers_to_transform: indices of the layers to adapt; ``None`` for all.
        layers_pattern: name of the list of layers, where ``layers_to_transform`` is used and PEFT cannot tell.
        seed: seed of the factors' start. ``None`` draws one from torch's default generator when the adapter is attached, and
            keeps it here; each module's start depends on this seed and its own name alone.

    Raises:
        SettingError: no method, one that cannot be decoded, or an unknown key.
    """

    method: Any = None
    target_modules: Any = "all-linear"
    exclude_modules: Any = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    seed: int | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse keys that this release does not know.

        A dataclass would raise a TypeError, which PEFT answers by dropping the key with a warning: however a configuration is read, it
        comes through here.

        Raises:
            SettingError: an unknown key, with near names.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        for key in kwargs:
            if key not in known:
                if key in LORA:
                    raise SettingError(f"{key} is a key of LoraConfig. Here it is a setting of the method: method={LORA[key]}.")
                raise SettingError(
                    f"Unknown key {key!r} in the adapter's configuration.{near(key, known)} "
                    "If a newer release of paring wrote it, upgrade paring."
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PARING
        if isinstance(self.method, Mapping):
            self.method = decode(self.method)
        if not isinstance(self.method, Method):
            raise SettingError(f"method={self.method!r}: give ParingConfig a method, such as method=SoRA(rank=8, alpha=16).")
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
