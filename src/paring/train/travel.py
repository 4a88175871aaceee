r"""How far the proximal steps that are left can still move a gate."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.scheduler import AcceleratedScheduler
from torch.optim import Optimizer

from paring.core.factors import whole
from paring.parts.parameterise.gated import Gated
from paring.parts.update.proximal import Proximal
from paring.train.guards import bare, homes

SHARE = 0.01
"""A run whose travel cannot kill this share of the gates prunes nothing worth the name."""


def rates_left(scheduler: Any, optimizer: Optimizer, steps: int) -> list[list[float]] | None:
    """The learning rate of each group at each of the next ``steps`` steps.

    A copy of the scheduler is stepped on a stand-in for the optimizer, so that any scheduler that follows the step count is right and
    nothing of the run is touched.

    Returns:
        One list for each group; ``None`` if the scheduler follows a metric or does not copy, so that no one can know.
    """
    while isinstance(scheduler, AcceleratedScheduler):
        scheduler = scheduler.scheduler
    if scheduler is None:
        return [[float(group["lr"])] * steps for group in optimizer.param_groups]
    if bare(vars(scheduler).get("optimizer")) is not optimizer:
        return None
    if any(
        item.default is item.empty
        for item in inspect.signature(scheduler.step).parameters.values()
        if item.kind is item.POSITIONAL_OR_KEYWORD
    ):
        return None
    standin = torch.optim.SGD([torch.zeros(1)])
    standin.param_groups = [
        {"params": [], **{key: copy.deepcopy(value) for key, value in group.items() if key != "params"}} for group in optimizer.param_groups
    ]
    try:
        double = copy.deepcopy(scheduler, {id(scheduler.optimizer): standin})
    except Exception:  # noqa: BLE001 - a scheduler of another library may hold anything
        return None
    left: list[list[float]] = [[] for _ in standin.param_groups]
    with warnings.catch_warnings():
        # The stand-in is never stepped, which schedulers warn about.
        warnings.simplefilter("ignore")
        for _ in range(steps):
            for rates, group in zip(left, standin.param_groups, strict=True):
                rates.append(float(group["lr"]))
            double.step()
    return left


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What the rest of a run can do to the gates.

    Attributes:
        reach: share of all gates, dead ones included, that end at zero if no gradient moves them.
        doomed: whether all end at zero even if every gradient pulls away at Adam's full speed, one rate a step.
        dead: whether all are at zero already.
    """

    reach: float
    doomed: bool
    dead: bool


def outlook(found: dict[str, Gated], optimizer: Any, scheduler: Any, steps: int) -> Outlook | None:
    r"""Compare the gates with the travel :math:`T = \sum_t t_t` of the thresholds that are left.

    A gate that no gradient moves dies if :math:`|g| \le T`. One that Adam pulls away with all its speed dies if
    :math:`|g| \le \sum_t \max(t_t - \eta_t, 0)`. Where the rates to come are unknown the present one is taken for all of them, which bounds
    ``reach`` from above for a falling rate and a penalty that does not fade, and nothing is called doomed.

    Returns:
        ``None`` if no optimizer holds a gate.
    """
    near: list[torch.Tensor] = []
    far: list[torch.Tensor] = []
    alive = False
    schedules: dict[int, list[list[float]] | None] = {}
    travels: dict[tuple[int, int | None, Proximal, float | None, float], tuple[float, float]] = {}
    for path, owner, group in homes(optimizer, found):
        slot = found[path]
        if id(owner) not in schedules:
            schedules[id(owner)] = rates_left(scheduler, owner, steps)
        known = schedules[id(owner)]
        factors = _place(owner, slot.B)
        key = (id(group), factors, slot.update, slot.fixed_penalty, slot.travelled)
        if key not in travels:
            rates = _rates(owner, _place(owner, slot.gate), steps, known)
            # How far B will have travelled before each step; one that another optimizer holds is taken to stay where it is.
            travelled = itertools.accumulate(_rates(owner, factors, steps, known), initial=0.0)
            thresholds = [float(slot.update.threshold(rate, slot.penalty_after(way))) for rate, way in zip(rates, travelled, strict=False)]
            pulled = [max(threshold - rate, 0.0) for threshold, rate in zip(thresholds, rates, strict=True)]
            travels[key] = (math.fsum(thresholds), math.fsum(pulled) if known is not None else -1.0)
        size = whole(slot.gate).abs().cpu()
        near.append(size <= travels[key][0])
        far.append(size > travels[key][1])
        alive = alive or bool(size.any())
    if not near:
        return None
    return Outlook(reach=float(torch.cat(near).float().mean()), doomed=not bool(torch.cat(far).any()), dead=not alive)


def _place(optimizer: Optimizer, parameter: torch.Tensor) -> int | None:
    """Which of the optimizer's groups holds the parameter."""
    return next((i for i, group in enumerate(optimizer.param_groups) if any(other is parameter for other in group["params"])), None)


def _rates(optimizer: Optimizer, place: int | None, steps: int, known: list[list[float]] | None) -> list[float]:
    """The learning rates of a group to come: as foreseen, else as it is now; zero where there is no group."""
    if place is None:
        return [0.0] * steps
    return [float(optimizer.param_groups[place]["lr"])] * steps if known is None else known[place]


def warning(view: Outlook, steps: int) -> str | None:
    """The sentence that a run deserves to hear, if any."""
    if view.dead:
        return (
            f"The {steps} steps left begin with every gate at zero already: the adapter is empty, and with revive=Never() stays so. "
            "Lower gate_rate (how far a gate can travel in a step) or penalty."
        )
    if view.doomed:
        return (
            f"The {steps} steps left will set every gate to zero, whatever the gradients do: the adapter ends empty. "
            "Lower penalty (below 1 with step_size='rate')."
        )
    if view.reach < SHARE:
        return (
            f"The {steps} steps left can bring {view.reach:.2%} of the gates to zero: this trains a LoRA that keeps its rank. "
            "Raise gate_rate (how far a gate can travel) or penalty, or train for more steps."
        )
    return None
