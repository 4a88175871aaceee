r"""LoRA: a frozen weight plus a trained product of two thin matrices.

.. math:: y = W x + s\,B A x, \qquad s = \alpha / r \quad\text{or, with } \texttt{scaling="rs"},\quad s = \alpha / \sqrt r

A (r x in) starts uniform in :math:`\pm 1/\sqrt{\text{in}}`, B (out x r) at zero, so the first forward equals the frozen model's.

Source: Hu et al., LoRA (arXiv 2106.09685, ICLR 2022); Kalajdzievski, rsLoRA (arXiv 2312.03732) for the second scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from paring.core.adapter import Adapter
from paring.core.coding import member
from paring.core.factors import Factors
from paring.method import About, Method, check_common, check_rank, part
from paring.parts.initialise.base import Initialiser
from paring.parts.initialise.from_adapter import FromAdapter
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.parameterise.low_rank import LowRank, Scaling, scale_of
from paring.parts.shape import Shape


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    r"""Plain LoRA, the baseline: every module gets the same rank and keeps it.

    Attributes:
        rank: :math:`r`, the number of ranks of every module.
        alpha: :math:`\alpha`, the numerator of the scale.
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"standard"`` for :math:`\alpha/r`, ``"rs"`` for :math:`\alpha/\sqrt r`.
        init: where the factors start.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "lora"
    about: ClassVar[About] = About(
        title="Low-rank adaptation",
        paper="arXiv 2106.09685 (ICLR 2022); rsLoRA arXiv 2312.03732",
        kind="baseline",
        parameters="r (in + out)",
        deviations=("The paper draws A from a Gaussian; its authors' code and PEFT use Kaiming uniform, and so does paring.",),
        verified=("scale alpha / r and alpha / sqrt(r)",),
        recipe="model = paring.adapt(model, LoRA(rank=8, alpha=16), task_type='SEQ_CLS')",
    )

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: Scaling = "standard"
    init: Initialiser = part(Initialiser, default=KaimingZero())

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout, scaling=self.scaling)
        member("init", self.init, Initialiser)

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        rank = self.init.rank(shape, self.rank)
        check_rank(rank, shape)
        self.init.check(shape, rank)

    @classmethod
    def from_adapter(cls, adapter: Adapter, source: str | None = None, **settings: Any) -> Self:
        """Train a LoRA on: the first forward equals the adapter's, and each module keeps its rank.

        The scale is that of ``rank`` for all modules, and B takes up the difference to the adapter's own.

        Args:
            adapter: what :func:`paring.read` returns; a compressed one is refined so.
            source: where it was read from, for the record.
            settings: any setting of the method. ``rank``, which only the scale follows from, defaults to the adapter's largest.
        """
        settings.setdefault("rank", max(adapter.max_rank, 1))
        ranks = tuple((path, rank) for path, rank in adapter.ranks.items() if rank)
        return cls(init=FromAdapter(source=source, ranks=ranks, adapter=adapter), **settings)

    def factors(self, shape: Shape, generator: torch.Generator) -> Factors:
        """Where a module's factors start."""
        self.check(shape)
        scale = scale_of(self.alpha, self.rank, self.scaling)
        return self.init.factors(shape, self.init.rank(shape, self.rank), scale, generator)

    def slot(self, shape: Shape, generator: torch.Generator) -> LowRank:
        """Two factors, no gate."""
        return LowRank(self.factors(shape, generator), self.dropout)
