"""The cuts of an adapter, made by themselves after optimizer steps: nothing to call but how long the training will be.

After each step what is left of the adapter is compared with what the cut's schedule allows by then, and cut where that is less. The state
of the schedule is the step alone, which is saved with each slot, so a run that is resumed cuts where the whole run does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from paring.core.coding import positive_int
from paring.core.errors import SettingError
from paring.parts.allocate.spectral import allocate
from paring.parts.parameterise.followed import Leader, follow
from paring.parts.parameterise.ordered import Ordered


class Cutter(Leader):
    """One adapter's slots, cut together over a training of so many steps.

    Args:
        slots: by module path; they are told that this leads them.
        steps: optimizer steps of the whole training, those of a run that is resumed included.

    Raises:
        SettingError: there is no slot, the slots ask for different cuts, or the budget does not pay for a single rank.
    """

    def __init__(self, slots: Mapping[str, Ordered], steps: int) -> None:
        positive_int("steps", steps)
        updates = {slot.update for slot in slots.values()}
        if len(updates) != 1:
            raise SettingError(f"The slots of one adapter share one cut, but there are {len(updates)} in {len(slots)} slots.")
        self.slots = dict(slots)
        self.steps = steps
        self.update = updates.pop()
        self.start = sum(slot.cost * slot.A.shape[0] for slot in self.slots.values())
        cheapest = min(slot.cost for slot in self.slots.values())
        goal = self.update.budget.parameters(self.start)
        if goal < cheapest:
            raise SettingError(
                f"A budget of {goal} parameters does not pay for one rank: the cheapest of these modules takes {cheapest}, and all of them "
                f"start with {self.start}. Ask for more."
            )
        self.prepares = self.update.quicken > 0
        # Where the factors were before the step that is under way, and how many times as far it is to go.
        self._from: list[tuple[Tensor, Tensor, float]] = []
        follow(self.slots, self)

    @property
    def parameters(self) -> int:
        """What is left."""
        return sum(slot.cost * slot.left for slot in self.slots.values())

    def before(self, optimizer: Optimizer) -> None:
        """Note where the factors are whose steps are to be longer."""
        self._from = [
            (factor, factor.clone(), slot.pace)
            for slot in self.slots.values()
            if slot.pace != 1.0
            for factor in (slot.A[: slot.left], slot.B[:, : slot.left])
        ]

    def after(self, optimizer: Optimizer) -> None:
        """Lengthen and count the step that has just been taken, for empty modules too, and cut if more is left than may be by now."""
        if self._from:
            factors, old, paces = zip(*self._from, strict=True)
            self._from = []
            moved = torch._foreach_sub(factors, old)
            torch._foreach_mul_(moved, [pace - 1.0 for pace in paces])
            torch._foreach_add_(factors, moved)
        looked = self.looks(max(slot.taken for slot in self.slots.values()))
        for slot in self.slots.values():
            if looked:
                slot.looked()
            slot.stepped()
        taken = max(slot.taken for slot in self.slots.values())
        allowed = self.update.allowed(taken, self.steps, self.start)
        if self.parameters > allowed:
            self.cut(allowed, optimizer)
        elif self.update.seeks(taken, self.steps) and not all(slot.settled for slot in self.slots.values()):
            self.cut(None, optimizer)
            for slot in self.slots.values():
                slot.settle()

    def looks(self, taken: int) -> bool:
        """Whether the batches of the step that follows ``taken`` are to be looked at."""
        return self.update.looks(taken, self.steps)

    @torch.no_grad()
    def cut(self, budget: int | None = None, optimizer: Optimizer | None = None) -> None:
        """Put every slot into the order of its singular values, and keep the ranks of all slots that are worth most.

        Args:
            budget: the most parameters that are left; ``None`` finds it in what has been learned, if the method's budget is of that kind.
            optimizer: what it remembers of the factors is turned with them, or forgotten.
        """
        # A cut that is made without a look, as where a training is shortened, goes by size.
        by_loss = self.update.score == "loss" and any(bool(slot.rows) for slot in self.slots.values())
        spectra = {path: slot.split(by_loss=by_loss) for path, slot in self.slots.items()}
        weights, costs = [spectra[path].s for path in self.slots], [slot.cost for slot in self.slots.values()]
        counts = allocate(weights, costs, self.update.budget.found(weights, costs) if budget is None else budget)
        for (path, slot), keep in zip(self.slots.items(), counts, strict=True):
            before = slot.left
            turn = slot.cut(spectra[path], keep)
            if optimizer is None:
                continue
            if self.update.moments == "turn":
                _turn(optimizer.state.get(slot.A, {}), before, turn.q.T, rows=True)
                _turn(optimizer.state.get(slot.B, {}), before, turn.p, rows=False)
            else:
                for parameter in (slot.A, slot.B):
                    optimizer.state.pop(parameter, None)


LINEAR, SQUARE = ("exp_avg", "momentum_buffer"), ("exp_avg_sq", "max_exp_avg_sq")


def _turn(state: dict[str, Any], before: int, turn: Tensor, *, rows: bool) -> None:
    """Turn what an optimizer remembers of a factor as its gradient turns; means of squares as if ranks were independent."""
    for key in (*LINEAR, *SQUARE):
        value = state.get(key)
        if isinstance(value, Tensor):
            matrix = turn if key in LINEAR else turn.square()
            old = value if rows else value.T
            new = matrix @ old[:before].to(matrix.dtype)
            old.zero_()
            old[: len(new)] = new.to(old.dtype)
