"""What a linter rule is given, and what it answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from paring.exchange import settings
from paring.exchange.heads import owner
from paring.exchange.layout import PREFIX, factor_key, magnitude_keys, split_key, split_layer

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """An adapter folder as a loader sees it, tensors by shape only.

    Attributes:
        config: ``adapter_config.json``.
        shapes: every tensor's shape, by key.
        dead: modules that training targeted and that have no tensors here, where that is known.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    dead: frozenset[str] = frozenset()

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of every module's own tensors: rows of A, columns of B."""
        found: dict[str, int] = {}
        for key, shape in self.shapes.items():
            part = split_key(key)
            if part is None or part[1] != "A" or len(shape) != 2:
                continue
            other = self.shapes.get(factor_key(part[0], "B"), ())
            if len(other) == 2 and other[1] == shape[0]:
                found[part[0]] = shape[0]
        return found

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """Tensors of fully trained modules, by name in the base model."""
        entries = settings.heads(self.config)
        names = (key.removeprefix(PREFIX) for key in self.shapes if key.startswith(PREFIX) and split_key(key) is None)
        return tuple(sorted(name for name in names if owner(name, entries) is not None))

    @cached_property
    def extra(self) -> tuple[str, ...]:
        """Keys of tensors that are neither whole factors nor in fully trained modules, sorted."""
        pairs = {factor_key(module, which) for module in self.ranks for which in ("A", "B")}
        return tuple(sorted(key for key in self.shapes if key not in pairs and key.removeprefix(PREFIX) not in self.heads))

    @cached_property
    def unread(self) -> tuple[str, ...]:
        """Those of :attr:`extra` that PEFT does not read either."""
        if not settings.use_dora(self.config):
            return self.extra
        known = {key for module in self.ranks for key in magnitude_keys(module)}
        return tuple(key for key in self.extra if key not in known)

    @cached_property
    def last_layer(self) -> int:
        """The highest layer that is known of, -1 if none is."""
        return max((split_layer(path)[1] or 0 for path in (*self.ranks, *self.dead) if split_layer(path)[1] is not None), default=-1)

    @cached_property
    def kinds(self) -> dict[tuple[str, str], dict[int, str]]:
        """Modules by kind: ``{(where layers are counted, name in the layer): {layer: path}}``; those outside of layers are left out."""
        found: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
        for path in self.ranks:
            before, index, after = split_layer(path)
            if index is not None:
                found[before, after][index] = path
        return dict(found)


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What an engine multiplies ``B A`` of one module with, and why.

    Attributes:
        scale: the factor; 0 means that it does not apply the module.
        because: why it is that one.
        cure: what helps against a scale of 0.
    """

    scale: float
    because: str
    cure: str = ""


@dataclass(frozen=True, kw_only=True)
class Complaint:
    """Something that an engine would do about the folder as a whole, or about one module."""

    level: Level
    message: str
    module: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an engine would do with a folder.

    Attributes:
        applied: every module that it would apply; one that is missing here would not be.
        complaints: what else it would do; an error without a module means that it would refuse the folder.
    """

    applied: Mapping[str, Applied] = field(default_factory=dict)
    complaints: tuple[Complaint, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether the engine would not load the folder at all."""
        return any(complaint.level == "error" and complaint.module is None for complaint in self.complaints)
