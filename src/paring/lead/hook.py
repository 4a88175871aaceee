"""The hook that tells leaders of the optimizer's steps: nothing to call.

One for the whole process. Of every :class:`~paring.parts.parameterise.followed.Followed` slot whose factors the stepping optimizer holds,
and which have a gradient, it tells the leader once before the step and once after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from paring.core.errors import StepError
from paring.parts.parameterise.followed import Leader, followed_slots
from paring.parts.update.closure import once_gradients_are_there

_installed: list[RemovableHandle] = []


def install() -> None:
    """Install the process-wide hooks; calling it again changes nothing."""
    if not _installed:
        _installed.append(register_optimizer_step_pre_hook(torch.compiler.disable(_before)))  # type: ignore[no-untyped-call]
        _installed.append(register_optimizer_step_post_hook(torch.compiler.disable(_after)))  # type: ignore[no-untyped-call]


def uninstall() -> None:
    """Remove them."""
    while _installed:
        _installed.pop().remove()


def _leaders(optimizer: Optimizer) -> Sequence[Leader]:
    held: set[int] | None = None
    found: dict[int, Leader] = {}
    for slot in followed_slots():
        if slot.B.grad is None:
            continue
        if held is None:
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if id(slot.B) not in held:
            continue
        if isinstance(slot.B, DTensor):
            raise StepError(
                "Factors that lie in shards (FSDP2) cannot be cut, weighed or held together yet; train with DDP or on one device."
            )
        if slot.leader is None:
            raise StepError(
                "This adapter's ranks are chosen over the whole training, and nobody has said how long that will be: call "
                "paring.train.plan(model, steps=...) before the first step, or use ParingTrainer or ParingCallback, which do."
            )
        found[id(slot.leader)] = slot.leader
    return list(found.values())


@torch.no_grad()
def _prepare(optimizer: Optimizer) -> None:
    for leader in _leaders(optimizer):
        leader.before(optimizer)


def _before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if not any(slot.leader is None or slot.leader.prepares for slot in followed_slots()):
        return None
    return once_gradients_are_there(partial(_prepare, optimizer), args, kwargs)


@torch.no_grad()
def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for leader in _leaders(optimizer):
        leader.after(optimizer)
