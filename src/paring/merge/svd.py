r"""The best approximation of the weighted sum of the updates, of a given rank.

.. math:: \sum_i w_i \Delta_i = U\,\mathrm{diag}(\sigma)\,V^\top, \qquad
    A = \mathrm{diag}(\sqrt{\sigma_r})\,V_r^\top, \quad B = U_r\,\mathrm{diag}(\sqrt{\sigma_r})

The decomposition goes through the QR core of the concatenated factors, never through a dense update. PEFT's ``svd`` decomposes the
dense update and leaves the singular values in B; the product is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from paring.core import linalg
from paring.core.coding import positive_int
from paring.core.factors import Factors
from paring.merge.concatenation import concatenated
from paring.merge.rule import Weighted


def largest(parts: Sequence[Factors]) -> int:
    """The largest rank that an adapter has in this module."""
    return max(part.rank for part in parts)


def leading(found: linalg.SVD, rank: int) -> Factors:
    """At most so many leading triplets, without those that are the rounding of the first."""
    noise = found.s[:1] * torch.finfo(found.s.dtype).eps * max(found.u.shape[0], found.vt.shape[1])
    b, a = found.truncate(min(rank, int((found.s > noise).sum()))).halves()
    return Factors(a=a, b=b)


@dataclass(frozen=True, kw_only=True)
class SVD(Weighted):
    """The weighted sum of the updates, cut to a rank by its singular values.

    Attributes:
        rank: at most so many ranks in every module; ``None`` for the largest that an adapter has in it.
        weights: one for each adapter; ``None`` for the mean.
    """

    name: ClassVar[str] = "svd"

    rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None:
            positive_int("rank", self.rank)

    def combine(self, parts: Sequence[Factors], weights: Sequence[float], generator: torch.Generator) -> Factors:
        """The leading singular triplets of the sum."""
        total = concatenated(parts, weights)
        return leading(linalg.product_svd(total.b, total.a), self.rank or largest(parts))
