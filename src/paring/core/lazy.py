"""A package whose names are loaded when they are first used: torch takes seconds to import, and transformers more."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and the ``__dir__`` of a package that only says where its names live.

    >>> __getattr__, __dir__ = lazily(__name__, {"sqrt": "math"})
    >>> __getattr__("sqrt")(9.0)
    3.0

    Args:
        package: the package's own name, for the message about a name that it lacks.
        homes: the module of each name.
    """

    def get(name: str) -> Any:
        if name in homes:
            return vars(importlib.import_module(homes[name]))[name]
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
