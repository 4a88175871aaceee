"""Factors that a method steps at different rates, beside an optimizer that knows nothing of it: it is told, once.

Such a method is plain LoRA if all its parameters are in one group. One hook for the whole process compares, after the first step of an
optimizer whose rate is not zero, the rate of B with that of A in one slot that it holds.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from paring.parts.parameterise.base import Role, Slot

_asked: weakref.WeakKeyDictionary[Slot, float] = weakref.WeakKeyDictionary()
_seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()
_installed: list[RemovableHandle] = []


def expect(slot: Slot, multiple: float) -> None:
    """Note that a slot's B is to be stepped at so many times the rate of its A."""
    _asked[slot] = multiple
    if not _installed:
        _installed.append(register_optimizer_step_post_hook(torch.compiler.disable(_after)))  # type: ignore[no-untyped-call]


def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if optimizer in _seen or not _asked:
        return
    home = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for slot, multiple in _asked.items():
        rates = {
            role: float(home[id(parameter)]["lr"])
            for _, parameter, role in slot.roles()
            if id(parameter) in home and parameter.grad is not None and home[id(parameter)].get("lr") is not None
        }
        down, up = rates.get(Role.FACTOR), rates.get(Role.UP)
        # A schedule may begin at zero.
        if not down or up is None:
            continue
        _seen.add(optimizer)
        if abs(up / down - multiple) > 1e-3 * multiple:
            warnings.warn(
                f"The method steps B at {multiple:g} times the rate of A, but in this optimizer it is {up / down:g} times ({up:g} and "
                f"{down:g}): what is trained is another method. Use ParingTrainer (ParingTrainerMixin with other trainers), or pass an "
                "optimizer made by paring.train.create_optimizer(model, lr=...).",
                stacklevel=2,
            )
        return
