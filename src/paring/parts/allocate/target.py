"""How small an adapter is to become, and what a module loses by it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from paring.core.coding import Coded, member, number, positive_int
from paring.parts.allocate.budget import Budget
from paring.parts.allocate.spectral import allocate


class Target(Coded):
    """Family of the sizes that an adapter can be compressed to."""

    @abstractmethod
    def ranks(self, spectra: Sequence[Tensor], costs: Sequence[int]) -> list[int]:
        """How many leading ranks each module keeps, given its singular values, descending, and the parameters of one of its ranks."""

    @property
    def most(self) -> int | None:
        """The most ranks that it keeps of any module, so that no singular value beyond matters; ``None`` if all do."""
        return None


@dataclass(frozen=True, kw_only=True)
class ToRank(Target):
    """At most so many ranks in every module.

    Attributes:
        rank: at least 1.
    """

    name: ClassVar[str] = "rank"

    rank: int

    def __post_init__(self) -> None:
        positive_int("rank", self.rank)

    def ranks(self, spectra: Sequence[Tensor], costs: Sequence[int]) -> list[int]:
        """The rank, or what there is."""
        return [min(self.rank, int(torch.count_nonzero(s))) for s in spectra]

    @property
    def most(self) -> int | None:
        """The rank."""
        return self.rank


@dataclass(frozen=True, kw_only=True)
class ToEnergy(Target):
    r"""In every module the fewest ranks that hold a share of its :math:`\sum_i \sigma_i^2`.

    Attributes:
        share: in (0, 1].
    """

    name: ClassVar[str] = "energy"

    share: float

    def __post_init__(self) -> None:
        number("share", self.share, low=0.0, high=1.0, open_low=True)

    def ranks(self, spectra: Sequence[Tensor], costs: Sequence[int]) -> list[int]:
        """By module; none where the update is zero."""
        return [self._rank(s.double().square()) for s in spectra]

    def _rank(self, squares: Tensor) -> int:
        held = squares.cumsum(0)
        if not len(held) or held[-1] == 0:
            return 0
        # The first that holds enough; a hair less is enough, which rounding of the sum must not decide about.
        enough = held >= held[-1] * self.share * (1 - 1e-12)
        return min(int(enough.nonzero()[0]) + 1, int(torch.count_nonzero(squares)))


@dataclass(frozen=True, kw_only=True)
class ToBudget(Target):
    """A size for all modules together, which share it by singular values per parameter (:mod:`paring.parts.allocate.spectral`).

    Attributes:
        budget: the size, or ``Knee()``.
    """

    name: ClassVar[str] = "budget"

    budget: Budget = field(metadata={"family": Budget.__name__})

    def __post_init__(self) -> None:
        member("budget", self.budget, Budget)

    def ranks(self, spectra: Sequence[Tensor], costs: Sequence[int]) -> list[int]:
        """Those that are worth most for what they cost."""
        return allocate(spectra, costs, self.budget.found(spectra, costs))


@dataclass(frozen=True, kw_only=True)
class Loss:
    r"""What a module has lost.

    Attributes:
        rank: ranks that are left.
        before: ranks that it had.
        error: Frobenius norm of what was left out, :math:`\sqrt{\sum_{i > t} \sigma_i^2}`.
        norm: Frobenius norm of the update before.
    """

    rank: int
    before: int
    error: float
    norm: float

    @property
    def relative(self) -> float:
        """Error over norm; 0 where there was no update."""
        return self.error / self.norm if self.norm else 0.0
