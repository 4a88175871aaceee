r"""OLoRA: LoRA that starts at the leading part of the weight's QR decomposition.

.. math:: y = W x + s\,(B A - B_0 A_0)\,x, \qquad W = Q R, \quad B_0 = Q_{:,:r}, \quad A_0 = R_{:r}

So B starts with orthonormal columns. The base model stays as it is, on disk and in memory; the shift travels with the adapter, whose
export is a plain LoRA of rank 2r.

Source: Büyükakyüz, OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models (arXiv 2406.01775).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from paring.method import About, Method, check_common, check_rank
from paring.parts.initialise.orthonormal import Orthonormal
from paring.parts.parameterise.low_rank import Scaling, scale_of
from paring.parts.parameterise.shifted import Shifted
from paring.parts.shape import Shape


@dataclass(frozen=True, kw_only=True)
class OLoRA(Method):
    r"""LoRA from an orthonormal basis of the weight's leading columns.

    Attributes:
        rank: :math:`r`, the number of ranks of every module.
        alpha: :math:`\alpha`, the numerator of the scale.
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"standard"`` for :math:`\alpha/r`, ``"rs"`` for :math:`\alpha/\sqrt r`.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "olora"
    about: ClassVar[About] = About(
        title="Orthonormal low-rank adaptation",
        paper="arXiv 2406.01775",
        kind="starting points",
        parameters="r (in + out); exported 2 r (in + out)",
        deviations=("PEFT writes the residual into the base model; here the base stays as it is, and the shift is frozen state.",),
        verified=(
            "at the start B's columns are orthonormal and B A is the leading part of W = Q R, as in PEFT's olora",
            "the residual W - s B0 A0 is PEFT's modified base weight",
            "the export is a plain LoRA of rank 2r on the untouched base",
        ),
        recipe="model = paring.adapt(model, OLoRA(rank=8, alpha=8), task_type='SEQ_CLS')",
    )

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    scaling: Scaling = "standard"

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout, scaling=self.scaling)

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        check_rank(self.rank, shape)

    def slot(self, shape: Shape, generator: torch.Generator) -> Shifted:
        """Two factors and their start."""
        self.check(shape)
        return Shifted(shape, self.rank, scale_of(self.alpha, self.rank, self.scaling), Orthonormal(), self.dropout)
