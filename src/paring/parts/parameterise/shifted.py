r"""LoRA that starts anywhere and leaves the base as it is: :math:`\Delta W = s\,(B A - B_0 A_0)`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from paring.core.factors import Factors, whole
from paring.kernels.adapted import adapted_linear
from paring.kernels.low_rank import add_low_rank
from paring.parts.initialise.matrix import MatrixStart
from paring.parts.parameterise.base import Role
from paring.parts.parameterise.low_rank import LowRank
from paring.parts.parameterise.waiting import Waiting, frozen
from paring.parts.shape import Shape


class Shifted(Waiting, LowRank):
    r"""Trained factors A (r x in) and B (out x r), and their start, frozen, whose product is taken away.

    Methods that start from more than zero shift the weight by it, :math:`W - s\,B_0 A_0`. Here the weight stays as it is, on disk and in
    memory, and the shift is part of the slot. It is never formed as a difference of two products:

    .. math:: B A - B_0 A_0 = (B - B_0)\,A + B_0\,(A - A_0)

    is exactly zero at the start, and small where the update is small, whatever the size of the start. So it is a plain LoRA of rank 2r.

    Args:
        shape: the module.
        rank: r.
        scale: s.
        rule: where the start comes from.
        dropout: probability of dropping an entry of the slot's input while training.
    """

    def __init__(self, shape: Shape, rank: int, scale: float, rule: MatrixStart, dropout: float = 0.0) -> None:
        a, b = torch.zeros(rank, shape.in_features), torch.zeros(shape.out_features, rank)
        super().__init__(Factors(a=a, b=b, scale=scale), dropout)
        self.A0, self.B0 = frozen(a.clone()), frozen(b.clone())
        self.rule = rule
        self.wait(rule.source)

    def begin(self, matrix: Tensor, generator: torch.Generator) -> None:
        """Start at the rule's factors."""
        start = self.rule.factors(matrix, self.A.shape[0], self.scale, generator)
        self.started(A=start.a.clone(), B=start.b.clone(), A0=start.a, B0=start.b)

    def joint(self) -> tuple[Tensor, Tensor]:
        """Factors of rank 2r with the same update."""
        return torch.cat([self.A, self.A - self.A0]), torch.cat([self.B - self.B0, self.B0], dim=1)

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Base output plus update."""
        self.check_begun()
        a, b = self.joint()
        return add_low_rank(y, self.dropped(x), a, b, self.scale)

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A frozen linear and the update in one function: see :mod:`paring.kernels.adapted`."""
        self.check_begun()
        a, b = self.joint()
        return adapted_linear(x, weight, bias, a, b, None, self.scale, dropout=self.dropping)

    def factors(self) -> Factors:
        """A detached copy of the update, of rank 2r."""
        a, a0, b, b0 = whole(self.A), whole(self.A0), whole(self.B), whole(self.B0)
        return Factors(a=torch.cat([a, a - a0]), b=torch.cat([b - b0, b0], dim=1), scale=self.scale)

    def update_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """A and B are factors; where they started is frozen."""
        yield from super().update_roles()
        yield "A0", self.A0, Role.FROZEN
        yield "B0", self.B0, Role.FROZEN
