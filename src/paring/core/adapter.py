"""The adapter: a frozen plain value, the narrow waist between training, files, compression and merging."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor

from paring.core.entries import Entries
from paring.core.errors import AdapterError
from paring.core.factors import Factors
from paring.core.linalg import finite

_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Where an adapter comes from and what it needs to be loaded.

    Attributes:
        base_model: folder or hub id of the frozen model, as the user gave it; ``None`` if unknown.
        revision: the base model's revision on the hub.
        task_type: PEFT's task type ("SEQ_CLS", "CAUSAL_LM", ...), or ``None``.
        method: the encoded method that trained it (name, version, settings), or ``None`` if another tool did.
        fan_in_fan_out: modules whose weight is stored transposed (GPT-2's Conv1D).
    """

    base_model: str | None = None
    revision: str | None = None
    task_type: str | None = None
    method: Mapping[str, Any] | None = None
    fan_in_fan_out: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """``{module path -> update}`` with the heads that were trained beside them. No ``nn.Module`` in it.

    Attributes:
        modules: module path in the base model, ``"encoder.layer.0.attention.self.query"``, to its factors. Every module
            that training targeted is listed, also those whose ranks have all died.
        heads: tensors of fully trained modules (``modules_to_save``), by their name in the base model,
            ``"classifier.weight"``.
        entries: module path to sparse entries of its weight, where the update is no product of factors.
        magnitudes: module path to the length of each row of its adapted weight, (out,), where that is trained apart from the direction,
            which the update then says alone.
        metadata: where it comes from.

    Raises:
        AdapterError: a module path is not a dotted name, or a tensor holds NaN or infinity.
    """

    modules: Mapping[str, Factors] = field(default_factory=dict)
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    entries: Mapping[str, Entries] = field(default_factory=dict)
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Metadata = field(default_factory=Metadata)

    def __post_init__(self) -> None:
        held = {path: [factors.a, factors.b, *([] if factors.gate is None else [factors.gate])] for path, factors in self.modules.items()}
        for path in self.entries:
            if path in held:
                raise AdapterError(f"Module {path!r} has both factors and sparse entries; one update belongs to each module.")
        for path, tensors in (held | {path: [entries.values] for path, entries in self.entries.items()}).items():
            if not _PATH.fullmatch(path):
                raise AdapterError(f"Module path {path!r} is not a dotted name of letters, digits, underscores and hyphens.")
            if not all(finite(tensor) for tensor in tensors):
                raise AdapterError(f"Module {path!r} holds NaN or infinity; the run that wrote it diverged.")
        for name, tensor in self.heads.items():
            if not _PATH.fullmatch(name):
                raise AdapterError(f"Head tensor {name!r} is not a dotted name of letters, digits, underscores and hyphens.")
            if not finite(tensor):
                raise AdapterError(f"Head tensor {name!r} holds NaN or infinity; the run that wrote it diverged.")
        updates = self.updates
        for path, magnitude in self.magnitudes.items():
            if path not in updates or magnitude.shape != (updates[path].out_features,):
                raise AdapterError(f"Module {path!r} has magnitudes of shape {tuple(magnitude.shape)}, and no update with so many outputs.")
            if not finite(magnitude):
                raise AdapterError(f"Module {path!r} has magnitudes with NaN or infinity; the run that wrote it diverged.")
        # Read-only views over own dictionaries, sorted, so that no caller changes a frozen value and bytes on disk repeat.
        for name in ("modules", "entries", "magnitudes"):
            object.__setattr__(self, name, MappingProxyType(dict(sorted(vars(self)[name].items(), key=lambda item: natural(item[0])))))
        object.__setattr__(self, "heads", MappingProxyType(dict(sorted(self.heads.items()))))

    def __reduce__(self) -> tuple[Any, ...]:
        # Read-only views neither pickle nor deep-copy; the dictionaries below them do.
        return _rebuild, (dict(self.modules), dict(self.heads), dict(self.entries), dict(self.magnitudes), self.metadata)

    @property
    def ranks(self) -> dict[str, int]:
        """Live rank of every module that has factors."""
        return {path: factors.live_rank for path, factors in self.modules.items()}

    @property
    def updates(self) -> dict[str, Factors | Entries]:
        """The update of every module, of whatever kind."""
        return {**self.modules, **self.entries}

    @property
    def max_rank(self) -> int:
        """The largest live rank; 0 if every rank is gone."""
        return max(self.ranks.values(), default=0)

    @property
    def parameters(self) -> int:
        """Adapter parameters once pruned and folded, heads not counted: ``sum_m r_m (in_m + out_m)``, sparse entries, magnitudes."""
        return sum(update.parameters for update in self.updates.values()) + sum(each.numel() for each in self.magnitudes.values())

    @property
    def head_parameters(self) -> int:
        """Entries of the fully trained heads."""
        return sum(tensor.numel() for tensor in self.heads.values())

    def folded(self) -> Adapter:
        """Dead ranks dropped, gates and scales folded into B (scale 1); the updates are unchanged."""
        modules = {path: factors.prune().fold() for path, factors in self.modules.items()}
        return replace(self, modules=modules)

    def check_added(self, purpose: str) -> None:
        """Refuse updates that are more than added to a weight.

        Args:
            purpose: what cannot be done with them, "Switching".

        Raises:
            AdapterError: some module has magnitudes.
        """
        if self.magnitudes:
            raise AdapterError(
                f"{purpose} needs updates that are added to a weight, but this adapter has magnitudes as well "
                f"(DoRA, {len(self.magnitudes)} modules, first: {next(iter(self.magnitudes))!r}). Fuse it into its base model."
            )

    def check_factors(self, purpose: str) -> None:
        """Refuse all but low-rank factors that are added to a weight.

        Args:
            purpose: what cannot be done with the others, "Compressing".

        Raises:
            AdapterError: some module has sparse entries, or magnitudes.
        """
        self.check_added(purpose)
        if self.entries:
            raise AdapterError(
                f"{purpose} needs low-rank factors, but this adapter holds sparse entries of its weights ({len(self.entries)} modules, "
                f"first: {next(iter(self.entries))!r}). Fuse it into its base model, or train a method whose update is of low rank."
            )


def _rebuild(
    modules: dict[str, Factors],
    heads: dict[str, Tensor],
    entries: dict[str, Entries],
    magnitudes: dict[str, Tensor],
    metadata: Metadata,
) -> Adapter:
    return Adapter(modules=modules, heads=heads, entries=entries, magnitudes=magnitudes, metadata=metadata)


def natural(path: str) -> tuple[tuple[int, str], ...]:
    """Sort key in which ``layer.2`` comes before ``layer.10``."""
    # Digits without leading zeros are in order by their number and then as text; as numbers they might be too long for Python.
    parts = ((part.lstrip("0"), part) for part in path.split("."))
    return tuple((len(digits), digits) if part.isdigit() else (-1, part) for digits, part in parts)
