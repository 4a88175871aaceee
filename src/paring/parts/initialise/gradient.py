r"""Starts from the gradient of the weight: LoRA-GA's and LoRA-SB's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from paring.core.coding import choice, number
from paring.core.errors import SettingError
from paring.core.factors import Factors
from paring.parts.initialise.matrix import Decomposed
from paring.parts.parameterise.base import Source
from paring.parts.shape import Shape

Direction: TypeAlias = Literal["ArB2r", "A2rBr", "ArBr", "random"]
Size: TypeAlias = Literal["stable", "unit", "gd"]


@dataclass(frozen=True, kw_only=True)
class GradientAligned(Decomposed):
    r"""With :math:`G = U\,\mathrm{diag}(\sigma)\,V^\top`: :math:`A = c\,V_I^\top` and :math:`B = c\,U_J`, I and J halves of the first 2r.

    The singular values have no part in it, so that neither has the scale of the loss. After one step of gradient descent at the rate
    :math:`\eta` the update has moved by :math:`-\eta\,s^2 c^2\,G_{2r}`, up to :math:`O(\eta^2)`.

    Attributes:
        direction: which triplets A and B get: ``"ArB2r"`` A the first r and B the next, ``"A2rBr"`` the other way round, ``"ArBr"`` A the
            second, fourth, ... and B the first, third, ..., ``"random"`` disjoint halves drawn at random.
        size: c: ``"stable"`` is :math:`\text{out}^{1/4} / \sqrt\gamma`, ``"unit"`` 1, ``"gd"`` :math:`1/s`.
        gamma: :math:`\gamma`.
        iterations: power iterations of a randomised decomposition; ``None`` is exact. The released code takes 4.

    Source: Wang, Yu and Li, LoRA-GA (arXiv 2407.05000, NeurIPS 2024).
    """

    source: ClassVar[Source] = Source.GRADIENT

    direction: Direction = "ArB2r"
    size: Size = "stable"
    gamma: float = 16.0

    def __post_init__(self) -> None:
        choice("direction", self.direction, ("ArB2r", "A2rBr", "ArBr", "random"))
        choice("size", self.size, ("stable", "unit", "gd"))
        number("gamma", self.gamma, low=0.0, open_low=True)
        super().__post_init__()

    def check(self, shape: Shape, rank: int) -> None:
        """Refuse a module without 2r singular triplets."""
        limit = min(shape.in_features, shape.out_features) // 2
        if rank > limit:
            raise SettingError(
                f"rank={rank} is above what {shape.path!r} can use: this start takes 2 x rank singular triplets of its gradient, which is "
                f"{shape.out_features} x {shape.in_features}, so the rank is at most {limit}. Lower it, or leave the module out with "
                "exclude_modules."
            )

    def factor(self, out_features: int, scale: float) -> float:
        """C."""
        if self.size == "unit":
            return 1.0
        return 1.0 / scale if self.size == "gd" else out_features**0.25 / self.gamma**0.5

    def factors(self, matrix: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
        """Starting factors."""
        svd, order = self.leading(matrix, 2 * rank, generator), torch.arange(2 * rank)
        if self.direction == "ArBr":
            order = torch.cat([order[1::2], order[0::2]])
        elif self.direction == "A2rBr":
            order = order.roll(rank)
        elif self.direction == "random":
            order = torch.randperm(2 * rank, generator=generator)
        c, order = self.factor(matrix.shape[0], scale), order.to(matrix.device)
        return Factors(a=svd.vt[order[:rank]] * c, b=svd.u[:, order[rank:]] * c, scale=scale)


@dataclass(frozen=True, kw_only=True)
class FirstUpdate(Decomposed):
    r"""The best approximation of rank r of Adam's first step, :math:`D = -\eta_1\,\mathrm{sign}(G)`.

    With :math:`D \approx U_r\,\mathrm{diag}(\sigma)\,V_r^\top`: :math:`A = V_r^\top`, :math:`B = U_r` and a core
    :math:`\mathrm{diag}(\sigma / s)` between them, which is given as the factors' gate: the update starts at the step itself, and the
    weight is not shifted. The sign makes it independent of the loss's scale.

    Attributes:
        rate: :math:`\eta_1`, the learning rate of that step; for a warm-up of w steps to :math:`\eta`, :math:`\eta / w`.
        iterations: power iterations of a randomised decomposition; ``None`` is exact. The released code takes 10, without oversampling.

    Source: Ponkshe et al., LoRA-SB (arXiv 2411.19557).
    """

    source: ClassVar[Source] = Source.GRADIENT

    rate: float = 1e-5

    def __post_init__(self) -> None:
        number("rate", self.rate, low=0.0, open_low=True)
        super().__post_init__()

    def factors(self, matrix: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
        """Starting factors, with the core as their gate."""
        svd = self.leading(torch.sign(matrix) * -self.rate, rank, generator)
        return Factors(a=svd.vt, b=svd.u, gate=svd.s / scale, scale=scale)
