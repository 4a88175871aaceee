r"""PiSSA: LoRA that starts at the principal singular triplets of the weight, and trains those.

.. math:: y = W x + s\,(B A - B_0 A_0)\,x, \qquad s\,B_0 A_0 = W_r = U_r\,\mathrm{diag}(\sigma_{1..r})\,V_r^\top

with :math:`A_0 = \mathrm{diag}(\sqrt{\sigma/s})\,V_r^\top` and :math:`B_0 = U_r\,\mathrm{diag}(\sqrt{\sigma/s})`. So the residual
:math:`W - W_r` is what is frozen, and the largest directions of the weight are what is trained. The base model stays as it is, on disk
and in memory; the shift travels with the adapter, whose export is a plain LoRA of rank 2r.

Source: Meng, Wang and Zhang, PiSSA: Principal Singular Values and Singular Vectors Adaptation (arXiv 2404.02948, NeurIPS 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from paring.method import About, Method, check_common, check_rank
from paring.parts.initialise.principal import Principal
from paring.parts.parameterise.low_rank import Scaling, scale_of
from paring.parts.parameterise.shifted import Shifted
from paring.parts.shape import Shape


@dataclass(frozen=True, kw_only=True)
class PiSSA(Method):
    r"""LoRA from the weight's principal triplets.

    Attributes:
        rank: :math:`r`, the number of ranks of every module.
        alpha: :math:`\alpha`, the numerator of the scale; with :math:`\alpha = r`, as the authors have it, :math:`s = 1`.
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"standard"`` for :math:`\alpha/r`, ``"rs"`` for :math:`\alpha/\sqrt r`.
        iterations: power iterations of a randomised decomposition, much quicker for wide modules; ``None`` is exact.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "pissa"
    about: ClassVar[About] = About(
        title="Principal singular values and vectors adaptation",
        paper="arXiv 2404.02948 (NeurIPS 2024)",
        kind="starting points",
        parameters="r (in + out); exported 2 r (in + out)",
        deviations=(
            "The authors and PEFT write the residual W - W_r into the base model; here the base stays as it is: the shift is frozen state.",
            "The authors' scripts decompose at random with few power iterations (iterations=4 or 16); the default here is exact.",
        ),
        verified=(
            "s B A at the start is the truncated SVD of the weight, and its factors are those of PEFT's pissa",
            "the residual W - s B0 A0 is PEFT's modified base weight",
            "training moves the output as it does in PEFT with the base modified",
            "the export is a plain LoRA of rank 2r on the untouched base",
        ),
        recipe="model = paring.adapt(model, PiSSA(rank=8, alpha=8), task_type='SEQ_CLS')",
    )

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    scaling: Scaling = "standard"
    iterations: int | None = None

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout, scaling=self.scaling)
        Principal(iterations=self.iterations)

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        check_rank(self.rank, shape)

    def slot(self, shape: Shape, generator: torch.Generator) -> Shifted:
        """Two factors and their start."""
        self.check(shape)
        rule = Principal(iterations=self.iterations)
        return Shifted(shape, self.rank, scale_of(self.alpha, self.rank, self.scaling), rule, self.dropout)
