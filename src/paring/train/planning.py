"""Saying how long a training will be, which is all that methods ask for that choose ranks on the way."""

from __future__ import annotations

from torch import nn

from paring.attach.find import adapters, method_of, slots
from paring.core.coding import positive_int
from paring.core.errors import TargetError
from paring.parts.parameterise.followed import Leader


def plan_unplanned(model: nn.Module, *, steps: int) -> None:
    """:func:`plan` for the adapters whose method does not say itself how long it will be trained."""
    for name in adapters(model):
        if method_of(model, name).asks_for_steps:
            plan(model, steps=steps, adapter=name)


def plan(model: nn.Module, *, steps: int, adapter: str | None = None) -> dict[str, Leader]:
    """Spread what a method does over the training, the cuts to a budget, over ``steps`` optimizer steps.

    To be called before the first step, and again after a checkpoint was loaded into a new model; ``ParingTrainer`` and
    ``ParingCallback`` do. Steps that the checkpoint has behind it count.

    Args:
        model: a model with a paring adapter.
        steps: optimizer steps from the first to the last, whether or not some were taken already.
        adapter: only this one; ``None`` takes all whose method has a plan.

    Returns:
        What acts on each adapter, by the adapter's name; empty where no method has a plan.

    Raises:
        SettingError: ``steps`` is no whole number of at least 1, or a budget does not pay for a single rank.
        TargetError: the model has no paring adapter, or the method of the one that was named has no plan.
    """
    positive_int("steps", steps)
    if adapter is None and not adapters(model):
        slots(model)
    leaders = {name: method_of(model, name).lead(slots(model, name), steps) for name in (adapters(model) if adapter is None else [adapter])}
    found = {name: leader for name, leader in leaders.items() if leader is not None and leader.timed}
    if adapter is not None and not found:
        raise TargetError(f"The method of adapter {adapter!r} does the same however long the training is: there is nothing to plan.")
    return found
