"""Which of its ranks a nested adapter is trained with at each step."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from paring.core.coding import number, positive_int
from paring.parts.update.proximal import Update


@dataclass(frozen=True, kw_only=True)
class Draw(Update):
    r"""A rank for each step, :math:`P(b) \propto \rho^{b}` for :math:`b_\min \le b \le R`, which follows from the seed and the step alone.

    So all modules, all processes and a run that is resumed draw alike.

    Attributes:
        seed: of the draws.
        lowest: :math:`b_\min`.
        ratio: :math:`\rho`; 1 is uniform, less prefers small ranks.
    """

    name: ClassVar[str] = "draw"

    seed: int = 0
    lowest: int = 1
    ratio: float = 1.0

    def __post_init__(self) -> None:
        positive_int("lowest", self.lowest)
        number("seed", self.seed, low=0)
        number("ratio", self.ratio, low=0.0, open_low=True)

    def rank(self, step: int, most: int) -> int:
        """The rank of the step that follows ``step`` others, of at most ``most``."""
        ranks = range(min(self.lowest, most), most + 1)
        # Weights in relation to the largest, so that none overflows.
        weights = [self.ratio ** (b - (ranks[0] if self.ratio < 1 else ranks[-1])) for b in ranks]
        return random.Random(f"{self.seed}/{step}").choices(ranks, weights)[0]
