r"""Nested ranks: for every b the first b ranks are a LoRA of their own, :math:`\Delta W_b = s_b\,B_{:,:b}\,A_{:b}`."""

from __future__ import annotations

import torch
from torch import Tensor

from paring.core.errors import SettingError
from paring.core.factors import Factors, whole
from paring.kernels.adapted import adapted_linear
from paring.kernels.low_rank import add_low_rank
from paring.parts.parameterise.followed import Followed
from paring.parts.parameterise.low_rank import Scaling, scale_of
from paring.parts.update.draw import Draw


class Nested(Followed):
    r"""Factors of which a step trains the first b ranks, with b drawn anew for each, at the scale of that rank.

    In training mode the rank of the step is used, else the one that :meth:`use` has set, which is all of them to begin with.

    Args:
        start: all ranks; its scale is that of all.
        alpha: numerator of the scale.
        scaling: how the scale follows from the rank.
        draw: what rank each step gets.
        alone: whether only the last of the b ranks gets a gradient, as in the released code; else all b.
        dropout: as in :class:`~paring.parts.parameterise.low_rank.LowRank`.
    """

    def __init__(self, start: Factors, alpha: float, scaling: Scaling, draw: Draw, alone: bool, dropout: float = 0.0) -> None:
        super().__init__(start, dropout)
        self.alpha, self.scaling, self.draw, self.alone = alpha, scaling, draw, alone
        self.used = start.rank
        self._drawn: tuple[int, int] | None = None

    @property
    def most(self) -> int:
        """All ranks."""
        return self.A.shape[0]

    @property
    def drawn(self) -> int:
        """The rank of the next step."""
        taken = self.taken
        if self._drawn is None or self._drawn[0] != taken:
            self._drawn = taken, self.draw.rank(taken, self.most)
        return self._drawn[1]

    @property
    def now(self) -> int:
        """The rank that is computed with."""
        return self.drawn if self.training else self.used

    def use(self, rank: int) -> None:
        """From now on, outside training, use the first so many ranks.

        Raises:
            SettingError: there are not so many.
        """
        if not 1 <= rank <= self.most:
            raise SettingError(f"rank={rank}: this adapter was trained with ranks 1 to {self.most}; choose one of them.")
        self.used = rank

    def prefix(self) -> tuple[Tensor, Tensor, float]:
        """The factors as they are computed with now, and their scale."""
        rank = self.now
        a, b = (self.A, self.B) if rank == self.most else (self.A[:rank], self.B[:, :rank])
        if self.training and self.alone and rank > 1:
            a = torch.cat([a[:-1].detach(), a[-1:]])
            b = torch.cat([b[:, :-1].detach(), b[:, -1:]], dim=1)
        return a, b, scale_of(self.alpha, rank, self.scaling)

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Base output plus update."""
        a, b, scale = self.prefix()
        return add_low_rank(y, self.dropped(x), a, b, scale)

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A frozen linear and the update in one function: see :mod:`paring.kernels.adapted`."""
        a, b, scale = self.prefix()
        return adapted_linear(x, weight, bias, a, b, None, scale, dropout=self.dropping)

    def trains(self) -> slice:
        """The ranks that this step may move."""
        return slice(self.drawn - 1 if self.alone else 0, self.drawn)

    def factors(self) -> Factors:
        """A detached copy of the update with the ranks that are used; the gate of the others is zero."""
        gate = (torch.arange(self.most, device=self.A.device) < self.used).to(torch.float32)
        return Factors(a=whole(self.A).clone(), b=whole(self.B).clone(), gate=gate, scale=scale_of(self.alpha, self.used, self.scaling))
