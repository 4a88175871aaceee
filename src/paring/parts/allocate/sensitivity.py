"""AdaLoRA's budget: how many triplets of all modules may be left at each step, and which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from paring.core.coding import choice, number, positive_int
from paring.core.errors import SettingError
from paring.parts.update.proximal import Update

Orthogonality: TypeAlias = Literal["squared", "released"]


@dataclass(frozen=True, kw_only=True)
class Sensitivity(Update):
    r"""A budget that falls with the cube of the time that is left.

    With b_0 triplets at the start, b of them in the end and t_i, t_f the steps that are left alone at the beginning and at the end:

    .. math::
        b(t) = b_0 \;(t \le t_i), \qquad b + (b_0 - b)\Big(1 - \frac{t - t_i}{T - t_f - t_i}\Big)^3, \qquad b \;(t \ge T - t_f)

    Attributes:
        target: triplets in the end, in the mean over modules.
        initial: :math:`t_i / T`.
        final: :math:`t_f / T`.
        every: :math:`\Delta T`, steps from one choice to the next.
        beta1: of the mean sensitivity.
        beta2: of its spread.
        weight: :math:`\gamma`, the weight of the orthogonality of factors in the loss.
        form: ``"squared"``, :math:`\gamma \sum_m \lVert A A^\top - I \rVert_F^2 + \lVert B^\top B - I \rVert_F^2`, or
            ``"released"``, :math:`\gamma` times the mean of the norms themselves over all factors.
    """

    name: ClassVar[str] = "sensitivity"

    target: int
    initial: float = 0.1
    final: float = 0.5
    every: int = 10
    beta1: float = 0.85
    beta2: float = 0.85
    weight: float = 0.1
    form: Orthogonality = "squared"

    def __post_init__(self) -> None:
        positive_int("target", self.target)
        positive_int("every", self.every)
        number("initial", self.initial, low=0.0, high=1.0, open_high=True)
        number("final", self.final, low=0.0, high=1.0, open_high=True)
        if self.initial + self.final >= 1.0:
            raise SettingError(
                f"initial={self.initial:g} and final={self.final:g}: together they leave no step between them in which ranks are chosen; "
                "their sum must be below 1."
            )
        number("beta1", self.beta1, low=0.0, high=1.0, open_low=True, open_high=True)
        number("beta2", self.beta2, low=0.0, high=1.0, open_low=True, open_high=True)
        number("weight", self.weight, low=0.0)
        choice("form", self.form, ("squared", "released"))

    def end(self, steps: int) -> int:
        """:math:`T - t_f`: the step, counted from 0, at which the choice is made for good; the last one at the latest."""
        return min(steps - int(self.final * steps), steps - 1)

    def budget(self, step: int, steps: int, start: int, goal: int) -> int:
        """How many triplets may be left after the step ``step``, counted from 0."""
        first, end = int(self.initial * steps), self.end(steps)
        if step >= end:
            return goal
        if step <= first:
            return start
        return int(goal + (start - goal) * (1 - (step - first) / (end - first)) ** 3)


def best(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Which of all triplets are the ``count`` best; of equal ones the first module's, so that it is the same on every machine."""
    flat = torch.cat([part.detach().double().cpu() for part in scores])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[torch.argsort(flat, descending=True, stable=True)[:count]] = True
    return list(torch.split(kept, [len(part) for part in scores]))
