r"""LoRA-XS's parameterisation: :math:`\Delta W = s\,B R A` with frozen A and B and a small trained core R."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from paring.core.factors import Factors, whole
from paring.kernels.adapted import adapted_linear
from paring.kernels.low_rank import add_low_rank
from paring.parts.initialise.matrix import MatrixStart
from paring.parts.parameterise.base import Role
from paring.parts.parameterise.dropping import Dropping
from paring.parts.parameterise.waiting import Waiting, frozen
from paring.parts.shape import Shape


class Core(Waiting, Dropping):
    r"""A (r x in) and B (out x r) frozen, R (r x r) trained.

    A step of gradient descent on R moves the update by the gradient's projection, :math:`-\eta\,s^2\,B B^\top G A^\top A`.

    Args:
        shape: the module.
        core: R to begin with, where the rule does not say.
        scale: s.
        rule: where A and B, and R where it says so, come from.
        dropout: probability of dropping an entry of the slot's input while training.
    """

    def __init__(self, shape: Shape, core: Tensor, scale: float, rule: MatrixStart, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        rank = core.shape[0]
        self.A, self.B = frozen(torch.zeros(rank, shape.in_features)), frozen(torch.zeros(shape.out_features, rank))
        self.R = nn.Parameter(core.detach().clone())
        self.scale = scale
        self.rule = rule
        self.wait(rule.source)

    def begin(self, matrix: Tensor, generator: torch.Generator) -> None:
        """Start at the rule's factors, whose gate is R's diagonal."""
        start = self.rule.factors(matrix, self.R.shape[0], self.scale, generator)
        self.started(A=start.a, B=start.b, **({} if start.gate is None else {"R": torch.diag(start.gate)}))

    def down(self) -> Tensor:
        """R A, in the type of the two also under autocast."""
        with torch.autocast(self.A.device.type, enabled=False):
            return self.R @ self.A

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Base output plus update."""
        self.check_begun()
        return add_low_rank(y, self.dropped(x), self.down(), self.B, self.scale)

    def fuses(self, dtype: torch.dtype | None) -> bool:
        """Unless the factors are of another type than the product."""
        return dtype is None or self.A.dtype == self.B.dtype == self.R.dtype == dtype

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A frozen linear and the update in one function: see :mod:`paring.kernels.adapted`."""
        self.check_begun()
        return adapted_linear(x, weight, bias, self.down(), self.B, None, self.scale, dropout=self.dropping)

    def factors(self) -> Factors:
        """A detached copy of the update, R folded into A."""
        return Factors(a=whole(self.R) @ whole(self.A), b=whole(self.B).clone(), scale=self.scale)

    def update_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """R is trained, A and B are not."""
        yield "A", self.A, Role.FROZEN
        yield "B", self.B, Role.FROZEN
        yield "R", self.R, Role.FACTOR

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"in={self.A.shape[1]}, out={self.B.shape[0]}, rank={self.A.shape[0]}, scale={self.scale:g}, dropout={self.dropout:g}"
