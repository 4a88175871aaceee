r"""The spectral cut: LoRA whose ranks are chosen among all modules by their singular values while it trains, down to a size or a knee.

.. math::
    y = W x + s\,B A x, \qquad s\,B A = U\,\mathrm{diag}(\sigma)\,V^\top \ \text{per module}

A few times in the first part of the training the factors of every module are put into the order of their singular values, and of all
ranks of all modules those with the largest :math:`\sigma^2 / (\mathrm{in} + \mathrm{out})` are kept that the budget pays for
(:mod:`paring.parts.allocate.spectral`). The rest of the training recovers what was lost. No penalty, no gate, no rank: a size. Without one
there is a single cut, to the knee of the spectrum (:mod:`paring.parts.allocate.knee`).

Source: ours. Cutting by singular values during the training is LoRA-Squeeze's (arXiv 2602.10993), which does so module by module to one
rank for all; here all modules share one budget, in parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from paring.core.coding import member
from paring.lead.cutter import Cutter
from paring.method import About, Method, check_common, check_rank, part
from paring.parts.allocate.budget import Budget, Knee
from paring.parts.initialise.base import Initialiser
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.parameterise.base import Slot
from paring.parts.parameterise.low_rank import Scaling, scale_of
from paring.parts.parameterise.ordered import Ordered
from paring.parts.shape import Shape
from paring.parts.update.cut import Cut, Moments, Score
from paring.parts.update.proximal import Update


@dataclass(frozen=True, kw_only=True)
class Spectral(Method):
    r"""LoRA cut down to a budget by the singular values of all its modules.

    Attributes:
        budget: how big the adapter is to be at the end: ``Parameters(count=40_000)``, ``Share(share=0.25)`` of the start,
            ``Bytes(count=2_000_000)``; ``Knee()``, as big as its spectrum says, is found at one cut.
        rank: the ranks that every module starts with.
        alpha: :math:`\alpha`; the scale is :math:`\alpha / r` (or :math:`/\sqrt r`) with the starting rank, whatever is left of it.
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"standard"`` or ``"rs"``.
        cuts: how often to cut; each cut keeps the same share.
        until: share of the steps after which the last cut is made.
        steps: optimizer steps of the training; ``None`` leaves it to ``ParingTrainer`` and ``ParingCallback``, which know, or to
            :func:`paring.train.plan`.
        score: what a rank is worth: its singular value (``"size"``), or what the loss would lose without it (``"loss"``).
        look: batches before each cut from which ``"loss"`` is estimated.
        moments: whether an optimizer's memory of the factors is turned with them (``"turn"``) or forgotten (``"reset"``).
        quicken: q, in [0, 1]: a module that k of its r ranks are left of moves :math:`(r / k)^q` times as far at each step. A thin LoRA
            wants a larger rate than a wide one, and what begins as the one ends as the other; 0 leaves the steps alone. On four tasks
            0.5 was better than 0 at an eighth of the size (docs/studies/sora-claim.md).
        init: where the factors start.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "spectral"
    about: ClassVar[About] = About(
        title="Spectral cut to a budget",
        paper="paring's own; cf. LoRA-Squeeze, arXiv 2602.10993",
        kind="adaptive rank",
        parameters="r (in + out) at the start; the budget at the end",
        verified=(
            "a cut is the best approximation of its rank, by size or in the norm of inputs and gradients",
            "gradients and Adam's moments turn as the factors do",
            "a step moves a module that was cut as many times as far as its setting says",
            "the budget is reached at the last cut, never exceeded, and missed by less than one rank",
            "the knee is the point of the spectrum farthest above the chord",
            "what was cut stays zero, whatever the optimizer remembers",
            "a run that goes on at any step, between two cuts too, ends with the same bits",
        ),
        recipe="model = paring.adapt(model, Spectral(budget=Parameters(count=40_000)), task_type='SEQ_CLS')",
    )

    budget: Budget = part(Budget, default=Knee())
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: Scaling = "standard"
    cuts: int = 3
    until: float = 0.6
    steps: int | None = None
    score: Score = "size"
    look: int = 8
    moments: Moments = "turn"
    quicken: float = 0.5
    init: Initialiser = part(Initialiser, default=KaimingZero())

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout, scaling=self.scaling)
        member("init", self.init, Initialiser)
        # When to cut, and down to what, is checked where it is used.
        member("cut", self.cut, Update)

    @property
    def cut(self) -> Cut:
        """When to cut, and down to what."""
        return Cut(
            budget=self.budget,
            times=self.cuts,
            until=self.until,
            steps=self.steps,
            score=self.score,
            look=self.look,
            moments=self.moments,
            quicken=self.quicken,
        )

    @property
    def budgeted(self) -> bool:
        """It is."""
        return True

    @property
    def asks_for_steps(self) -> bool:
        """Unless they are set."""
        return self.steps is None

    def lead(self, slots: Mapping[str, Slot], steps: int | None) -> Cutter | None:
        """What cuts them."""
        steps = self.steps if steps is None else steps
        return None if steps is None else Cutter({path: slot for path, slot in slots.items() if isinstance(slot, Ordered)}, steps)

    def unfinished(self, slots: Mapping[str, Slot]) -> str | None:
        """Whether the last cut is still to be made."""
        found = [slot for slot in slots.values() if isinstance(slot, Ordered)]
        left, start = sum(slot.cost * slot.left for slot in found), sum(slot.cost * slot.A.shape[0] for slot in found)
        if left <= self.budget.parameters(start) and all(slot.settled for slot in found):
            return None
        goal = f"a budget of {self.budget.parameters(start)}" if self.budget.known else "is still to be cut to what its spectrum says"
        return (
            f"The adapter has {left} parameters and {goal}: after {max(slot.taken for slot in found)} optimizer steps the last cut has not "
            "been made. Train it to the end, and say how long that is with paring.train.plan(model, steps=...) where no trainer does"
        )

    def example(self) -> Spectral:
        """A training of a few steps."""
        return replace(self, steps=3)

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        check_rank(self.rank, shape)
        self.init.check(shape, self.rank)

    def slot(self, shape: Shape, generator: torch.Generator) -> Ordered:
        """Two factors, and when to cut them."""
        self.check(shape)
        scale = scale_of(self.alpha, self.rank, self.scaling)
        return Ordered(self.init.factors(shape, self.rank, scale, generator), self.cut, self.dropout)
