r"""PiSSA's start: the principal singular triplets of the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paring.core.factors import Factors
from paring.parts.initialise.matrix import Decomposed
from paring.parts.parameterise.base import Source


@dataclass(frozen=True, kw_only=True)
class Principal(Decomposed):
    r""":math:`A = \mathrm{diag}(\sqrt{\sigma/s})\,V_r^\top`, :math:`B = U_r\,\mathrm{diag}(\sqrt{\sigma/s})`, so that
    :math:`s\,B A = W_r`, the best approximation of rank r of the weight.

    Attributes:
        iterations: power iterations of a randomised decomposition; ``None`` is exact.

    Source: Meng, Wang and Zhang, PiSSA (arXiv 2404.02948, NeurIPS 2024).
    """  # noqa: D205

    source: ClassVar[Source] = Source.WEIGHT

    def factors(self, matrix: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
        """Starting factors."""
        svd = self.leading(matrix, rank, generator)
        b, a = svd._replace(s=svd.s / scale).halves()
        return Factors(a=a, b=b, scale=scale)


@dataclass(frozen=True, kw_only=True)
class Singular(Decomposed):
    r""":math:`A = V_r^\top`, :math:`B = U_r\,\mathrm{diag}(\sigma)` of the weight: what LoRA-XS freezes.

    Attributes:
        iterations: power iterations of a randomised decomposition; ``None`` is exact.

    Source: Bałazy et al., LoRA-XS (arXiv 2405.17604), as the authors of LoRA-SB implement it.
    """

    source: ClassVar[Source] = Source.WEIGHT

    def factors(self, matrix: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
        """Frozen factors."""
        svd = self.leading(matrix, rank, generator)
        return Factors(a=svd.vt, b=svd.u * svd.s, scale=scale)
