r"""What a rule of merging is: one module's updates :math:`\Delta_1, \dots, \Delta_n` in, one update out.

Weights that are not given are such that merging copies of one adapter gives that adapter back.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from paring.core.coding import Coded, number
from paring.core.errors import SettingError
from paring.core.factors import Factors


class Rule(Coded):
    """Family of the ways to make one adapter out of several."""

    @abstractmethod
    def combine(self, parts: Sequence[Factors], weights: Sequence[float], generator: torch.Generator) -> Factors:
        """One module's update.

        Args:
            parts: those of the adapters that have a live rank in this module, at least one; no gates, in float32 or better.
            weights: one for each part, out of :meth:`weigh`.
            generator: the only source of randomness.
        """

    def weigh(self, count: int) -> tuple[float, ...]:
        """What the rule multiplies each of so many adapters with."""
        return self.shares(count)

    def shares(self, count: int) -> tuple[float, ...]:
        r"""The :math:`w_i` of the sum :math:`\sum_i w_i \Delta_i` that the result is compared with: given, or those of the mean."""
        return (1 / count,) * count

    def generator(self) -> torch.Generator:
        """What random numbers are drawn from, one module after another."""
        return torch.Generator().manual_seed(0)

    def check(self, ranks: Mapping[str, Sequence[int]]) -> None:
        """Refuse what the rule cannot merge, before any work is done.

        Args:
            ranks: the live rank of each adapter in every module that has one.

        Raises:
            SettingError: names the module.
        """


@dataclass(frozen=True, kw_only=True)
class Weighted(Rule):
    """A rule that has a weight for each adapter.

    Attributes:
        weights: one for each adapter, in their order, of either sign; ``None`` for equal ones.

    Raises:
        SettingError: a weight is no finite number, or all are zero.
    """

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        # A file gives a list back.
        object.__setattr__(self, "weights", tuple(self.weights))
        for weight in self.weights:
            number("weights", weight, low=-math.inf, open_low=True, open_high=True)
        if not any(self.weights):
            raise SettingError(f"weights={self.weights}: all are zero, so nothing would be left; give one that is not.")

    def weigh(self, count: int) -> tuple[float, ...]:
        """The weights given, or equal ones.

        Raises:
            SettingError: there are not as many weights as adapters.
        """
        return self._given(count) or (self._equal(count),) * count

    def shares(self, count: int) -> tuple[float, ...]:
        """The weights given, or those of the mean."""
        return self._given(count) or super().shares(count)

    def _given(self, count: int) -> tuple[float, ...] | None:
        if self.weights is not None and len(self.weights) != count:
            raise SettingError(f"weights={self.weights}: give one for each of the {count} adapters, in their order.")
        return self.weights

    def _equal(self, count: int) -> float:
        """The weight of each of so many copies with which the rule gives the original back."""
        return 1 / count
