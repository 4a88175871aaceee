"""Dropout on a slot's input."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from paring.parts.parameterise.base import Slot


class Dropping(Slot):
    """Drops entries of the slot's input while training; the base layer sees all of them."""

    dropout: float

    @property
    def dropping(self) -> float:
        """Probability of dropping an entry of the input now."""
        return self.dropout if self.training else 0.0

    def dropped(self, x: Tensor) -> Tensor:
        """The slot's input after dropout."""
        return F.dropout(x, self.dropout, training=True) if self.dropping else x
