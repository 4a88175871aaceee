r"""A weighted sum of the factors, not of the updates: cheap, and a rough approximation.

.. math:: A = \sum_i \varepsilon_i \sqrt{|w_i s_i|}\,A_i, \quad B = \sum_i \sqrt{|w_i s_i|}\,B_i, \qquad
    \varepsilon_i = \mathrm{sgn}(w_i s_i)

The product holds :math:`\sum_i w_i \Delta_i` and all the cross terms :math:`B_i A_j`, which mean nothing: rank 1 of one adapter has
nothing to do with rank 1 of another. Where only the sum is meant take ``Concatenation`` or ``SVD``. PEFT's ``linear``; with
:math:`w_i = v_i^2` it is the composition of LoraHub (arXiv 2307.13269), :math:`(\sum_i v_i B_i)(\sum_i v_i A_i)`. Weights of 1/n
double two copies of one adapter, here as in PEFT; those of 1/n^2, the default, are the means of the factors. PEFT refuses different
ranks; here the missing ones are zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paring.core.factors import Factors
from paring.merge.rule import Weighted
from paring.merge.svd import largest


def roots(parts: Sequence[Factors], weights: Sequence[float]) -> tuple[list[float], list[float]]:
    """What each A and each B is multiplied with: the root of weight times scale, its sign on A's side."""
    products = [part.scale * weight for part, weight in zip(parts, weights, strict=True)]
    sizes = [math.sqrt(abs(product)) for product in products]
    return [math.copysign(size, product) for size, product in zip(sizes, products, strict=True)], sizes


def weighted_total(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Tensors of one shape, each times its weight, summed."""
    stacked = torch.stack(list(tensors))
    factors = torch.tensor(weights, dtype=stacked.dtype, device=stacked.device)
    total: Tensor = torch.tensordot(factors, stacked, dims=1)
    return total


@dataclass(frozen=True, kw_only=True)
class Linear(Weighted):
    """A weighted sum of the factors.

    Attributes:
        weights: one for each adapter, its root on each factor; ``None`` for the means of the factors, 1/n^2.
    """

    name: ClassVar[str] = "linear"

    def combine(self, parts: Sequence[Factors], weights: Sequence[float], generator: torch.Generator) -> Factors:
        """Of the largest rank."""
        padded = [part.pad(largest(parts)) for part in parts]
        left, right = roots(parts, weights)
        return Factors(a=weighted_total([part.a for part in padded], left), b=weighted_total([part.b for part in padded], right))

    def _equal(self, count: int) -> float:
        return 1 / count**2
