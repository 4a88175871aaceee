r"""SoRA's sparsifying scheduler (Algorithm 1): one dense start, then one stage of training for each larger penalty.

Train with the smallest penalty :math:`\xi_1` and take its scores as references. Then, for :math:`\xi_2 < \dots < \xi_N`, train on **from
the weights as they are**, with the learning rate's schedule built anew, and keep a snapshot. The result is a family of adapters of falling
rank; :mod:`paring.train.walk` has the two numbers that go with each.

Source: Ding et al. (arXiv 2311.11696).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import nn
from transformers import Trainer

from paring.attach.find import slots
from paring.core.coding import number
from paring.core.errors import SettingError
from paring.core.records import Point
from paring.parts.parameterise.gated import Gated
from paring.train.look import every_slot
from paring.train.walk import Scores, Stage, by_trainers, walk


def set_penalty(model: nn.Module, weight: float, adapter: str | None = None) -> int:
    """Set the penalty weight of the gates from the next step on; it stays, and does not fade.

    Args:
        model: a model with a gated adapter.
        weight: lambda >= 0.
        adapter: one adapter; ``None`` for all.

    Returns:
        How many slots were set.

    Raises:
        SettingError: a weight out of range, or no gated slot.
        TargetError: no such adapter.
    """
    number("weight", weight, low=0.0)
    found = list(slots(model, adapter).values()) if adapter is not None else [slot for _, _, slot in every_slot(model)]
    gates = [slot for slot in found if isinstance(slot, Gated)]
    if not gates:
        raise SettingError("A penalty was given for a model without gates; attach SoRA or another gated method.")
    for slot in gates:
        slot.fixed_penalty = float(weight)
    return len(gates)


def sparsify(
    model: nn.Module,
    penalties: Sequence[float],
    train_stage: Callable[[int, float], object],
    evaluate: Callable[[], Scores],
    adapter: str = "default",
) -> tuple[Stage, ...]:
    """Walk through ascending penalties, each stage starting from the weights of the one before.

    Args:
        model: the adapted model; it is trained in place.
        penalties: ascending, as :func:`paring.core.schedules.penalty_list` makes them.
        train_stage: called with the stage's index and penalty, trains ``model``. It must make a new optimizer and a new learning rate
            schedule each time. The penalty is set on the gates before the call.
        evaluate: measures ``model`` as it is.
        adapter: the adapter that is trained.

    Returns:
        The stages in order. A stage in which no rank is left is the last.

    Raises:
        SettingError: the penalties do not ascend, or the adapter has no gates.
    """

    def train(index: int, penalty: float) -> None:
        train_stage(index, penalty)

    return _sparsify(model, penalties, train, evaluate, adapter)


def run_stages(
    make_trainer: Callable[[int, float], Trainer],
    model: nn.Module,
    penalties: Sequence[float],
    evaluate: Callable[[], Scores],
    adapter: str = "default",
) -> tuple[Stage, ...]:
    """:func:`sparsify` with a new ``ParingTrainer`` for each stage.

    Args:
        make_trainer: called with the stage's index and penalty, returns a new trainer of ``model``; a later stage may have fewer epochs.
        model: the adapted model.
        penalties: ascending.
        evaluate: measures ``model`` as it is.
        adapter: the adapter that is trained.

    Raises:
        SettingError: as :func:`sparsify`; also if a trainer comes back a second time, or trains another model: its optimizer's
            schedule has run out, so the stage would train at rate 0.
    """
    return _sparsify(model, penalties, by_trainers(make_trainer, model), evaluate, adapter)


def _sparsify(
    model: nn.Module,
    penalties: Sequence[float],
    train_stage: Callable[[int, float], Sequence[Point] | None],
    evaluate: Callable[[], Scores],
    adapter: str,
) -> tuple[Stage, ...]:
    check_penalties(penalties)

    def onward(stages: Sequence[Stage]) -> float | None:
        return penalties[len(stages)] if len(stages) < len(penalties) else None

    return walk(model, onward, lambda penalty: set_penalty(model, penalty, adapter), train_stage, evaluate, adapter=adapter)


def check_penalties(penalties: Sequence[float]) -> None:
    """Refuse penalties that do not ascend.

    Raises:
        SettingError: they do not, or there are none.
    """
    if not penalties or any(not later > earlier for earlier, later in itertools.pairwise(penalties)):
        raise SettingError(f"penalties={list(penalties)!r}: give at least one, each larger than the one before.")
