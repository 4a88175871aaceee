r"""OLoRA's start: the leading columns of the weight's QR decomposition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paring.core.factors import Factors
from paring.parts.initialise.matrix import MatrixStart
from paring.parts.parameterise.base import Source


@dataclass(frozen=True, kw_only=True)
class Orthonormal(MatrixStart):
    r""":math:`W = Q R`, :math:`B = Q_{:, :r}`, :math:`A = R_{:r}`: B's columns are orthonormal, and span what the first r columns of W do.

    Source: Büyükakyüz, OLoRA (arXiv 2406.01775).
    """

    source: ClassVar[Source] = Source.WEIGHT

    def factors(self, matrix: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
        """Starting factors."""
        found = torch.linalg.qr(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))
        return Factors(a=found.R[:rank], b=found.Q[:, :rank], scale=scale)
