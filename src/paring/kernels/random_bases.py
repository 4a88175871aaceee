r"""Mixes of seeded random matrices that are nowhere stored: :math:`\sum_i c_i M_i`.

The entries of the bases are uniform on the 65,536 odd multiples of :math:`2^{-16}` in (-1, 1), over :math:`\sqrt k`. Four of them are cut
out of each 64-bit draw of a CPU generator of their own, three times as quick as drawing floats. So their bits are the same on every
device, and no other generator is touched. They are drawn in blocks, in the forward and again in the backward, and one block is in memory
at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int16
from torch import Tensor

BLOCK = 32
"""Bases in a block. Sums are formed block by block, whether the bases are drawn or kept, so that they round alike."""

LEVELS = 2.0**15


@dataclass(frozen=True)
class Bases:
    r"""k random matrices of one shape, by their seed.

    Attributes:
        seed: of the generator, of which torch's takes 32 bits.
        count: k.
        rows, columns: of each matrix.
        drawn: their 16-bit integers, where they are kept (:meth:`keep`); on any device.
    """

    seed: int
    count: int
    rows: int
    columns: int
    drawn: Int16[Tensor, "k size"] | None = field(default=None, compare=False, repr=False)

    def keep(self, device: torch.device) -> Bases:
        """The same bases with their integers in memory, two bytes an entry."""
        return replace(self, drawn=torch.cat([block.to(device) for block in self._blocks()]))

    def mix(self, coefficients: Float[Tensor, " k"], value: Float[Tensor, "rows columns"] | None = None) -> Float[Tensor, "rows columns"]:
        r""":math:`\sum_i c_i M_i`, summed in float32 at least, in the type of the coefficients; differentiable.

        Args:
            coefficients: c.
            value: the sum, plus any constant, where it is known already; then nothing is drawn before the backward.
        """
        mixed: Tensor = _Mix.apply(coefficients, self, value)  # type: ignore[no-untyped-call]
        return mixed

    def products(self, matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, " k"]:
        r""":math:`\langle M_i, X\rangle` of all i, the transpose of :meth:`mix`; differentiable."""
        found: Tensor = _Products.apply(matrix, self)  # type: ignore[no-untyped-call]
        return found

    def matrices(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "k rows columns"]:
        """All of them in memory, on the CPU: the plain way."""
        whole = torch.cat([_floats(block, torch.device("cpu"), dtype) for block in self._blocks()])
        return (whole * self._unit).view(self.count, self.rows, self.columns)

    @property
    def _unit(self) -> float:
        return 1.0 / (LEVELS * math.sqrt(self.count))

    def _blocks(self) -> Iterator[Int16[Tensor, "block size"]]:
        """The integers of each block, one matrix a row."""
        if self.drawn is not None:
            yield from torch.split(self.drawn, BLOCK)
            return
        generator = torch.Generator("cpu").manual_seed(self.seed)
        size = self.rows * self.columns
        for start in range(0, self.count, BLOCK):
            # Each matrix begins with a draw of its own.
            draws = torch.empty(min(BLOCK, self.count - start), -(-size // 4), dtype=torch.int64, device="cpu")
            yield draws.random_(-(2**63), None, generator=generator).view(torch.int16)[:, :size]

    @torch.no_grad()
    def _mixed(self, coefficients: Tensor) -> Tensor:
        dtype = torch.promote_types(coefficients.dtype, torch.float32)
        with torch.autocast(coefficients.device.type, enabled=False):
            total = coefficients.new_zeros(self.rows * self.columns, dtype=dtype)
            for part, block in zip(torch.split(coefficients.to(dtype), BLOCK), self._blocks(), strict=True):
                total.addmv_(_floats(block, total.device, dtype).t(), part)
            return total.mul_(self._unit).to(coefficients.dtype).view(self.rows, self.columns)

    @torch.no_grad()
    def _multiplied(self, matrix: Tensor) -> Tensor:
        dtype = torch.promote_types(matrix.dtype, torch.float32)
        with torch.autocast(matrix.device.type, enabled=False):
            entries = matrix.to(dtype).reshape(-1)
            found = torch.cat([_floats(block, entries.device, dtype) @ entries for block in self._blocks()])
            return found.mul_(self._unit).to(matrix.dtype)


def _floats(block: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A block's entries in units of 1/32768, moved while they are two bytes each."""
    return block.to(device).to(dtype).add_(0.5)


class _Mix(torch.autograd.Function):
    """Keeps nothing for the backward but the seed."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, bases: Bases, value: Tensor | None) -> Tensor:
        ctx.bases = bases
        return bases._mixed(coefficients) if value is None else value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.bases.products(gradient), None, None


class _Products(torch.autograd.Function):
    """The transpose of :class:`_Mix`."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, bases: Bases) -> Tensor:
        ctx.bases = bases
        return bases._multiplied(matrix)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.bases.mix(gradient), None
