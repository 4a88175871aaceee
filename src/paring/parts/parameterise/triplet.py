r"""AdaLoRA's parameterisation: :math:`\Delta W = s\,B\,\mathrm{diag}(E)\,A`, weighed entry by entry while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from paring.core.factors import Factors, whole
from paring.kernels.adapted import adapted_linear
from paring.kernels.low_rank import add_low_rank
from paring.parts.parameterise.base import Role
from paring.parts.parameterise.followed import Followed

NAMES = ("A", "B", "E")


class Triplet(Followed):
    r"""Factors A (r x in), B (out x r) and singular values E (r), with the running sensitivity of each entry.

    With :math:`I = |w\,\partial\mathcal L/\partial w|`: :math:`\bar I \leftarrow \beta_1 \bar I + (1 - \beta_1) I`,
    :math:`\bar U \leftarrow \beta_2 \bar U + (1 - \beta_2) |I - \bar I|`, and an entry's score is :math:`\bar I\,\bar U`. Both lie in
    buffers, so that a checkpoint has them.

    Args:
        start: the factors to begin with; its gate is E.
        dropout: as in :class:`~paring.parts.parameterise.low_rank.LowRank`.
    """

    kept: Tensor
    settled: Tensor

    def __init__(self, start: Factors, dropout: float = 0.0) -> None:
        super().__init__(start, dropout)
        assert start.gate is not None
        self.E = nn.Parameter(start.gate.detach().clone())
        for name in NAMES:
            for kind in ("mean", "spread"):
                self.register_buffer(f"{kind}_{name}", torch.zeros_like(self.get_parameter(name)))
        # Which triplets stay for good, and whether that has been decided.
        self.register_buffer("kept", torch.ones(start.rank, dtype=torch.bool))
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool))
        self._settled: bool | None = False

    @property
    def is_settled(self) -> bool:
        """Whether the choice has been made for good, looked up once: a look waits for the device."""
        if self._settled is None:
            self._settled = bool(self.settled)
        return self._settled

    def settle(self) -> None:
        """Note that it has been made."""
        self._settled = True
        self.settled.fill_(True)

    def sensitivity(self, kind: str) -> list[Tensor]:
        """The buffers of one kind, ``"mean"`` or ``"spread"``, in the order of :data:`NAMES`."""
        return [self.get_buffer(f"{kind}_{name}") for name in NAMES]

    def scores(self) -> Tensor:
        r"""Of each triplet, :math:`S_i = s(E_i)` and the means of :math:`s(A_{ij})` and of :math:`s(B_{ji})` over j."""
        means, spreads = self.sensitivity("mean"), self.sensitivity("spread")
        a, b, e = (mean.float() * spread.float() for mean, spread in zip(means, spreads, strict=True))
        return e + a.mean(dim=1) + b.mean(dim=0)

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Base output plus update."""
        return add_low_rank(y, self.dropped(x), self.A, self.B, self.E * self.scale)

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A frozen linear and the update in one function: see :mod:`paring.kernels.adapted`."""
        return adapted_linear(x, weight, bias, self.A, self.B, self.E, self.scale, dropout=self.dropping)

    def factors(self) -> Factors:
        """A detached copy of the update; E is its gate."""
        return Factors(a=whole(self.A).clone(), b=whole(self.B).clone(), gate=whole(self.E).clone(), scale=self.scale)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._settled = None

    def update_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """All three are factors."""
        yield from super().update_roles()
        yield "E", self.E, Role.FACTOR
