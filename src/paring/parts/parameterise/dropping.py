"""Dropout on a slot's input."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from paring.parts.parameterise.base import Slot


class Dropping(Slot):
    """Drops entries of the slot's input while training; the base layer sees all of them.

    The probability lives in an ``nn.Dropout``: there trainers look for it that turn dropout off, as TRL does where it compares a policy
    with a reference. Without dropout there is none.

    Args:
        dropout: probability of dropping an entry.
    """

    drop: nn.Dropout | None

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout) if dropout else None

    @property
    def dropout(self) -> float:
        """Probability of dropping an entry of the input while training."""
        return 0.0 if self.drop is None else self.drop.p

    @property
    def dropping(self) -> float:
        """Probability of dropping an entry of the input now."""
        drop = self.drop
        return 0.0 if drop is None or not drop.training else drop.p

    def dropped(self, x: Tensor) -> Tensor:
        """The slot's input after dropout."""
        dropping = self.dropping
        return F.dropout(x, dropping, training=True) if dropping else x
