r"""Keep the largest entries of each adapter, and add up: TIES without its election.

.. math:: \Delta = \sum_i w_i\,\mathrm{top}_d(\Delta_i)

entry by entry, then cut to a rank. PEFT's ``magnitude_prune_svd``; its ``magnitude_prune`` is ``on="factors"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paring.merge.elementwise import Elementwise, largest_entries
from paring.merge.linear import weighted_total


@dataclass(frozen=True, kw_only=True)
class Magnitude(Elementwise):
    """Trim, add up.

    Attributes:
        density: share of the entries that is kept of each adapter, in (0, 1].
        on: entries of the dense updates, or of the factors.
        rank: on updates, at most so many ranks in every module; ``None`` for the largest that an adapter has in it.
        weights: one for each adapter; ``None`` for those of a mean.
    """

    name: ClassVar[str] = "magnitude"

    def thin(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """The largest entries."""
        return largest_entries(tensor, self.density)

    def join(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The sum."""
        return weighted_total(tensors, weights)

    def _equal(self, count: int) -> float:
        return self._equal_of_sums(count)
