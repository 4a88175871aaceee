r"""AdaLoRA: an update shaped like a singular value decomposition, whose triplets are chosen among all modules by their sensitivity.

.. math::
    y = W x + s\,B\,\mathrm{diag}(E)\,A\,x, \qquad
    \min\; \mathcal L + \gamma \sum_m \lVert A A^\top - I \rVert_F^2 + \lVert B^\top B - I \rVert_F^2

After each step every entry's sensitivity :math:`I = |w\,\partial\mathcal L/\partial w|` goes into its running mean and spread, whose
product is its score; a triplet's is :math:`s(E_i)` plus the means over its row of A and its column of B. Of all triplets the best
:math:`b(t)` are left, a budget that falls with the cube of the time (:class:`~paring.parts.allocate.sensitivity.Sensitivity`); the E of the
others is set to zero, from which they may come back until the choice is made for good. All of it happens by itself: there is nothing to
call. The export holds the triplets that are left as a plain LoRA.

Source: Zhang et al., Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (arXiv 2303.10512, ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from paring.core.coding import member, number, positive_int
from paring.core.errors import SettingError
from paring.core.factors import Factors
from paring.lead.allocator import Allocator
from paring.method import About, Method, check_common, check_rank
from paring.parts.allocate.sensitivity import Orthogonality, Sensitivity
from paring.parts.parameterise.base import Slot
from paring.parts.parameterise.low_rank import Scaling, scale_of
from paring.parts.parameterise.triplet import Triplet
from paring.parts.shape import Shape
from paring.parts.update.proximal import Update

SPREAD = 0.02
"""Standard deviation of both factors at the start."""


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(Method):
    r"""Triplets under a falling budget.

    Attributes:
        rank: triplets of each module at the start, in the paper 1.5 times the target.
        target: triplets in the end, in the mean over modules.
        alpha: :math:`\alpha`; the scale is :math:`\alpha / r` (or :math:`/\sqrt r`) with the starting rank, whatever is left of it.
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"standard"`` or ``"rs"``.
        initial: share of the steps at the beginning in which all triplets are left.
        final: share of the steps at the end in which the choice stays as it is.
        every: steps from one choice to the next.
        beta1: of the mean sensitivity.
        beta2: of its spread.
        orthogonality: :math:`\gamma`. The default is ours: with 0.1, the paper's smallest, and the sum of squares over all modules short
            trainings orthogonalise and learn little else; 0.1 to 0.5 suit ``form="released"``.
        form: ``"squared"`` as in the paper, or ``"released"``: the mean over all factors of the norms themselves.
        steps: optimizer steps of the training; ``None`` leaves it to ``ParingTrainer`` and ``ParingCallback``, which know, or to
            :func:`paring.train.plan`.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "adalora"
    about: ClassVar[About] = About(
        title="Adaptive budget allocation",
        paper="arXiv 2303.10512 (ICLR 2023)",
        kind="adaptive rank",
        parameters="r (in + out + 1) while training; live rank x (in + out) exported",
        deviations=(
            "The released code and PEFT regularise by the mean norm of all factors (form='released'); here by the sum of squares.",
            "The regulariser's gradient is added right before the optimizer's step, so after gradient clipping.",
            "The released scale is alpha / (r + 1e-5); here alpha / r. PEFT's default alpha makes it far smaller than LoRA's.",
            "Of triplets with equal scores the released code cuts all; here exactly the budget is left.",
            "The phases are shares of the training; in the released code and PEFT numbers of steps, with 0 the default in PEFT.",
            "In PEFT somebody has to call update_and_allocate after each step, or it trains plain LoRA; here nobody has to.",
        ),
        verified=(
            "at the first step A and B have no gradient and E has one; the update is zero",
            "the budget at each step is the paper's, and so many triplets are left",
            "sensitivities, masks and triplets are those of PEFT's AdaLoRA, step by step",
            "of triplets with equal scores exactly the budget is left",
            "a triplet that was masked may come back until the choice is made for good, and not after",
            "the orthogonality term has the gradient of its definition, zero for orthonormal factors",
            "a run that goes on at any step ends with the same bits",
            "the export holds the triplets that are left, as many as the target says",
        ),
        recipe="model = paring.adapt(model, AdaLoRA(rank=12, target=8), task_type='SEQ_CLS')",
    )

    rank: int = 12
    target: int = 8
    alpha: float = 24.0
    dropout: float = 0.0
    scaling: Scaling = "standard"
    initial: float = 0.1
    final: float = 0.5
    every: int = 10
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.01
    form: Orthogonality = "squared"
    steps: int | None = None

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout, scaling=self.scaling)
        number("orthogonality", self.orthogonality, low=0.0)
        if self.steps is not None:
            positive_int("steps", self.steps)
        member("allocation", self.allocation, Update)
        if self.target > self.rank:
            raise SettingError(f"target={self.target} is above rank={self.rank}: triplets are taken away, never added. Raise the rank.")

    @property
    def allocation(self) -> Sensitivity:
        """When to choose, and how many."""
        return Sensitivity(
            target=self.target,
            initial=self.initial,
            final=self.final,
            every=self.every,
            beta1=self.beta1,
            beta2=self.beta2,
            weight=self.orthogonality,
            form=self.form,
        )

    @property
    def budgeted(self) -> bool:
        """It is."""
        return True

    @property
    def asks_for_steps(self) -> bool:
        """Unless they are set."""
        return self.steps is None

    def lead(self, slots: Mapping[str, Slot], steps: int | None) -> Allocator | None:
        """What weighs them."""
        steps = self.steps if steps is None else steps
        found = {path: slot for path, slot in slots.items() if isinstance(slot, Triplet)}
        return None if steps is None else Allocator(found, self.allocation, steps)

    def unfinished(self, slots: Mapping[str, Slot]) -> str | None:
        """Whether the choice is still to be made for good."""
        found = [slot for slot in slots.values() if isinstance(slot, Triplet)]
        if all(slot.is_settled for slot in found):
            return None
        return (
            f"The ranks have not been chosen for good after {max(slot.taken for slot in found)} optimizer steps. Train the adapter to the "
            "end, and say how long that is with paring.train.plan(model, steps=...) where no trainer does"
        )

    def example(self) -> AdaLoRA:
        """A training of a few steps."""
        return replace(self, rank=8, target=5, steps=3)

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        check_rank(self.rank, shape)

    def slot(self, shape: Shape, generator: torch.Generator) -> Triplet:
        """A triplet for each rank."""
        self.check(shape)
        a = torch.randn(self.rank, shape.in_features, generator=generator, device="cpu") * SPREAD
        b = torch.randn(shape.out_features, self.rank, generator=generator, device="cpu") * SPREAD
        scale = scale_of(self.alpha, self.rank, self.scaling)
        return Triplet(Factors(a=a, b=b, gate=torch.zeros(self.rank, device="cpu"), scale=scale), self.dropout)
