"""The cuts of an adapter, made by themselves after optimizer steps: nothing to call but how long the training will be.

After each step what is left of the adapter is compared with what the cut's schedule allows by then, and cut where that is less. The state
of the schedule is the step alone, which is saved with each slot, so a run that is resumed cuts where the whole run does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from paring.core.coding import positive_int
from paring.core.errors import SettingError
from paring.core.linalg import Split
from paring.lead.held import Held
from paring.parts.allocate.spectral import allocate
from paring.parts.parameterise.followed import Leader, follow
from paring.parts.parameterise.ordered import Ordered, precise


class Cutter(Leader):
    """One adapter's slots, cut together over a training of so many steps.

    Args:
        slots: by module path; they are told that this leads them.
        steps: optimizer steps of the whole training, those of a run that is resumed included.

    Raises:
        SettingError: there is no slot, the slots ask for different cuts, or the budget does not pay for a single rank.
        StepError: after a step, of an optimizer that holds only a part of the factors or evaluates at an average of its iterates.
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
        self._held = Held(self.slots)
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
        self._held.check(optimizer)
        if self._from:
            factors, old, paces = zip(*self._from, strict=True)
            self._from = []
            moved = torch._foreach_sub(factors, old)
            torch._foreach_mul_(moved, [pace - 1.0 for pace in paces])
            torch._foreach_add_(factors, moved)
        self._keep_away()
        looked = self.looks(max(slot.taken for slot in self.slots.values()))
        for slot in self.slots.values():
            if looked:
                slot.looked()
            slot.stepped()
        taken = max(slot.taken for slot in self.slots.values())
        allowed = self.update.allowed(taken, self.steps, self.start)
        if self.parameters > allowed:
            self.cut(allowed, optimizer)
        elif self.update.seeks(taken, self.steps) and not all(slot.settled for slot in self.slots.values()) and self.cut(None, optimizer):
            for slot in self.slots.values():
                slot.settle()

    def _keep_away(self) -> None:
        """What was cut has no gradient, but memory in eight bits has no exact zero, and would move it all the same."""
        cut = [slot for slot in self.slots.values() if slot.left < slot.A.shape[0]]
        if tails := [tail for slot in cut for tail in (slot.A[slot.left :], slot.B[:, slot.left :])]:
            torch._foreach_zero_(tails)

    def looks(self, taken: int) -> bool:
        """Whether the batches of the step that follows ``taken`` are to be looked at."""
        return self.update.looks(taken, self.steps)

    @torch.no_grad()
    def cut(self, budget: int | None = None, optimizer: Optimizer | None = None) -> bool:
        """Put every slot into the order of its singular values, and keep the ranks of all slots that are worth most.

        Where all updates are still zero, as at a warm-up's first rate or where loss scaling has skipped all steps, there is nothing to
        choose by, and nothing is cut.

        Args:
            budget: the most parameters that are left; ``None`` finds it in what has been learned, if the method's budget is of that kind.
            optimizer: what it remembers of the factors is turned with them, or forgotten.

        Returns:
            Whether a cut was made.
        """
        # A cut without a look goes by size: where a training is shortened, or no batch that was looked at has reached some module.
        by_loss = self.update.score == "loss" and all(bool(slot.rows) for slot in self.slots.values() if slot.left)
        spectra = {path: slot.split(by_loss=by_loss) for path, slot in self.slots.items()}
        if by_loss and _nothing(spectra):  # looked at when all updates were still zero
            spectra = {path: slot.split(by_loss=False) for path, slot in self.slots.items()}
        if _nothing(spectra):
            return False
        weights, costs = [spectra[path].s for path in self.slots], [slot.cost for slot in self.slots.values()]
        counts = allocate(weights, costs, self.update.budget.found(weights, costs) if budget is None else budget)
        for (path, slot), keep in zip(self.slots.items(), counts, strict=True):
            before = slot.left
            turn = slot.cut(spectra[path], keep)
            if optimizer is None:
                continue
            for parameter, matrix, rows in ((slot.A, turn.q.T, True), (slot.B, turn.p, False)):
                if self.update.moments == "reset" or not _turn(optimizer, parameter, before, matrix, rows=rows):
                    optimizer.state.pop(parameter, None)
        return True


def _nothing(spectra: Mapping[str, Split]) -> bool:
    """Whether no rank is worth anything."""
    return not any(bool(split.s.any()) for split in spectra.values())


LINEAR = frozenset({"exp_avg", "momentum_buffer", "grad_avg"})
"""What optimizers call the running means of gradients that they keep for a parameter."""

SQUARE = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum"})
"""The same of squares."""


def _turn(optimizer: Optimizer, parameter: Tensor, before: int, turn: Tensor, *, rows: bool) -> bool:
    """Turn what an optimizer remembers of a factor as its gradient turns; means of squares as if ranks were independent.

    Returns:
        Whether all that it remembers could be turned; if not, as where it is kept in eight bits, nothing was.
    """
    # What is one number, such as a count of steps, has no ranks.
    memory = {key: one for key, one in optimizer.state.get(parameter, {}).items() if isinstance(one, Tensor) and one.numel() > 1}
    if any(key not in LINEAR | SQUARE or type(one) is not Tensor or one.shape != parameter.shape for key, one in memory.items()):
        return False
    for key, value in memory.items():
        matrix = turn if key in LINEAR else turn.square()
        old = value if rows else value.T
        new = matrix @ precise(old[:before])
        old.zero_()
        old[: len(new)] = new.to(old.dtype)
    return True
