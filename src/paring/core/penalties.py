r"""Penalties that make exact zeros: each knows its value, its proximal operator, and the condition that a minimiser fulfils.

Every penalty has the same methods in the same order. With :math:`h` the penalty, weight included, a point :math:`v` minimises
:math:`f + h` for smooth convex :math:`f` exactly if :math:`-\nabla f(v) \in \partial h(v)`; ``subdifferential_distance`` tells
how far a point is from that, and so tests a solver without knowing the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paring.core.coding import number
from paring.core.prox import Threshold, group_soft_threshold, soft_threshold


class Penalty(Protocol):
    """What every penalty offers."""

    def value(self, v: Tensor) -> Tensor:
        """The penalty at ``v``, weight included; a scalar."""

    def prox(self, v: Tensor, step: Threshold) -> Tensor:
        """The proximal operator of ``step`` x penalty."""

    def subdifferential_distance(self, v: Tensor, gradient: Tensor) -> Tensor:
        """Euclidean distance of ``-gradient`` to the subdifferential at ``v``; a scalar, 0 at a minimiser."""

    def support(self, v: Tensor) -> Tensor:
        """What is not zero, entry by entry or group by group."""


@dataclass(frozen=True, kw_only=True)
class L1:
    r"""The L1 norm, :math:`\lambda \sum_i |v_i|`: single entries become zero.

    Attributes:
        weight: :math:`\lambda \ge 0`.

    Raises:
        SettingError: the weight is negative or not finite.
    """

    weight: float

    def __post_init__(self) -> None:
        number("weight", self.weight, low=0.0)

    def value(self, v: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        r""":math:`\lambda \lVert v \rVert_1`."""
        return v.abs().sum() * self.weight

    def prox(self, v: Float[Tensor, "*shape"], step: Threshold) -> Float[Tensor, "*shape"]:
        r"""Soft-thresholding at :math:`\eta\lambda`, with ``step`` the step size :math:`\eta`."""
        return soft_threshold(v, step * self.weight)

    def subdifferential_distance(self, v: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        r"""Distance of ``-gradient`` to :math:`\lambda \operatorname{sign}(v_i)`; where ``v`` is 0, to :math:`[-\lambda, \lambda]`."""
        at_zero = (gradient.abs() - self.weight).clamp_min(0.0)
        elsewhere = gradient + self.weight * torch.sign(v)
        return _norm(torch.where(v == 0, at_zero, elsewhere))

    def support(self, v: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Which entries are not exactly zero."""
        return v != 0


@dataclass(frozen=True, kw_only=True)
class GroupL1:
    r"""The group lasso, :math:`\lambda \sum_g \lVert v_g \rVert_2`: whole groups become zero.

    Attributes:
        weight: :math:`\lambda \ge 0`.
        dim: the dimension along which a group lies, so that each slice is a group (``dim=1`` makes rows groups); ``None`` makes all of
            ``v`` one group.

    Raises:
        SettingError: the weight is negative or not finite.
    """

    weight: float
    dim: int | None = None

    def __post_init__(self) -> None:
        number("weight", self.weight, low=0.0)

    def value(self, v: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        r""":math:`\lambda \sum_g \lVert v_g \rVert_2`."""
        return _norm(v, self.dim).sum() * self.weight

    def prox(self, v: Float[Tensor, "*shape"], step: Threshold) -> Float[Tensor, "*shape"]:
        r"""Block soft-thresholding at :math:`\eta\lambda`, with ``step`` the step size :math:`\eta`."""
        return group_soft_threshold(v, step * self.weight, dim=self.dim)

    def subdifferential_distance(self, v: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        r"""Distance of ``-gradient`` to :math:`\lambda v_g/\lVert v_g\rVert`; where a group is 0, to the ball of radius :math:`\lambda`."""
        norm = _norm(v, self.dim)
        direction = v / torch.where(norm == 0, torch.ones_like(norm), norm)
        at_zero = (_norm(gradient, self.dim) - self.weight).clamp_min(0.0)
        elsewhere = _norm(gradient + self.weight * direction, self.dim)
        return _norm(torch.where(norm == 0, at_zero, elsewhere))

    def support(self, v: Float[Tensor, "*shape"]) -> Bool[Tensor, "*groups"]:
        """Which groups are not exactly zero; one entry a group."""
        alive = v != 0
        return alive.any() if self.dim is None else alive.any(dim=self.dim)


def _norm(v: Tensor, dim: int | None = None) -> Tensor:
    """Euclidean norms along ``dim``, which is kept with size 1; of everything if ``None``."""
    norm: Tensor = torch.linalg.vector_norm(v, dim=dim, keepdim=dim is not None)
    return norm
