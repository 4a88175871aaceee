r"""The weighted sum of the updates, exactly: ranks add up.

.. math:: \Delta = \sum_i w_i \Delta_i, \qquad A = [A_1; \dots; A_n], \quad B = [w_1 s_1 B_1, \dots, w_n s_n B_n]

With :math:`w_i = 1/n` it is the mean, with :math:`w_i = \lambda` task arithmetic (arXiv 2212.04089). PEFT's ``cat``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from paring.core.factors import Factors
from paring.merge.rule import Weighted


def concatenated(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The weighted sum, of the sum of the ranks, with scale 1."""
    weighted = [replace(part, scale=part.scale * weight) for part, weight in zip(parts, weights, strict=True)]
    return Factors.concatenate(weighted, parts[0].b.dtype)


@dataclass(frozen=True, kw_only=True)
class Concatenation(Weighted):
    """The weighted sum of the updates, exactly.

    Attributes:
        weights: one for each adapter; ``None`` for the mean.
    """

    name: ClassVar[str] = "concatenation"

    def combine(self, parts: Sequence[Factors], weights: Sequence[float], generator: torch.Generator) -> Factors:
        """All ranks of all parts."""
        return concatenated(parts, weights)
