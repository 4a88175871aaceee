r"""LoRA-XS: a small core trained between frozen singular vectors of the weight.

.. math:: y = W x + s\,B R A\,x, \qquad A = V_r^\top, \quad B = U_r\,\mathrm{diag}(\sigma_{1..r}), \quad R_0 \sim \mathcal N(0, 10^{-10})

with :math:`W = U\,\mathrm{diag}(\sigma)\,V^\top`. Only R (r x r) is trained, so the number of trained parameters does not depend on the
model's width. R starts at nearly zero: the first output is the base's up to its noise.

Source: Bałazy et al., LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters (arXiv 2405.17604); the size of R's noise and
which factor holds the singular values as in the code of LoRA-SB's authors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from paring.core.coding import number
from paring.method import About, Method, check_common, check_rank
from paring.parts.initialise.principal import Singular
from paring.parts.parameterise.core import Core
from paring.parts.parameterise.low_rank import scale_of
from paring.parts.shape import Shape


@dataclass(frozen=True, kw_only=True)
class LoRAXS(Method):
    r"""A trained core between frozen factors of the weight.

    Attributes:
        rank: :math:`r`; :math:`r^2` parameters a module are trained.
        alpha: :math:`\alpha`; the scale is :math:`\alpha/r`.
        dropout: probability of dropping an entry of the slot's input while training.
        noise: standard deviation of R's start.
        iterations: power iterations of a randomised decomposition, much quicker for wide modules; ``None`` is exact.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "lora_xs"
    about: ClassVar[About] = About(
        title="LoRA-XS, a core between the weight's singular vectors",
        paper="arXiv 2405.17604",
        kind="starting points",
        parameters="r^2; exported r (in + out)",
        deviations=("Its settings are those of LoRA-SB's authors; the paper's own code was not read.",),
        verified=(
            "A and B are the weight's leading singular triplets, and frozen",
            "only R is trained, r^2 parameters a module",
            "a step on R moves the weight by the two-sided projection of the full gradient",
        ),
        recipe="model = paring.adapt(model, LoRAXS(rank=16, alpha=16), task_type='SEQ_CLS')",
    )

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    noise: float = 1e-5
    iterations: int | None = None

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout)
        number("noise", self.noise, low=0.0)
        Singular(iterations=self.iterations)

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        check_rank(self.rank, shape)

    def slot(self, shape: Shape, generator: torch.Generator) -> Core:
        """A core between two factors."""
        self.check(shape)
        core = torch.randn(self.rank, self.rank, generator=generator, device="cpu") * self.noise
        scale = scale_of(self.alpha, self.rank, "standard")
        return Core(shape, core, scale, Singular(iterations=self.iterations), self.dropout)
