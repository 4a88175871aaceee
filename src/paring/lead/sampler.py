"""Nested adapters: ranks that a step does not train stay as they are, whatever the optimizer remembers of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor
from torch.optim import Optimizer

from paring.parts.parameterise.followed import Leader, follow
from paring.parts.parameterise.nested import Nested


class Sampler(Leader):
    """One adapter's slots, which train the same ranks at each step.

    A rank without a gradient would still be moved by momentum and weight decay, and what is remembered of it would fade: so factors and
    memory of the ranks that a step does not train are put back after it.

    Args:
        slots: by module path; they are told that this leads them.
    """

    timed: ClassVar[bool] = False
    prepares = True

    def __init__(self, slots: Mapping[str, Nested]) -> None:
        self.slots = dict(slots)
        self._before: dict[tuple[int, str], Tensor] = {}
        self._warned = False
        follow(self.slots, self)

    def before(self, optimizer: Optimizer) -> None:
        """Remember everything."""
        if not self._warned and any(slot.A.grad is not None and not slot.training for slot in self.slots.values()):
            self._warned = True
            warnings.warn(
                "A nested adapter is being trained in evaluation mode, where it computes with all its ranks and not with those of the "
                "step: what is trained is another method. Call model.train(), and set dropout to 0 where it is not wanted.",
                stacklevel=2,
            )
        self._before = {key: tensor.clone() for slot in self.slots.values() for key, tensor, _ in _ranks(slot, optimizer)}

    def after(self, optimizer: Optimizer) -> None:
        """Put back what was not to be trained, and count the step."""
        before, self._before = self._before, {}
        for slot in self.slots.values():
            trained = slot.trains()
            for key, tensor, along in _ranks(slot, optimizer):
                # What an optimizer remembers for the first time is zero before.
                copy = before.get(key)
                for part in (slice(0, trained.start), slice(trained.stop, None)):
                    view = tensor[part] if along == 0 else tensor[:, part]
                    if copy is None:
                        view.zero_()
                    else:
                        view.copy_(copy[part] if along == 0 else copy[:, part])
            slot.stepped()


def _ranks(slot: Nested, optimizer: Optimizer) -> Iterator[tuple[tuple[int, str], Tensor, int]]:
    """The factors, and what the optimizer remembers of them entry by entry, each with a key and the dimension that its ranks lie along."""
    for factor, along in ((slot.A, 0), (slot.B, 1)):
        yield (id(factor), ""), factor.detach(), along
        for name, value in optimizer.state.get(factor, {}).items():
            if isinstance(value, Tensor) and value.shape == factor.shape:
                yield (id(factor), name), value, along
