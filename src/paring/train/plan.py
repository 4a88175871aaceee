"""Saying how long a training will be, which is all that a cut to a budget asks for."""

from __future__ import annotations

from torch import nn

from paring.core.errors import TargetError
from paring.cutter import Cutter
from paring.parts.parameterise.ordered import Ordered
from paring.train.look import every_slot


def plan_unplanned(model: nn.Module, *, steps: int) -> None:
    """:func:`plan` for the adapters whose method does not say itself how long it will be trained."""
    names = {name for name, _, slot in every_slot(model) if isinstance(slot, Ordered) and slot.update.steps is None}
    for name in sorted(names):
        plan(model, steps=steps, adapter=name)


def plan(model: nn.Module, *, steps: int, adapter: str | None = None) -> dict[str, Cutter]:
    """Spread the cuts of every adapter with a budget over a training of ``steps`` optimizer steps.

    To be called before the first step, and again after a checkpoint was loaded into a new model; ``ParingTrainer`` and
    ``ParingCallback`` do. Steps that the checkpoint has behind it count.

    Args:
        model: a model with a paring adapter.
        steps: optimizer steps from the first to the last, whether or not some were taken already.
        adapter: only this one; ``None`` takes all that are to be cut.

    Returns:
        What cuts each adapter, by the adapter's name; empty where none has a budget.

    Raises:
        SettingError: ``steps`` is no whole number of at least 1, or a budget does not pay for a single rank.
        TargetError: the model has no paring adapter, or the one that was named has no budget.
    """
    found: dict[str, dict[str, Ordered]] = {}
    for name, path, slot in every_slot(model):
        if isinstance(slot, Ordered) and adapter in (None, name):
            found.setdefault(name, {})[path] = slot
    if adapter is not None and not found:
        raise TargetError(f"The adapter {adapter!r} is not on this model, or its method has no budget: there is nothing to plan.")
    return {name: Cutter(slots, steps) for name, slots in found.items()}
