r"""SHiRA's parameterisation: :math:`\Delta W` with a few trained entries, :math:`\Delta W_{oi} = v_k` at the places of a fixed mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paring.core.entries import Entries, blocks, unpacked
from paring.core.factors import whole
from paring.kernels.entries import Places, add_entries, entries_linear
from paring.parts.initialise.mask import Mask, drawn, largest, source_of
from paring.parts.parameterise.base import Role
from paring.parts.parameterise.waiting import Waiting
from paring.parts.parameterise.whole import HoldsWhole, Whole
from paring.parts.shape import Shape


class Sparse(HoldsWhole, Waiting):
    r"""Values v (n), trained, and where they belong, frozen.

    The places are kept in two bytes each (see :meth:`paring.core.entries.Entries.packed`), as parameters of whole numbers, so that whatever
    copies or saves parameters has them and no cast touches them.

    Args:
        shape: the module.
        count: n.
        mask: how the places are chosen.
        generator: draws them where the mask does.
    """

    whole: ClassVar[tuple[str, ...]] = ("low", "counts")
    low: Whole
    counts: Whole

    def __init__(self, shape: Shape, count: int, mask: Mask, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.values = nn.Parameter(torch.zeros(count))
        self.whole_numbers("low", count, torch.int16)
        self.whole_numbers("counts", blocks(shape.in_features, shape.out_features), torch.int32)
        self._places: Places | None = None
        self.wait(source_of(mask))
        if self.source is None and not self.values.is_meta:
            self._put(drawn(mask, shape, count, generator))

    def begin(self, matrix: Tensor, generator: torch.Generator) -> None:
        """Choose the places where a matrix is largest."""
        self._put(largest(matrix, self.values.shape[0]))

    @torch.no_grad()
    def _put(self, index: Tensor) -> None:
        low, counts = self._entries(index).packed()
        self.low.copy_(low)
        self.counts.copy_(counts)
        self._places, self._begun = None, True

    def _entries(self, index: Tensor) -> Entries:
        shape = self.shape
        values = whole(self.values).to(index.device)
        return Entries(index=index, values=values, in_features=shape.in_features, out_features=shape.out_features)

    def places(self) -> Places:
        """Where the entries are, on the slot's device."""
        if self._places is None or self._places.index.device != self.low.device:
            index = unpacked(self.low, self.counts)
            self._places = Places.of(index, self.shape.in_features, self.shape.out_features)
        return self._places

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Base output plus update."""
        self.check_begun()
        return add_entries(y, x, self.values, self.places()) if self.has_begun else y

    def fuses(self, dtype: torch.dtype | None) -> bool:
        """Where the values are no coarser than the product."""
        return self.has_begun and (dtype is None or self.values.dtype == dtype)

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A frozen linear with the entries in its weight: see :mod:`paring.kernels.entries`.

        In a weight that is stored in less than float32 a small value would be rounded away, so there the two stay apart.
        """
        if weight.dtype in (torch.float32, torch.float64):
            return entries_linear(x, weight, bias, self.values, self.places())
        return add_entries(F.linear(x, weight, bias), x, self.values, self.places())

    def delta(self) -> Entries:
        """A detached copy of the entries."""
        if not self.has_begun:
            return self._entries(torch.arange(self.values.shape[0], device=self.values.device))
        return self._entries(unpacked(whole(self.low), whole(self.counts))).to(dtype=self.values.dtype)

    def update_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """The values are trained, their places are not."""
        yield "values", self.values, Role.FACTOR
        yield "low", self.low, Role.FROZEN
        yield "counts", self.counts, Role.FROZEN

    def replaced(self) -> None:
        """Look for the places anew."""
        self._places = None

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"in={self.shape.in_features}, out={self.shape.out_features}, entries={self.values.shape[0]}"
