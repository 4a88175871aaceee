r"""SoRA's parameterisation: :math:`\Delta W = s\,B\,\mathrm{diag}(g)\,A`, with a gate that a proximal step sets to exact zeros."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from paring.core.errors import StepError
from paring.core.factors import Factors, whole
from paring.kernels.adapted import Live, adapted_linear
from paring.kernels.low_rank import add_low_rank
from paring.parts.parameterise.alive import Alive
from paring.parts.parameterise.base import Role, Slot
from paring.parts.parameterise.low_rank import LowRank
from paring.parts.parameterise.marks import UNIT, Marks
from paring.parts.update.proximal import Proximal
from paring.parts.update.revive import Always, Revive

_slots: weakref.WeakSet[Gated] = weakref.WeakSet()


def gated_slots() -> Iterator[Gated]:
    """Every gated slot that is alive in this process, in no particular order."""
    return iter(_slots)


def never_shrunk(slots: Iterable[Slot]) -> str | None:
    """A sentence that says so if no proximal step has ever run on any of these slots."""
    if any(int(slot.steps) for slot in slots if isinstance(slot, Gated)):
        return None
    return (
        "The proximal step never ran on this adapter: no gate was ever shrunk, so it is plain LoRA with random gates. Train it with a "
        "torch.optim optimizer that holds the gates (see paring.step.watch for others)"
    )


class Gated(LowRank):
    r"""Factors with a gate ``g`` (r,) between them: :math:`s\,B\,\mathrm{diag}(g)\,A\,\mathrm{drop}(x)`.

    A training forward marks the slot pending, and so does a gradient that reaches the gate otherwise, as in a loop that trains in
    evaluation mode to be rid of dropout. The hook on the optimizer's step (:mod:`paring.step`) applies :attr:`update` once and clears
    the mark. The gate stays float32 whatever the rest is cast to: a threshold of rate x weight is far below the resolution of bfloat16
    near 1, so a low-precision gate could never move.

    In training, ranks whose gate is exactly zero are left out of the products, except for the gradient of the gate itself where
    ``revive`` asks for it; shapes stay as they are, and evaluation computes all ranks. Which ranks those are is seen in each forward on a
    CPU, and from time to time elsewhere (:class:`~paring.parts.parameterise.alive.Alive`), where ``Always`` computes all of them.

    Args:
        start: the factors to begin with, with their gate.
        update: the proximal step to take after each optimizer step; its weight gives way to :attr:`fixed_penalty` where that is set.
        l1: weight of the extra L1 term that the released code adds to the loss, as the mean over all gate entries; 0 is off.
        dropout: as in :class:`LowRank`.
        revive: when dead gates get their gradient.
        rate: the learning rate that the method asks for the gate, for those who check; ``None`` is the main one.
    """

    steps: Tensor
    travel: Tensor

    def __init__(
        self,
        start: Factors,
        update: Proximal,
        l1: float = 0.0,
        dropout: float = 0.0,
        revive: Revive = Always(),  # noqa: B008 - frozen
        rate: float | None = None,
    ) -> None:
        super().__init__(start, dropout)
        assert start.gate is not None
        self.gate = nn.Parameter(start.gate.detach().clone().float())
        self.update = update
        self.fixed_penalty: float | None = None
        self.l1 = l1
        self.revive = revive
        self.rate = rate
        self.marks = Marks()
        self.alive = Alive()
        # How often the proximal step has run; saved with the slot, so that an export can tell after a restart.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # The sum of B's learning rates, in units of UNIT: how far a fading penalty has come.
        self.register_buffer("travel", torch.zeros((), dtype=torch.int64))
        self._watched: weakref.ref[Tensor] | None = None
        _slots.add(self)

    def weight(self) -> Tensor | float:
        """``s * g``."""
        return self.gate * self.scale

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Base output plus update; in training, marks the slot pending.

        Raises:
            StepError: the gate was cast below float32 behind the slot's back.
        """
        self._mark()
        live = self._live()
        if live is None or self.checking:
            return super().add(y, x)
        # With none alive one dead rank stays in: so every gate has a gradient, if only of zeros, and is known to have been trained.
        index = live.index if live.count else torch.zeros(1, dtype=torch.int64, device=x.device)
        weight = self.gate.index_select(0, index) * self.scale
        return add_low_rank(y, self.dropped(x), self.A.index_select(0, index), self.B.index_select(1, index), weight)

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A frozen linear and the update in one function; in training, marks the slot pending.

        Raises:
            StepError: the gate was cast below float32 behind the slot's back.
        """
        self._mark()
        return adapted_linear(x, weight, bias, self.A, self.B, self.gate, self.scale, live=self._live(), dropout=self.dropping)

    @property
    def checking(self) -> bool:
        """Whether dead gates get their gradient now, and may come back at the next step."""
        return self.revive.checks(self.taken)

    @property
    def taken(self) -> int:
        """How many proximal steps have been taken, counted on the host."""
        taken = self.marks.taken
        if taken is None:
            self.marks.taken = taken = int(self.steps)
        return taken

    @property
    def travelled(self) -> float:
        """The sum of B's learning rates over the steps that moved it, counted on the host: Adam moves an entry by no more."""
        travel = self.marks.travel
        if travel is None:
            self.marks.travel = travel = int(self.travel)
        return travel * UNIT

    @property
    def penalty(self) -> float:
        """The penalty weight of the next proximal step."""
        return self.penalty_after(0.0)

    def penalty_after(self, travel: float) -> float:
        """The penalty weight when B has travelled ``travel`` farther: what was fixed from outside, else as the update's own fades."""
        return self.update.weight_after(self.travelled + travel) if self.fixed_penalty is None else self.fixed_penalty

    @property
    def pending(self) -> bool:
        """Whether the next step of an optimizer that holds the gate is to take the proximal step."""
        return self.marks.pending

    @property
    def proved(self) -> bool:
        """Whether a proximal step has run on this slot in this process."""
        return self.marks.proved

    def stepped(self) -> None:
        """Note that the proximal step has run."""
        self.marks.taken = self.taken + 1
        self.marks.stepped()
        self.alive.follow(self.gate)

    def moved(self, units: int) -> None:
        """Note that a step has moved B at a learning rate of so many :data:`UNIT`."""
        self.marks.moving = False
        if self.marks.travel is not None:
            self.marks.travel += units

    def _live(self) -> Live | None:
        """The ranks to compute with; all in evaluation, and where a compiler traces: it would be bound to their number."""
        # Checkpointing runs the forward once without gradients: it must round as the second time, so the mode decides as well.
        if not (self.training or torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return None
        return self.alive.look(self.gate, self.checking)

    def _mark(self) -> None:
        if not torch.is_grad_enabled():
            return
        gate = self.gate
        if not torch.compiler.is_compiling():
            self._watch(gate)
        if not self.training:
            return
        self.marks.mark()
        if gate.dtype in (torch.bfloat16, torch.float16):
            raise StepError(
                f"The gate was cast to {gate.dtype}: a proximal step of rate x weight rounds to nothing there. "
                "Call paring.train.recast(model) after whatever cast the parameters, or use ParingTrainer or ParingCallback, which do."
            )

    def factors(self) -> Factors:
        """A detached copy of the update, gate included."""
        return Factors(a=whole(self.A).clone(), b=whole(self.B).clone(), gate=whole(self.gate).clone(), scale=self.scale)

    def update_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """A and B are factors, the gate is a gate."""
        yield from super().update_roles()
        yield "gate", self.gate, Role.GATE

    def _watch(self, gate: Tensor) -> None:
        """Have each gradient that reaches the gate mark the slot, and be counted until the next proximal step."""
        if (self._watched is not None and self._watched() is gate) or not gate.is_leaf or not gate.requires_grad:
            return
        self._watched = weakref.ref(gate)
        slot = weakref.ref(self)

        def arrived(_: Tensor) -> None:
            owner = slot()
            if owner is not None:
                owner.marks.arrived(owner.parameters())

        gate.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gated:
        """Move with the model, but keep the gate in float32 (or float64), with its own digits, whatever the model is cast to."""
        if "gate" not in self._parameters:
            # FSDP1 has taken it into a flat parameter; whoever is to train that refuses it in a sentence.
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return self
        kept, gradient = self.gate.data, None if self.gate.grad is None else self.gate.grad.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.gate.dtype not in (torch.float32, torch.float64):
            self.gate.data = kept.to(self.gate.device)
            # An optimizer refuses, or miscomputes, a gradient of another dtype than its parameter's.
            self.gate.grad = None if gradient is None else gradient.to(self.gate.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.marks.taken = self.marks.travel = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _slots.add(self)

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference neither pickles nor belongs to a copy, whose gate is another tensor.
        return {**self.__dict__, "_watched": None, "marks": self.marks.copied()}
