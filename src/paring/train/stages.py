r"""SoRA's sparsifying scheduler (Algorithm 1): one dense start, then one stage of training for each larger penalty.

Train with the smallest penalty :math:`\xi_1` and take its scores as references. Then, for :math:`\xi_2 < \dots < \xi_N`, train on **from
the weights as they are**, with the learning rate's schedule built anew, and keep a snapshot. The result is a family of adapters of falling
rank, with two numbers each:

.. math:: \text{memorization}_i = 100\,\frac{m_i(\text{train})}{m_1(\text{train})}, \qquad
          \text{generalization}_i = 100\,\frac{m_i(\text{dev})}{m_1(\text{dev})}.

Source: Ding et al. (arXiv 2311.11696). In the released script the schedule is not built anew, so its later stages run at learning
rate 0; here a stage that would reuse a trainer is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import Trainer

from paring.attach.find import slots, snapshot
from paring.core.adapter import Adapter
from paring.core.coding import number
from paring.core.errors import SettingError
from paring.parts.parameterise.gated import Gated
from paring.train.guards import bare
from paring.train.look import every_slot


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The task's main metric, larger is better.

    Attributes:
        train: on a sample of the training set (the authors take 1,000 examples).
        validation: on the development set.
    """

    train: float
    validation: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One stage of the scheduler, after its training.

    Attributes:
        index: from 0.
        penalty: :math:`xi_i`.
        scores: what was measured after it.
        memorization: ``100 * scores.train / reference.train``; 100 in the first stage, NaN if the reference is 0.
        generalization: the same on the development set.
        adapter: the weights after it.
    """

    index: int
    penalty: float
    scores: Scores
    memorization: float
    generalization: float
    adapter: Adapter


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
        The stages in order.

    Raises:
        SettingError: the penalties do not ascend, or the adapter has no gates.
    """
    _check(penalties)
    reference: Scores | None = None
    stages = []
    for index, penalty in enumerate(penalties):
        set_penalty(model, penalty, adapter)
        train_stage(index, penalty)
        scores = evaluate()
        reference = reference or scores
        stages.append(
            Stage(
                index=index,
                penalty=float(penalty),
                scores=scores,
                memorization=_percent(scores.train, reference.train, index),
                generalization=_percent(scores.validation, reference.validation, index),
                adapter=snapshot(model, adapter),
            )
        )
    return tuple(stages)


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
    seen: list[Trainer] = []

    def train_stage(index: int, penalty: float) -> None:
        trainer = make_trainer(index, penalty)
        if any(trainer is other for other in seen):
            raise SettingError(
                f"make_trainer returned the trainer of an earlier stage for stage {index}: its learning rate has run out. Return a new one."
            )
        if trainer.model is not model:
            raise SettingError(f"make_trainer returned a trainer of another model for stage {index}: stages share one model.")
        if trainer.optimizer is not None and any(bare(trainer.optimizer) is bare(other.optimizer) for other in seen):
            raise SettingError(f"make_trainer passed the optimizer of an earlier stage to stage {index}; let each trainer make its own.")
        seen.append(trainer)
        trainer.train()

    return sparsify(model, penalties, train_stage, evaluate, adapter)


def _check(penalties: Sequence[float]) -> None:
    if not penalties or any(not later > earlier for earlier, later in itertools.pairwise(penalties)):
        raise SettingError(f"penalties={list(penalties)!r}: give at least one, each larger than the one before.")


def _percent(value: float, reference: float, index: int) -> float:
    if index == 0:
        return 100.0
    return 100.0 * value / reference if reference else math.nan
