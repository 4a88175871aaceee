"""Start from a trained LoRA."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from paring.core.adapter import Adapter
from paring.core.errors import AdapterError, near
from paring.core.factors import Factors
from paring.parts.initialise.base import Initialiser
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.shape import Shape


@dataclass(frozen=True, kw_only=True)
class FromAdapter(Initialiser):
    r"""Start at a trained adapter's update: :math:`s\,B\,A = s_0 B_0 A_0` at the first step.

    ``B`` takes up the ratio of the scales. Ranks above the adapter's own start as LoRA's do (A uniform, B zero), so that they
    can train; a zero row in both factors never would.

    Attributes:
        adapter: the trained adapter. It is not written into configurations: once training has begun the weights are in
            the checkpoint, and a configuration read back only tells where the run started.
        source: the folder or hub id it was read from, for the record.
        ranks: where given, ``(module, rank)``: each module has this rank and not the method's, so that an adapter with ranks of its own is
            trained on as it is.
    """

    name: ClassVar[str] = "from_adapter"

    source: str | None = None
    ranks: tuple[tuple[str, int], ...] | list[list[Any]] | None = None
    adapter: Adapter | None = field(default=None, metadata={"transient": True}, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.ranks is not None:
            # Lists, where they come out of a file.
            object.__setattr__(self, "ranks", tuple((str(path), int(rank)) for path, rank in self.ranks))

    def rank(self, shape: Shape, rank: int) -> int:
        """The module's own rank, where ranks are kept.

        Raises:
            AdapterError: the adapter does not know the module.
        """
        if self.ranks is None:
            return rank
        known = {path: int(own) for path, own in self.ranks}
        if shape.path not in known:
            raise AdapterError(
                f"Module {shape.path!r} is targeted, but the adapter to start from has no ranks for it."
                f"{near(shape.path, known)} Target the modules that the adapter has."
            )
        return known[shape.path]

    def check(self, shape: Shape, rank: int) -> None:
        """Refuse a module that the adapter does not know, or whose shapes or rank do not fit.

        Raises:
            AdapterError: names the module and what does not fit.
        """
        if self.adapter is not None:
            self._start(self.adapter, shape, rank)

    def factors(self, shape: Shape, rank: int, scale: float, generator: torch.Generator) -> Factors:
        """Starting factors of one module.

        Raises:
            AdapterError: the adapter does not know the module, or its shapes or rank do not fit.
        """
        fresh = KaimingZero().factors(shape, rank, scale, generator)
        if self.adapter is None:
            warnings.warn(
                f"The configuration starts from the adapter {self.source!r}, which is not part of a configuration: {shape.path} "
                "keeps LoRA's start until weights are loaded. To start afresh, build the method with from_adapter again.",
                stacklevel=2,
            )
            return fresh
        start = self._start(self.adapter, shape, rank).fold()
        a = torch.cat([start.a.cpu(), fresh.a[start.rank :]])
        b = torch.cat([start.b.cpu() / scale, fresh.b[:, start.rank :]], dim=1)
        return Factors(a=a, b=b, scale=scale)

    def _start(self, adapter: Adapter, shape: Shape, rank: int) -> Factors:
        known = adapter.modules.get(shape.path)
        if known is None:
            raise AdapterError(
                f"Module {shape.path!r} is targeted, but the adapter to start from has no factors for it."
                f"{near(shape.path, adapter.modules)} Target the modules that the adapter has."
            )
        start = known.prune()
        if (start.in_features, start.out_features) != (shape.in_features, shape.out_features):
            raise AdapterError(
                f"Module {shape.path!r} is {shape.in_features} -> {shape.out_features}, but the adapter's factors are "
                f"{start.in_features} -> {start.out_features}: it was trained on another base model."
            )
        if start.rank > rank:
            raise AdapterError(f"Module {shape.path!r} has rank {start.rank} in the adapter, above rank={rank}; raise the rank.")
        return start
