r"""S2-LoRA's parameterisation: :math:`\Delta W_m = s\,B\,\mathrm{diag}(e_m)\,A`, A and B those of several modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from paring.core.errors import TargetError
from paring.parts.parameterise.base import Role
from paring.parts.parameterise.gated import Gated

FACTORS = ("A", "B")


class Shared(Gated):
    """A gate of its own between factors that it may share.

    Of the slots that share, one holds A and B, and the others look them up in it each time, so that they stay one however the holder's are
    moved, cast, copied, loaded or replaced. A state has them once, under the holder's name. Until :func:`share` a slot holds its own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # In a tuple, where torch does not take it for a module inside this one.
        self._holder: tuple[Shared, ...] = ()

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Base output plus update; in training, marks the slot pending.

        Raises:
            TargetError: the factors are not where the module is.
            StepError: the gate was cast below float32 behind the slot's back.
        """
        self._check_place()
        return super().add(y, x)

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A frozen linear and the update in one function.

        Raises:
            TargetError: the factors are not where the module is.
            StepError: the gate was cast below float32 behind the slot's back.
        """
        self._check_place()
        return super().fused(x, weight, bias)

    def update_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """The gate is a gate; A and B are factors where they are held."""
        yield from (item for item in super().update_roles() if not self._holder or item[0] not in FACTORS)

    def borrow(self, holder: Shared) -> None:
        """Give up the own factors for another slot's."""
        for name in FACTORS:
            delattr(self, name)
        self._holder = (holder,)

    def _check_place(self) -> None:
        if not self._holder:
            return
        a, gate = self.A, self.gate
        if type(a) is not type(gate):
            raise TargetError(
                f"The factors that these modules share are a {type(a).__name__} here: the model was sharded module by module (FSDP2), "
                "and the module that holds them is put together for its own time only. Shard the model as a whole, or use DDP."
            )
        if a.device != gate.device:
            raise TargetError(
                f"These modules share factors, and lie on several devices ({a.device} and {gate.device}): load the model onto one, and use "
                "DDP for several GPUs (CUDA_VISIBLE_DEVICES keeps Trainer from DataParallel)."
            )

    def __getattr__(self, name: str) -> Any:
        if name in FACTORS and (holder := self.__dict__.get("_holder")):
            return getattr(holder[0], name)
        return super().__getattr__(name)


def share(slots: Iterable[Shared]) -> None:
    """Let all slots of one shape have the factors of the first of them."""
    holders: dict[tuple[torch.Size, torch.Size], Shared] = {}
    for slot in slots:
        holder = holders.setdefault((slot.A.shape, slot.B.shape), slot)
        if holder is not slot:
            slot.borrow(holder)
