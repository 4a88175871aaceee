"""What every initialiser promises."""

from __future__ import annotations

from abc import abstractmethod

import torch

from paring.core.coding import Coded
from paring.core.factors import Factors
from paring.parts.shape import Shape


class Initialiser(Coded):
    """Gives a module's starting factors: ``A`` of shape ``(rank, in)`` and ``B`` of shape ``(out, rank)``, float32, CPU."""

    def check(self, shape: Shape, rank: int) -> None:
        """Refuse a module that this start does not fit, before any module is touched.

        Raises:
            AdapterError: names the module and what does not fit.
        """

    def rank(self, shape: Shape, rank: int) -> int:
        """The ranks that a module gets, where the method's setting is ``rank``."""
        return rank

    @abstractmethod
    def factors(self, shape: Shape, rank: int, scale: float, generator: torch.Generator) -> Factors:
        """Starting factors of one module.

        Args:
            shape: the module.
            rank: ranks to fill.
            scale: the scale ``s`` that the slot will apply; the factors returned carry the same.
            generator: the only source of randomness.
        """
