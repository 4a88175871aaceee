"""paring: low-rank adapters whose ranks are found while they train.

>>> import paring
>>> from paring.methods.sora import SoRA
>>> model = paring.adapt(model, SoRA(rank=8, alpha=16), task_type="SEQ_CLS")   # doctest: +SKIP
>>> ...                                                                        # your loop, or Trainer
>>> paring.export(model, "adapter")                                            # doctest: +SKIP

Importing this package loads neither torch nor peft; what is named below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from wrapt import when_imported

from paring.core.lazy import lazily

if TYPE_CHECKING:
    from paring.api import adapt, calibrate, export, extract_lora, ranks, read, set_rank, snapshot, verify
    from paring.attach.config import ParingConfig
    from paring.attach.switch import Switch
    from paring.core.adapter import Adapter

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "ParingConfig",
    "Switch",
    "__version__",
    "adapt",
    "calibrate",
    "export",
    "extract_lora",
    "ranks",
    "read",
    "set_rank",
    "snapshot",
    "verify",
]

_HOMES = {
    "Adapter": "paring.core.adapter",
    "ParingConfig": "paring.attach.config",
    "Switch": "paring.attach.switch",
    "adapt": "paring.api",
    "calibrate": "paring.api",
    "export": "paring.api",
    "extract_lora": "paring.api",
    "ranks": "paring.api",
    "read": "paring.api",
    "set_rank": "paring.api",
    "snapshot": "paring.api",
    "verify": "paring.api",
}


__getattr__, __dir__ = lazily(__name__, _HOMES)


def _register(_: ModuleType) -> None:
    importlib.import_module("paring.attach.register")


# PEFT learns of the PARING type as soon as both packages are loaded, in either order.
if "peft" in sys.modules:
    _register(sys.modules["peft"])
else:
    when_imported("peft")(_register)
