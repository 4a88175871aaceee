r"""LoRA in a group that a proximal step may set to zero as a whole: :math:`\Delta W = s\,B A`."""

from __future__ import annotations

import torch
from torch import Tensor

from paring.core.factors import Factors, whole
from paring.parts.parameterise.followed import Followed


class Grouped(Followed):
    r"""Factors that are part of a group.

    A rank without an effect is told as gone: one whose row of A is zero, or, once a step has been taken, whose column of B is. Before
    the first step all of B is zero, and nothing is gone.
    """

    def gone(self) -> Tensor:
        """Which ranks have no effect, (r,)."""
        dead = (whole(self.A) == 0).all(dim=1)
        return dead | (whole(self.B) == 0).all(dim=0) if self.taken else dead

    def factors(self) -> Factors:
        """A detached copy of the update; the gate is zero for ranks that are gone, else one."""
        gate = (~self.gone()).to(torch.float32)
        return Factors(a=whole(self.A).clone(), b=whole(self.B).clone(), gate=gate, scale=self.scale)
