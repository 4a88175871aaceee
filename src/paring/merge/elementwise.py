r"""Rules that look at single entries: thin each adapter out, combine what is left.

On ``"updates"`` the entries are those of the dense :math:`\Delta_i`, as in the papers, and the result is cut to a rank by its
singular values: one module at a time, but every adapter's dense update of it at once. On ``"factors"`` they are those of the A and
of the B, each by itself and before any scale, with the roots of ``Linear`` as weights: cheaper, and a rule of PEFT's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from paring.core.coding import choice, number, positive_int
from paring.core.errors import SettingError
from paring.core.factors import Factors
from paring.core.linalg import truncated_svd
from paring.merge.linear import roots, weighted_total
from paring.merge.rule import Weighted
from paring.merge.svd import largest, leading

On: TypeAlias = Literal["updates", "factors"]
Majority: TypeAlias = Literal["total", "frequency"]
MAJORITIES = ("total", "frequency")


def largest_entries(tensor: Tensor, density: float) -> Tensor:
    """The share ``density`` of the entries that are largest in size, rounded down to a whole number; the others are zero."""
    flat = tensor.flatten()
    kept = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(tensor)


def disjoint_mean(tensors: Sequence[Tensor], weights: Sequence[float], majority: Majority) -> Tensor:
    r"""TIES's election and mean: for each entry the sign that most adapters have, and the mean over those that have it.

    .. math:: \gamma = \mathrm{sgn} \sum_i \tau_i \;(\text{total}) \quad\text{or}\quad \mathrm{sgn} \sum_i \mathrm{sgn}\,\tau_i \;
        (\text{frequency}), \qquad \frac{1}{|S|} \sum_{i \in S} w_i \tau_i, \quad S = \{i : \mathrm{sgn}\,\tau_i = \gamma\}

    Weights have no vote, a tie is positive, and a zero is on neither side: all as in PEFT.
    """
    stacked = torch.stack(list(tensors))
    votes = stacked if majority == "total" else stacked.sign()
    elected = torch.where(votes.sum(0) >= 0, 1.0, -1.0).to(stacked.dtype)
    agree = stacked.sign() == elected
    return weighted_total(list(stacked * agree), weights) / agree.sum(0).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class Elementwise(Weighted):
    """A rule that thins out and combines entries.

    Attributes:
        density: share of the entries that is kept of each adapter, in (0, 1].
        on: entries of the dense updates, or of the factors.
        rank: on updates, at most so many ranks in every module; ``None`` for the largest that an adapter has in it.
        weights: one for each adapter; ``None`` for equal ones.

    Raises:
        SettingError: a setting is out of range, or a rank is given for factors, which keep the largest.
    """

    density: float = 0.5
    on: On = "updates"
    rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        number("density", self.density, low=0.0, high=1.0, open_low=True)
        choice("on", self.on, ("updates", "factors"))
        if self.rank is not None:
            positive_int("rank", self.rank)
            if self.on == "factors":
                raise SettingError(
                    f"rank={self.rank}: on='factors' keeps the largest rank that an adapter has; leave rank out, or give on='updates'."
                )

    def combine(self, parts: Sequence[Factors], weights: Sequence[float], generator: torch.Generator) -> Factors:
        """Thin out, combine, and on updates cut to the rank."""
        if self.on == "updates":
            total = self.join([self.thin(part.materialise(part.b.dtype), generator) for part in parts], weights)
            return leading(truncated_svd(total, min(total.shape)), self.rank or largest(parts))
        rank = largest(parts)
        # A's of all adapters before the B's, as PEFT draws them; padding is no entry that could be kept.
        downs = [_padded(self.thin(part.a, generator), rank) for part in parts]
        ups = [_padded(self.thin(part.b, generator).T, rank).T for part in parts]
        left, right = roots(parts, weights)
        return Factors(a=self.join(downs, left), b=self.join(ups, right))

    @abstractmethod
    def thin(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """The entries that are kept; the others are zero."""

    @abstractmethod
    def join(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """One tensor out of those of all adapters."""

    def _equal_of_sums(self, count: int) -> float:
        """As in ``Concatenation`` and ``Linear``, for those that add up."""
        return 1 / count if self.on == "updates" else 1 / count**2


def _padded(rows: Tensor, rank: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(rank - rows.shape[0], rows.shape[1])])
