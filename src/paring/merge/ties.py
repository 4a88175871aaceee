r"""TIES: keep the largest entries, elect a sign for each, average those that agree with it.

.. math:: \hat\tau_i = \mathrm{top}_d(\Delta_i), \qquad \gamma = \mathrm{sgn} \sum_i \hat\tau_i, \qquad
    \Delta = \frac{1}{|S|} \sum_{i \in S} w_i \hat\tau_i, \quad S = \{i : \mathrm{sgn}\,\hat\tau_i = \gamma\}

entry by entry, then cut to a rank. Equal weights are 1 (the paper's :math:`\lambda`), since the mean is over those that agree.

Source: TIES-Merging (arXiv 2306.01708, NeurIPS 2023), which trims all parameters of a model together; here, as in PEFT, each module
    by itself.
PEFT's ``ties_svd`` is ``TIES()``, its ``ties`` is ``TIES(on="factors")``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paring.core.coding import choice
from paring.merge.elementwise import MAJORITIES, Elementwise, Majority, disjoint_mean, largest_entries


@dataclass(frozen=True, kw_only=True)
class TIES(Elementwise):
    """Trim, elect signs, average what agrees.

    Attributes:
        density: share of the entries that is kept of each adapter, in (0, 1].
        majority: whether a sign is elected by the sum of the entries or by their number.
        on: entries of the dense updates, or of the factors.
        rank: on updates, at most so many ranks in every module; ``None`` for the largest that an adapter has in it.
        weights: one for each adapter; ``None`` for 1 each.
    """

    name: ClassVar[str] = "ties"

    majority: Majority = "total"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("majority", self.majority, MAJORITIES)

    def thin(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """The largest entries."""
        return largest_entries(tensor, self.density)

    def join(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The mean of those that agree."""
        return disjoint_mean(tensors, weights, self.majority)

    def _equal(self, count: int) -> float:
        return 1.0
