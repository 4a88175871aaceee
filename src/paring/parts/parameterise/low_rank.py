r"""LoRA's parameterisation: :math:`\Delta W = s\,B A`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from paring.core.factors import Factors, whole
from paring.kernels.adapted import adapted_linear
from paring.kernels.low_rank import add_low_rank
from paring.parts.parameterise.base import Role
from paring.parts.parameterise.dropping import Dropping

Scaling: TypeAlias = Literal["standard", "rs"]


def scale_of(alpha: float, rank: int, scaling: Scaling) -> float:
    r"""``alpha / rank``, or rsLoRA's ``alpha / sqrt(rank)`` (arXiv 2312.03732)."""
    return alpha / math.sqrt(rank) if scaling == "rs" else alpha / rank


class LowRank(Dropping):
    r"""Factors ``A`` (r x in) and ``B`` (out x r); the update is :math:`s\,B A\,\mathrm{drop}(x)`.

    Args:
        start: the factors to begin with; ``start.scale`` is ``s``, constant from then on.
        dropout: probability of dropping an entry of the slot's input while training.
    """

    def __init__(self, start: Factors, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.A = nn.Parameter(start.a.detach().clone())
        self.B = nn.Parameter(start.b.detach().clone())
        self.scale = start.scale

    def weight(self) -> Tensor | float:
        """What the r-wide product is multiplied by."""
        return self.scale

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Base output plus update."""
        return add_low_rank(y, self.dropped(x), self.A, self.B, self.weight())

    def fuses(self, dtype: torch.dtype | None) -> bool:
        """Unless the factors are of another type than the product."""
        return dtype is None or self.A.dtype == self.B.dtype == dtype

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A frozen linear and the update in one function: see :mod:`paring.kernels.adapted`."""
        return adapted_linear(x, weight, bias, self.A, self.B, None, self.scale, dropout=self.dropping)

    def factors(self) -> Factors:
        """A detached copy of the update."""
        return Factors(a=whole(self.A).clone(), b=whole(self.B).clone(), scale=self.scale)

    def update_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """A and B are factors, B the one that goes up."""
        yield "A", self.A, Role.FACTOR
        yield "B", self.B, Role.UP

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"in={self.A.shape[1]}, out={self.B.shape[0]}, rank={self.A.shape[0]}, scale={self.scale:g}, dropout={self.dropout:g}"
