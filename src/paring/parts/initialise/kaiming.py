"""LoRA's start: A uniform, B zero, so that the update starts at exactly zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from paring.core.factors import Factors
from paring.parts.initialise.base import Initialiser
from paring.parts.shape import Shape


@dataclass(frozen=True, kw_only=True)
class KaimingZero(Initialiser):
    r"""``A`` uniform in :math:`\pm 1/\sqrt{\text{in}}` (Kaiming with :math:`a=\sqrt5`), ``B = 0``.

    Source: LoRA (arXiv 2106.09685) as its authors and PEFT implement it; the paper's text says "random Gaussian" for A.
    """

    name: ClassVar[str] = "kaiming_zero"

    def factors(self, shape: Shape, rank: int, scale: float, generator: torch.Generator) -> Factors:
        """Starting factors of one module."""
        bound = 1.0 / math.sqrt(shape.in_features)
        a = torch.rand(rank, shape.in_features, generator=generator, device="cpu").mul_(2.0 * bound).sub_(bound)
        return Factors(a=a, b=torch.zeros(shape.out_features, rank, device="cpu"), scale=scale)
