r"""LoRA whose A is frozen: :math:`\Delta W = s\,B A`, with B alone trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from paring.parts.parameterise.base import Role
from paring.parts.parameterise.low_rank import LowRank


class UpOnly(LowRank):
    """Factors of which B is trained.

    It is never fused: left to autograd, the frozen linear keeps no input, and neither does the product with a frozen A, so that for the
    backward there is only what B's gradient needs, r entries a row. The fused function keeps the input for second derivatives.
    """

    def fuses(self, dtype: torch.dtype | None) -> bool:
        """Never."""
        return False

    def update_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """B is trained, A is not."""
        yield "A", self.A, Role.FROZEN
        yield "B", self.B, Role.UP
