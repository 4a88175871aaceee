r"""LoRA-GA: LoRA whose first step is the best low-rank picture of full fine-tuning's.

.. math::
    y = W x + s\,(B A - B_0 A_0)\,x, \qquad A_0 = c\,V_{1..r}^\top, \quad B_0 = c\,U_{r+1..2r}, \qquad
    G = \frac 1 N \sum_n \frac{\partial \mathcal L_n}{\partial W} = U\,\mathrm{diag}(\sigma)\,V^\top

With these factors one step of gradient descent at the rate :math:`\eta` moves the update by :math:`-\eta\,s^2 c^2\,G_{2r}`, the truncated
decomposition of the full gradient, up to :math:`O(\eta^2)`. The singular values have no part in the start, so multiplying the loss changes
nothing. :math:`c = \text{out}^{1/4}/\sqrt\gamma`. The gradient comes from :func:`paring.calibrate`, to be called once after the adapter is
attached. The base model stays as it is; the shift travels with the adapter, whose export is a plain LoRA of rank 2r.

Source: Wang, Yu and Li, LoRA-GA: Low-Rank Adaptation with Gradient Approximation (arXiv 2407.05000, NeurIPS 2024).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from paring.method import About, Method, check_common, check_rank
from paring.parts.initialise.gradient import Direction, GradientAligned, Size
from paring.parts.parameterise.low_rank import Scaling, scale_of
from paring.parts.parameterise.shifted import Shifted
from paring.parts.shape import Shape


@dataclass(frozen=True, kw_only=True)
class LoRAGA(Method):
    r"""LoRA aligned with the first gradient.

    Attributes:
        rank: :math:`r`, the number of ranks of every module; each needs two singular triplets of the gradient.
        alpha: :math:`\alpha`, the numerator of the scale.
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"rs"`` for :math:`\alpha/\sqrt r`, which the start is made for, ``"standard"`` for :math:`\alpha/r`.
        direction: which triplets A and B get: ``"ArB2r"`` A the first r and B the next, ``"A2rBr"`` the other way round, ``"ArBr"`` A the
            second, fourth, ... and B the first, third, ..., ``"random"`` disjoint halves drawn at random.
        size: c: ``"stable"`` is :math:`\text{out}^{1/4} / \sqrt\gamma`, ``"unit"`` 1, ``"gd"`` :math:`1/s`.
        gamma: :math:`\gamma`.
        iterations: power iterations of a randomised decomposition, much quicker for wide modules; ``None`` is exact.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "lora_ga"
    about: ClassVar[About] = About(
        title="LoRA with gradient approximation",
        paper="arXiv 2407.05000 (NeurIPS 2024)",
        kind="starting points",
        parameters="r (in + out); exported 2 r (in + out)",
        deviations=(
            "The released code writes the residual into the base model; here the base stays as it is: the shift is frozen state.",
            "The released code decomposes at random, four times as wide as r, with four power iterations (iterations=4); here it is exact.",
            "The released code has a further size, by the singular values of W, and can rescale W where the shift exceeds it; not here.",
            "PEFT's lora_ga multiplies B by the singular values and scales B alone: its first step is not G_2r; here it is.",
            "The released code estimates the gradient in training mode; here without dropout.",
        ),
        verified=(
            "the output at the start is the base's, and the base's weight is untouched",
            "the rows of A and the columns of B are orthogonal, of norm c",
            "one step of gradient descent moves the update by the truncated SVD of rank 2r of the full gradient",
            "the start does not change when the loss is multiplied",
            "the export is a plain LoRA of rank 2r, equal to the merged model",
            "the gradient is that of the loss by the weight, whatever memory it is given and however often a module is called",
            "training before calibration is refused",
        ),
        recipe="model = paring.adapt(model, LoRAGA(rank=8, alpha=16), task_type='SEQ_CLS')\nparing.calibrate(model, batches)",
    )

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: Scaling = "rs"
    direction: Direction = "ArB2r"
    size: Size = "stable"
    gamma: float = 16.0
    iterations: int | None = None

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout, scaling=self.scaling)
        self._rule()

    def _rule(self) -> GradientAligned:
        return GradientAligned(direction=self.direction, size=self.size, gamma=self.gamma, iterations=self.iterations)

    def example(self) -> LoRAGA:
        """Small enough for small modules."""
        return replace(self, rank=3)

    def check(self, shape: Shape) -> None:
        """Refuse a rank above half the module's size."""
        check_rank(self.rank, shape)
        self._rule().check(shape, self.rank)

    def slot(self, shape: Shape, generator: torch.Generator) -> Shifted:
        """Two factors and their start."""
        self.check(shape)
        return Shifted(shape, self.rank, scale_of(self.alpha, self.rank, self.scaling), self._rule(), self.dropout)
