r"""One module's sparse update, as a frozen value: a few entries of its weight, and where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from paring.core.errors import AdapterError

BLOCK = 2**16
"""Places that one number of two bytes can tell apart."""
_HALF = 2**15


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    r"""Some entries of one module's update; all others are zero.

    Attributes:
        index: where they are, ``(n,)`` int64, as flat places :math:`o \cdot \text{in} + i` of the (out, in) matrix, ascending.
        values: what they are, ``(n,)``.
        in_features, out_features: the module's widths.

    Raises:
        AdapterError: shapes do not fit together, or a place is outside the matrix or given twice.
    """

    index: Tensor
    values: Tensor
    in_features: int
    out_features: int

    def __post_init__(self) -> None:
        if self.index.ndim != 1 or self.index.shape != self.values.shape or self.index.dtype != torch.int64:
            raise AdapterError(
                f"Sparse entries need an int64 index and values of one length, got {tuple(self.index.shape)} {self.index.dtype} and "
                f"{tuple(self.values.shape)}."
            )
        if self.parameters and (
            int(self.index[0]) < 0 or int(self.index[-1]) >= self.in_features * self.out_features or not bool((self.index.diff() > 0).all())
        ):
            raise AdapterError(
                f"The places of sparse entries must ascend from 0 to below {self.out_features} x {self.in_features}, each given once."
            )

    @property
    def parameters(self) -> int:
        """How many entries there are."""
        return self.index.shape[0]

    @property
    def equivalent_rank(self) -> int:
        """The rank of the smallest LoRA with at least as many parameters: entries in units of ``in + out``, rounded up."""
        return -(-self.parameters // (self.in_features + self.out_features))

    @property
    def rank(self) -> int:
        """0: sparse entries have no ranks."""
        return 0

    @property
    def live_rank(self) -> int:
        """0: sparse entries have no ranks."""
        return 0

    def prune(self) -> Entries:
        """Itself: no entry dies."""
        return self

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Entries:
        """Move, or cast the values."""
        return replace(self, index=self.index.to(device=device), values=self.values.to(device=device, dtype=dtype))

    def materialise(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
        """The dense update, shape ``(out, in)``."""
        dense = torch.zeros(self.out_features * self.in_features, dtype=dtype, device=self.values.device)
        dense[self.index] = self.values.to(dtype)
        return dense.view(self.out_features, self.in_features)

    def apply(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        r"""The update applied to inputs, :math:`y_o = \sum_i \Delta W_{oi} x_i`, without forming the dense matrix."""
        rows, columns = self.index // self.in_features, self.index % self.in_features
        result = x.new_zeros(*x.shape[:-1], self.out_features)
        return result.index_add_(-1, rows, x[..., columns] * self.values.to(x.dtype))

    def times(self, factor: float) -> Entries:
        """The update times a number."""
        return self if factor == 1.0 else replace(self, values=self.values * factor)

    def pad(self, count: int) -> Entries:
        """Add entries that are zero, at the first free places, until there are ``count``; the update is unchanged.

        Raises:
            AdapterError: there are more already, or the matrix has fewer entries.
        """
        extra = count - self.parameters
        if extra < 0 or count > self.in_features * self.out_features:
            raise AdapterError(f"{self.parameters} entries of a {self.out_features} x {self.in_features} matrix cannot become {count}.")
        if not extra:
            return self
        # Among the first ``count`` places of the matrix at least ``extra`` are free.
        free = torch.ones(count, dtype=torch.bool, device=self.index.device)
        free[self.index[self.index < count]] = False
        added = torch.nonzero(free).flatten()[:extra]
        index, order = torch.sort(torch.cat([self.index, added]))
        return replace(self, index=index, values=torch.cat([self.values, self.values.new_zeros(extra)])[order])

    def packed(self) -> tuple[Tensor, Tensor]:
        """The index in two bytes an entry: its lowest 16 bits (minus 32768, int16), and the entries in each 65,536 places (int32)."""
        counts = torch.bincount(self.index // BLOCK, minlength=blocks(self.in_features, self.out_features))
        return (self.index % BLOCK - _HALF).to(torch.int16), counts.to(torch.int32)

    @staticmethod
    def total(parts: Sequence[Entries]) -> Entries:
        """The sum of sparse updates of one module: the union of their entries.

        Raises:
            AdapterError: nothing to add, or modules of different shapes.
        """
        if not parts:
            raise AdapterError("Nothing to add: give at least one set of sparse entries.")
        shapes = {(part.in_features, part.out_features) for part in parts}
        if len(shapes) > 1:
            raise AdapterError(f"Sparse entries of differently shaped modules do not add up: {sorted(shapes)}.")
        index, place = torch.unique(torch.cat([part.index for part in parts]), return_inverse=True)
        values = torch.cat([part.values for part in parts])
        return replace(parts[0], index=index, values=values.new_zeros(index.shape).index_add_(0, place, values))


def blocks(in_features: int, out_features: int) -> int:
    """How many times 65,536 places a matrix has, rounded up."""
    return -(-in_features * out_features // BLOCK)


def unpacked(low: Tensor, counts: Tensor) -> Tensor:
    """The flat index, int64, from what :meth:`Entries.packed` gave."""
    block = torch.repeat_interleave(torch.arange(counts.shape[0], device=counts.device), counts.long(), output_size=low.shape[0])
    return block * BLOCK + low.long() + _HALF
