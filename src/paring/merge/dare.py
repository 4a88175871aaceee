r"""DARE: drop entries at random, rescale what is left, then add up, or elect signs as TIES does.

.. math:: \hat\tau_i = m_i \odot \Delta_i / d, \quad m_i \sim \mathrm{Bernoulli}(d), \qquad \Delta = \sum_i w_i \hat\tau_i

entry by entry, then cut to a rank. With ``majority`` the sum is TIES's mean of those that agree.

Source: DARE, "Language Models are Super Mario" (arXiv 2311.03099, ICML 2024). PEFT's ``dare_linear_svd`` is ``DARE()``, its
    ``dare_ties_svd`` is
``DARE(majority="total")``, and without ``_svd`` they are the same with ``on="factors"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paring.core.coding import choice
from paring.merge.elementwise import MAJORITIES, Elementwise, Majority, disjoint_mean
from paring.merge.linear import weighted_total


@dataclass(frozen=True, kw_only=True)
class DARE(Elementwise):
    """Drop at random, rescale, combine.

    Attributes:
        density: probability with which an entry is kept, in (0, 1].
        seed: of what is dropped.
        rescale: divide what is left by ``density``, so that its expectation is the whole.
        majority: elect signs and average what agrees, as TIES; ``None`` adds up.
        on: entries of the dense updates, or of the factors.
        rank: on updates, at most so many ranks in every module; ``None`` for the largest that an adapter has in it.
        weights: one for each adapter; ``None`` for those of a mean.
    """

    name: ClassVar[str] = "dare"

    seed: int = 0
    rescale: bool = True
    majority: Majority | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.majority is not None:
            choice("majority", self.majority, MAJORITIES)

    def thin(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """Each entry with the probability ``density``."""
        # Drawn on the CPU, so that a seed means the same on every device.
        chances = torch.full(tensor.shape, self.density, dtype=tensor.dtype)
        kept = tensor * torch.bernoulli(chances, generator=generator).to(tensor.device)
        return kept / self.density if self.rescale else kept

    def join(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The sum, or the mean of those that agree."""
        return weighted_total(tensors, weights) if self.majority is None else disjoint_mean(tensors, weights, self.majority)

    def generator(self) -> torch.Generator:
        """Seeded."""
        return torch.Generator().manual_seed(self.seed)

    def _equal(self, count: int) -> float:
        return 1.0 if self.majority is not None else self._equal_of_sums(count)
