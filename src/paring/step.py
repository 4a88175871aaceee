"""The proximal step, taken by itself after each optimizer step: nothing to call, nothing to forget.

A training forward, or a gradient that reaches its gate, marks a gated slot *pending*. The first post-step hook of an optimizer whose
groups hold that slot's
gate applies the slot's proximal step once and clears the mark. One hook for the whole process is installed when the first slot
is attached; :func:`watch` hooks a single optimizer where the process-wide hook is not wanted, and shares the mark.
"""

from __future__ import annotations

import warnings
import weakref
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from paring.core.errors import StepError
from paring.core.factors import local
from paring.parts.parameterise.alive import recount
from paring.parts.parameterise.gated import Gated, gated_slots
from paring.parts.parameterise.marks import UNIT
from paring.parts.update.closure import once_gradients_are_there
from paring.parts.update.hold import Hold
from paring.parts.update.length import refuse

_installed: list[RemovableHandle] = []
_checked: weakref.WeakKeyDictionary[Optimizer, set[int]] = weakref.WeakKeyDictionary()
_held: weakref.WeakKeyDictionary[Optimizer, list[tuple[list[Gated], Hold]]] = weakref.WeakKeyDictionary()
_decay_warned: weakref.WeakSet[Optimizer] = weakref.WeakSet()
_sharing_warned: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def install() -> None:
    """Install the process-wide hooks; calling it again changes nothing."""
    if not _installed:
        _installed.append(register_optimizer_step_pre_hook(_eager(_before)))
        _installed.append(register_optimizer_step_post_hook(_eager(_after)))


def uninstall() -> None:
    """Remove the process-wide hooks, for those who :func:`watch` their optimizers themselves."""
    while _installed:
        _installed.pop().remove()


class Handle(Protocol):
    """What ends a watch."""

    def remove(self) -> None:
        """End it."""
        ...


def watch(optimizer: Any) -> tuple[Handle, ...]:
    """Take the proximal step after this optimizer's steps, with or without the process-wide hook.

    One that calls the hooks of ``torch.optim`` gets two. Of any other the ``step`` of this very object is wrapped; it must have
    ``param_groups``, whose groups hold the gates under ``params`` and their learning rate under ``lr``, and ``state`` by parameter.

    Returns:
        Handles; ``remove()`` of each ends it.

    Raises:
        StepError: the object has no such attributes.
    """
    if isinstance(optimizer, Optimizer) and "hooked" in vars(type(optimizer).step):
        return optimizer.register_step_pre_hook(_eager(_before)), optimizer.register_step_post_hook(_eager(_after))
    missing = [name for name in ("step", "param_groups", "state") if not hasattr(optimizer, name)]
    if missing:
        raise StepError(
            f"{type(optimizer).__name__} has no {' and no '.join(missing)}, so its steps cannot be followed. "
            "Watch the optimizer inside it, or step the gates with torch.optim.AdamW or SGD."
        )
    return (_Wrapped(optimizer),)


class _Wrapped:
    """The step of one object, with what the hooks would do around it."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._inner = optimizer.step
        self._before, self._after = _eager(_before), _eager(_after)
        optimizer.step = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        changed = self._before(self._optimizer, (self._optimizer, *args), kwargs)
        if changed is not None:
            (_, *args), kwargs = changed
        result = self._inner(*args, **kwargs)
        self._after(self._optimizer, (self._optimizer, *args), kwargs)
        return result

    def remove(self) -> None:
        """Put the step back as it was."""
        self._optimizer.step = self._inner


def _eager(hook: Any) -> Any:
    """The hook as plain Python also where a step is compiled: traced, it would be specialised to the rate and the slots of that moment."""
    return torch.compiler.disable(hook)  # type: ignore[no-untyped-call]


def pending(optimizer: Optimizer, home: Mapping[int, dict[str, Any]] | None = None) -> list[tuple[Gated, dict[str, Any]]]:
    """The slots that a step of ``optimizer`` is due to shrink, each with the parameter group that holds its gate.

    A slot is due if it is marked, its gate requires grad and has one. The gate is looked up now, by identity:
    casts and sharding replace ``Parameter`` objects after the optimizer was built. ``home`` is what :func:`_home` says, where it is known.
    """
    due = [slot for slot in gated_slots() if slot.marks.pending and (gate := slot.gate).requires_grad and gate.grad is not None]
    if not due:
        return []
    home = _home(optimizer) if home is None else home
    found = []
    for slot in due:
        group = home.get(id(slot.gate))
        if group is None:
            slot.marks.passed_over()
        else:
            found.append((slot, group))
    return found


def _home(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """The parameter group that holds each parameter, by identity."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def _before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Prepare the gates before the step, or inside it where a closure makes the gradients there."""
    if not any(slot.l1 or not slot.checking for slot in gated_slots()):
        return None
    return once_gradients_are_there(partial(_prepare, optimizer), args, kwargs)


@torch.no_grad()
def _prepare(optimizer: Optimizer) -> None:
    due = [slot for slot, _ in pending(optimizer)]
    _add_l1(optimizer, [slot for slot in due if slot.l1 and not slot.marks.l1_added])
    _hold(optimizer, due)


def _hold(optimizer: Optimizer, due: Sequence[Gated]) -> None:
    """Remember, where dead gates have no gradient, which are dead and what the optimizer knows of them."""
    together: dict[tuple[Any, ...], list[Gated]] = defaultdict(list)
    for slot in due:
        gate = slot.gate
        slot.alive.confirm(gate)
        if not slot.checking:
            together[gate.device, gate.dtype, slot.revive.returns].append(slot)
    _held[optimizer] = [
        (slots, Hold.take([local(slot.gate) for slot in slots], _gradients(slots), _states(optimizer, slots) if returns else ()))
        for (_, _, returns), slots in together.items()
    ]


def _gradients(slots: Sequence[Gated]) -> list[Tensor]:
    return [local(slot.gate.grad) for slot in slots if slot.gate.grad is not None]


def _states(optimizer: Optimizer, slots: Sequence[Gated]) -> list[dict[str, Tensor]]:
    """What the optimizer remembers of each gate, entry for entry."""
    found = [optimizer.state.get(slot.gate, {}) for slot in slots]
    return [{key: local(value) for key, value in state.items() if isinstance(value, Tensor)} for state in found]


def _add_l1(optimizer: Optimizer, due: Sequence[Gated]) -> None:
    """Add the gradient of the released code's extra L1 term, ``l1 * sign(g) / (number of gate entries)``, once a backward."""
    total = sum(slot.gate.numel() for slot in due)
    # A fused optimizer gets gradients that are still multiplied by torch.amp.GradScaler's scale, and divides by it itself.
    scale: Tensor | None = vars(optimizer).get("grad_scale")
    for slot in due:
        assert slot.gate.grad is not None
        term = torch.sign(slot.gate) * (slot.l1 / total)
        slot.gate.grad.add_(term if scale is None else term * scale.to(term.device))
        slot.marks.l1_added = True


@torch.no_grad()
def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Shrink every due gate once, in as few operations as there are different thresholds; then note how far B may have moved."""
    held = _held.pop(optimizer, ())
    if not any(slot.marks.pending or slot.marks.moving for slot in gated_slots()):
        return
    home = _home(optimizer)
    due = pending(optimizer, home)
    if due:
        _shrink(optimizer, due, held)
    _travel(optimizer, home)


def _shrink(optimizer: Optimizer, due: Sequence[tuple[Gated, dict[str, Any]]], held: Sequence[tuple[list[Gated], Hold]]) -> None:
    seen = _checked.setdefault(optimizer, set())
    for slot, group in due:
        if id(group) not in seen:
            check(optimizer, group)
            seen.add(id(group))
            if slot.rate is not None and shared(group):
                warn_of_sharing(optimizer, f"{slot.rate:g}")
    # torch.amp.GradScaler tells a fused optimizer to skip a step through this attribute, a tensor on the device; the hook still
    # fires, so the threshold is multiplied by zero then, without reading it on the host.
    found_inf: Tensor | None = vars(optimizer).get("found_inf")
    buckets: dict[tuple[Any, ...], list[Gated]] = defaultdict(list)
    groups: dict[int, dict[str, Any]] = {}
    for slot, group in due:
        groups[id(group)] = group
        buckets[id(group), slot.update, slot.penalty, slot.gate.device, slot.gate.dtype].append(slot)
    for (group_id, update, penalty, device, _), slots in buckets.items():
        threshold = update.threshold(groups[group_id]["lr"], penalty)
        if isinstance(threshold, Tensor):
            threshold = threshold.to(device)
        if found_inf is not None:
            threshold = threshold * (1.0 - found_inf.to(device))
        # Elementwise, so all gates of a bucket lie end to end in one tensor, and shards are treated where they are.
        gates = [local(slot.gate) for slot in slots]
        shrunk = update.apply(torch.cat(gates), threshold)
        torch._foreach_copy_(gates, list(torch.split(shrunk, [gate.numel() for gate in gates])))
        counts = [slot.steps for slot in slots]
        if found_inf is None:
            torch._foreach_add_(counts, 1)
        else:
            torch._foreach_add_(counts, (1.0 - found_inf.to(device)).to(torch.int64).reshape(()))
    for slots, hold in held:
        hold.restore(_states(optimizer, slots) if hold.kept else ())
    recounts: dict[torch.device, list[Gated]] = defaultdict(list)
    for slot, _ in due:
        if slot.revive.recounts(slot.taken):
            recounts[slot.gate.device].append(slot)
        slot.stepped()
    for slots in recounts.values():
        recount([(slot.alive, slot.gate) for slot in slots])


def _travel(optimizer: Optimizer, home: Mapping[int, dict[str, Any]]) -> None:
    """Add the learning rate of each B that this step has moved to its slot's travel, whichever optimizer holds the gate."""
    moving = [slot for slot in gated_slots() if slot.marks.moving and slot.B.grad is not None]
    found_inf: Tensor | None = vars(optimizer).get("found_inf")
    rates: dict[tuple[int, torch.device], list[Gated]] = defaultdict(list)
    for slot in moving:
        if (group := home.get(id(slot.B))) is not None:
            # A rate above 1, or none that is finite, ends any fading at once, and a sum of such would not fit.
            rates[round(min(1.0, float(group["lr"])) / UNIT), slot.travel.device].append(slot)
    for (units, device), slots in rates.items():
        # As above: on the device what was really stepped, on the host what was asked for.
        step = units if found_inf is None else (1.0 - found_inf.to(device)).to(torch.int64).reshape(()) * units
        torch._foreach_add_([slot.travel for slot in slots], step)
        for slot in slots:
            slot.moved(units)


def check(optimizer: Optimizer, group: dict[str, Any]) -> None:
    """Refuse an optimizer whose learning rate is not the length of its step, or whose averages destroy zeros.

    Raises:
        StepError: names the optimizer, the reason and the cure.
    """
    refuse(optimizer, group, "the gates")
    if group.get("weight_decay") and optimizer not in _decay_warned:
        _decay_warned.add(optimizer)
        warnings.warn(
            f"The gates sit in a parameter group with weight_decay={group['weight_decay']}: they shrink twice. "
            "paring.train.create_optimizer(model, ...) gives them a group of their own.",
            stacklevel=2,
        )


def shared(group: dict[str, Any]) -> bool:
    """Whether a parameter group holds anything but gates."""
    gates = {id(slot.gate) for slot in gated_slots()}
    return any(id(parameter) not in gates for parameter in group["params"])


def warn_of_sharing(optimizer: Optimizer, asked: str) -> None:
    """Tell once that the gates of this optimizer move at the main rate, where their method asks for another."""
    if optimizer in _sharing_warned:
        return
    _sharing_warned.add(optimizer)
    warnings.warn(
        f"The gates share a parameter group with other parameters, so they move at the main learning rate, where the method asks "
        f"for {asked}: another share of them will reach zero, or none. Use ParingTrainer (ParingTrainerMixin with other trainers), "
        "or pass an optimizer made by paring.train.create_optimizer(model, lr=...).",
        stacklevel=3,
    )
