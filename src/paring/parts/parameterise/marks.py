"""What has happened to a gate since its last proximal step, and whether a loop has forgotten to take one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

PATIENCE = 32
"""Backward passes without a proximal step, though something was stepped, after which a loop is told that it trains plain LoRA."""

UNIT = 1e-12
"""Of a sum of learning rates that is kept as an integer: exact, the same on every device, and no cast of the model rounds it."""


class Marks:
    """Plain attributes beside the module: they change at every step, and a module's own attributes are slow to set.

    Attributes:
        pending: whether the next step of an optimizer that holds the gate is to take the proximal step.
        l1_added: whether the extra L1 term is in the gradient already: where one step calls another, both announce themselves.
        moving: whether the next step of an optimizer that holds B is to be added to its travel.
        taken: how many proximal steps have been taken, counted on the host; ``None`` until it is read again after a load.
        travel: the sum of B's learning rates in units of :data:`UNIT`, counted and read again likewise.
        proved: whether one was taken in this process.
    """

    def __init__(self) -> None:
        self.pending = False
        self.l1_added = False
        self.moving = False
        self.taken: int | None = 0
        self.travel: int | None = 0
        self.proved = False
        self._backwards = 0
        self._missed = False
        self._told = False
        self._before: tuple[Tensor, ...] = ()

    def mark(self) -> None:
        """The gate is being trained: the next step is due."""
        self.pending = self.moving = True
        self.l1_added = False

    def stepped(self) -> None:
        """The proximal step was taken: nothing is due, and the watch for a loop that forgets it begins anew."""
        self.pending = False
        self.l1_added = False
        self.proved = True
        if self._backwards:
            self._backwards = 0
            self._missed = False
            self._before = ()

    def passed_over(self) -> None:
        """An optimizer stepped which does not hold the gate, though the gate was due."""
        self._missed = True

    def arrived(self, parameters: Iterable[Tensor]) -> None:
        """A gradient has reached the gate.

        Args:
            parameters: the slot's own, looked at from time to time: a long accumulation of gradients, or no training at all, moves nothing.
        """
        if not self.pending:
            self.mark()
        self._backwards += 1
        if self._backwards == PATIENCE // 2:
            self._before = tuple(parameter.detach().clone() for parameter in parameters)
        if self._backwards < PATIENCE:
            return
        moved = any(not torch.equal(old, new) for old, new in zip(self._before, parameters, strict=True))
        if (moved or self._missed) and not self._told:
            self._told = True
            warnings.warn(
                f"{PATIENCE} backward passes went through a gate and no proximal step has run: this trains plain LoRA. Put the gates "
                "into a torch.optim optimizer (model.parameters() has them), or hook yours with paring.step.watch(optimizer).",
                stacklevel=2,
            )
        self._backwards = 0

    def copied(self) -> Marks:
        """The marks of a copy: what was counted on this gate's own gradients does not go along."""
        twin = Marks()
        twin.pending, twin.moving, twin.l1_added, twin.proved = self.pending, self.moving, self.l1_added, self.proved
        twin.taken, twin.travel = self.taken, self.travel
        twin._missed, twin._told = self._missed, self._told
        return twin
