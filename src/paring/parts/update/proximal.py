r"""The proximal step that follows the optimizer's own: :math:`g \leftarrow \mathrm{prox}_{\eta\lambda}(v)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from torch import Tensor

from paring.core.coding import Coded, choice, number
from paring.core.prox import Threshold, released_threshold, soft_threshold

Operator: TypeAlias = Literal["exact", "released"]
StepSize: TypeAlias = Literal["rate", "constant"]


class Update(Coded):
    """Family of the updates that a slot may ask for after an optimizer's step."""


@dataclass(frozen=True, kw_only=True)
class Proximal(Update):
    r"""Soft-threshold the gates after each optimizer step.

    With :math:`v` the gates as the optimizer left them, :math:`\eta` the learning rate of their parameter group and
    :math:`\lambda` the penalty weight,

    .. math:: g \leftarrow \operatorname{prox}_t(v), \qquad
        t = \eta\lambda \ \text{(step_size="rate")} \quad\text{or}\quad t = \lambda \ \text{(step_size="constant")}.

    Attributes:
        weight: :math:`\lambda \ge 0`. With ``step_size="rate"`` it has the units of a gradient; with ``"constant"`` those of a gate.
        operator: ``"exact"``, the proximal operator of the L1 norm, or ``"released"``, what the authors' optimizer does.
        step_size: whether the threshold follows the learning rate (the paper's) or not (the released code's).
        fade: how far B may have travelled when the weight has halved: :math:`\lambda_k = \lambda / (1 + T_k / f)` with
            :math:`T_k = \sum_{j<k} \eta^B_j`, the sum of B's own learning rates; ``None`` keeps the weight as it is (the paper's).
    """

    name: ClassVar[str] = "proximal"

    weight: float
    operator: Operator = "exact"
    step_size: StepSize = "rate"
    fade: float | None = None

    def __post_init__(self) -> None:
        number("weight", self.weight, low=0.0)
        choice("operator", self.operator, ("exact", "released"))
        choice("step_size", self.step_size, ("rate", "constant"))
        if self.fade is not None:
            number("fade", self.fade, low=0.0, open_low=True)

    def weight_after(self, travel: float) -> float:
        """The penalty weight when B's learning rates sum up to ``travel``."""
        return self.weight if self.fade is None else self.weight / (1.0 + travel / self.fade)

    def threshold(self, rate: Threshold, weight: float) -> Threshold:
        """``rate * weight`` or ``weight``, by ``step_size``; ``weight`` is given because a scheduler may move it."""
        return rate * weight if self.step_size == "rate" else weight

    def apply(self, v: Tensor, threshold: Threshold) -> Tensor:
        """The operator, elementwise: any number of gates may be laid end to end in ``v``."""
        return soft_threshold(v, threshold) if self.operator == "exact" else released_threshold(v, threshold)
