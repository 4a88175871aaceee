"""How big an adapter may be."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from paring.core.coding import Coded, number, positive_int
from paring.parts.allocate.knee import knee


class Budget(Coded):
    r"""Family of the sizes that an adapter can be asked to have, all in the end a number of parameters.

    What counts are the factors that an export writes, :math:`\sum_m r_m (\mathrm{in}_m + \mathrm{out}_m)`; heads do not.
    """

    @abstractmethod
    def parameters(self, start: int) -> int:
        """The most parameters, for an adapter that starts with ``start`` of them, as far as it is known before the cut."""

    @property
    def known(self) -> bool:
        """Whether that is all, or the size follows from what has been learned."""
        return True

    def found(self, spectra: Sequence[Tensor], costs: Sequence[int]) -> int:
        """The most parameters, for modules whose ranks have these weights and take so many parameters each."""
        return self.parameters(sum(len(s) * cost for s, cost in zip(spectra, costs, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Parameters(Budget):
    """So many parameters.

    Attributes:
        count: how many.
    """

    name: ClassVar[str] = "parameters"

    count: int

    def __post_init__(self) -> None:
        positive_int("count", self.count)

    def parameters(self, start: int) -> int:
        """``count``, or all."""
        return min(start, self.count)


@dataclass(frozen=True, kw_only=True)
class Share(Budget):
    """A share of what the adapter starts with.

    Attributes:
        share: in (0, 1].
    """

    name: ClassVar[str] = "share"

    share: float

    def __post_init__(self) -> None:
        number("share", self.share, low=0.0, high=1.0, open_low=True)

    def parameters(self, start: int) -> int:
        """The share, rounded down."""
        return math.floor(self.share * start)


@dataclass(frozen=True, kw_only=True)
class Bytes(Budget):
    """So many bytes of factors on disk; the header of the file, about 200 bytes a module, comes on top.

    Attributes:
        count: bytes.
        each: bytes of one parameter as it is exported: 4 in float32, 2 in bfloat16 or float16.
    """

    name: ClassVar[str] = "bytes"

    count: int
    each: int = 4

    def __post_init__(self) -> None:
        positive_int("count", self.count)
        positive_int("each", self.each)

    def parameters(self, start: int) -> int:
        """As many as fit."""
        return min(start, self.count // self.each)


@dataclass(frozen=True, kw_only=True)
class Knee(Budget):
    """As big as its own spectrum says when it is cut: see :mod:`paring.parts.allocate.knee`."""

    name: ClassVar[str] = "knee"

    def parameters(self, start: int) -> int:
        """All; nothing else is known before."""
        return start

    @property
    def known(self) -> bool:
        """It is not."""
        return False

    def found(self, spectra: Sequence[Tensor], costs: Sequence[int]) -> int:
        """The knee; all where nothing stands out."""
        return knee(spectra, costs) or super().found(spectra, costs)
