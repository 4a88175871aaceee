"""Slots whose steps are counted, and who is told of them: what acts on all slots of an adapter together."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from paring.core.factors import Factors
from paring.parts.parameterise.low_rank import LowRank

_slots: weakref.WeakSet[Followed] = weakref.WeakSet()


def followed_slots() -> Iterator[Followed]:
    """Every such slot that is alive in this process, in no particular order."""
    return iter(_slots)


class Leader(ABC):
    """Acts on all slots of one adapter together, around the steps of the optimizer that holds them.

    All that it remembers lies in buffers of the slots, so that a checkpoint has it.
    """

    timed: ClassVar[bool] = True
    """Whether what it does depends on how long the training will be."""

    prepares: bool = False
    """Whether it has something to do before a step."""

    def before(self, optimizer: Optimizer) -> None:  # noqa: B027 - most have nothing to do
        """Once the gradients of a step are there; called where :attr:`prepares` says so."""

    @abstractmethod
    def after(self, optimizer: Optimizer) -> None:
        """Once the step has been taken; each slot is to be told by :meth:`Followed.stepped`."""

    def looks(self, taken: int) -> bool:
        """Whether the batches of the step that follows ``taken`` are to be looked at."""
        return False


class Followed(LowRank):
    """Factors whose optimizer steps are counted, and on which a leader acts.

    Args:
        start: the factors to begin with.
        dropout: as in :class:`LowRank`.
    """

    steps: Tensor

    def __init__(self, start: Factors, dropout: float = 0.0) -> None:
        super().__init__(start, dropout)
        # How many steps of an optimizer have moved the slot; saved with it, so that a run that is resumed goes on where it was.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.leader: Leader | None = None
        self._taken: int | None = 0
        _slots.add(self)

    @property
    def taken(self) -> int:
        """Optimizer steps so far, counted on the host."""
        if self._taken is None:
            self._taken = int(self.steps)
        return self._taken

    @property
    def cost(self) -> int:
        """Parameters of one rank."""
        return self.A.shape[1] + self.B.shape[0]

    def stepped(self) -> None:
        """Note that an optimizer's step has moved the factors."""
        self._taken = self.taken + 1
        self.steps.add_(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Followed:
        """Move with the model, but keep running sums and means in float32: what is added to them is far below bfloat16's resolution."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self.named_buffers():
            if buffer.dtype in (torch.bfloat16, torch.float16):
                self.register_buffer(name, buffer.float())
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._taken = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _slots.add(self)


def follow(slots: Mapping[str, Followed], leader: Leader) -> None:
    """Tell slots who leads them."""
    for slot in slots.values():
        slot.leader = leader
