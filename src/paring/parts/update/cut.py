"""When to cut an adapter, and down to how much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from paring.core.coding import choice, member, number, positive_int
from paring.parts.allocate.budget import Budget
from paring.parts.update.proximal import Update

Score: TypeAlias = Literal["size", "loss"]
Moments: TypeAlias = Literal["turn", "reset"]


@dataclass(frozen=True, kw_only=True)
class Cut(Update):
    r"""A few cuts, evenly spaced, each by the same factor, the last one down to the budget.

    Of T steps, cut j of J comes after step :math:`\lceil jT\,u/J \rceil`, with u the share of the steps after which the budget is
    reached, and leaves at most :math:`p_0 (p / p_0)^{j/J}` parameters, with :math:`p_0` those of the start and p the budget. A budget that
    is not known before there is a spectrum is found at the last cut, which is then the only one.

    Attributes:
        budget: p.
        times: J.
        until: u, in (0, 1).
        steps: T, the optimizer steps of the whole training; ``None`` if it is said later.
        score: what a rank is worth: its singular value (``"size"``), or what the loss would lose without it (``"loss"``), by the second
            moments of inputs and gradients over the last batches before a cut.
        look: so many batches.
        moments: whether what an optimizer remembers of the factors is turned with them (``"turn"``) or forgotten (``"reset"``).
        quicken: q, in [0, 1]. A module that k of its r ranks are left of moves :math:`(r / k)^q` times as far at each step as the optimizer
            moves it; 0 leaves its steps alone.
    """

    name: ClassVar[str] = "cut"

    budget: Budget
    times: int = 3
    until: float = 0.6
    steps: int | None = None
    score: Score = "size"
    look: int = 8
    moments: Moments = "turn"
    quicken: float = 0.5

    def __post_init__(self) -> None:
        member("budget", self.budget, Budget)
        positive_int("times", self.times)
        if self.steps is not None:
            positive_int("steps", self.steps)
        choice("score", self.score, ("size", "loss"))
        choice("moments", self.moments, ("turn", "reset"))
        positive_int("look", self.look)
        number("until", self.until, low=0.0, high=1.0, open_low=True, open_high=True)
        number("quicken", self.quicken, low=0.0, high=1.0)

    def looks(self, step: int, steps: int) -> bool:
        """Whether the step that follows ``step`` is one of the last before a cut, whose batches are looked at."""
        return self.score == "loss" and any(mark - self.look <= step < mark for mark in self.marks(steps))

    def marks(self, steps: int) -> list[int]:
        """The steps after which cuts are made; only the last where the size is not known before."""
        if not self.budget.known:
            return [math.ceil(steps * self.until)]
        return [math.ceil(cut * steps * self.until / self.times) for cut in range(1, self.times + 1)]

    def allowed(self, step: int, steps: int, start: int) -> int:
        """The most parameters that may be left after ``step`` of ``steps`` steps, of ``start``, as far as it is known.

        It depends on nothing else: a run that is resumed, or made longer, finds its way back by itself.
        """
        goal = min(start, self.budget.parameters(start))
        if not self.budget.known:
            return start
        past = sum(step >= mark for mark in self.marks(steps))
        if past == 0 or goal == start:
            return start
        return goal if past == self.times or goal == 0 else math.floor(start * (goal / start) ** (past / self.times))

    def seeks(self, step: int, steps: int) -> bool:
        """Whether a size that was not known before is to be found by now."""
        return not self.budget.known and step >= self.marks(steps)[-1]
