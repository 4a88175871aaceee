r"""A family of adapters: one training in full, then stage after stage a smaller one, each from the weights of the one before.

This is the frame of SoRA's sparsifying scheduler (Algorithm 1, Ding et al., arXiv 2311.11696), whatever it is that makes the next adapter
smaller: a larger penalty on the gates (:mod:`paring.train.stages`), or a cut (:mod:`paring.train.down`). Every stage has two numbers
beside its scores,

.. math:: \text{memorization}_i = 100\,\frac{m_i(\text{train})}{m_0(\text{train})}, \qquad
          \text{generalization}_i = 100\,\frac{m_i(\text{held out})}{m_0(\text{held out})}.

Each stage's learning rate has a schedule of its own. In SoRA's released script it has not, so the later stages run at learning rate 0; here
a stage that would reuse a trainer is refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import nn
from transformers import Trainer

from paring.attach.find import snapshot
from paring.core.adapter import Adapter
from paring.core.errors import SettingError
from paring.core.records import Point
from paring.train.checkpoints import last_checkpoint
from paring.train.guards import bare
from paring.train.recorder import points


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The task's main metric, larger is better.

    Attributes:
        train: on a sample of the training set (SoRA's authors take 1,000 examples).
        validation: on rows that are not trained on.
        error: standard error of ``validation``; only a tolerance in standard errors asks for it.
        others: further metrics that are to be kept beside these, such as those on a test set.
    """

    train: float
    validation: float
    error: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    r"""One stage, after its training.

    Attributes:
        index: from 0.
        goal: what it was trained under: a penalty :math:`\xi_i`, or the most parameters.
        scores: what was measured after it.
        memorization: ``100 * scores.train / reference.train``; 100 in the first stage, NaN if the reference is 0.
        generalization: the same on the rows held out.
        adapter: the weights after it.
        seconds: wall time of its training, of the last process that had a part in it.
        history: what was logged while it was trained.
    """

    index: int
    goal: float
    scores: Scores
    memorization: float
    generalization: float
    adapter: Adapter
    seconds: float = math.nan
    history: tuple[Point, ...] = ()

    @property
    def parameters(self) -> int:
        """Parameters of the adapter, heads not counted."""
        return self.adapter.parameters


class Store(Protocol):
    """Where stages are kept, so that a walk can go on."""

    def finished(self) -> tuple[Stage, ...]:
        """The stages that are there already; what was trained is as the last of them left it."""
        ...

    def keep(self, stage: Stage) -> None:
        """Keep one more, and what was trained as it is."""
        ...


def walk(
    model: nn.Module,
    onward: Callable[[Sequence[Stage]], float | None],
    enter: Callable[[float], object],
    train_stage: Callable[[int, float], Sequence[Point] | None],
    evaluate: Callable[[], Scores],
    *,
    adapter: str = "default",
    store: Store | None = None,
) -> tuple[Stage, ...]:
    """Train stage after stage, each from the weights of the one before.

    Args:
        model: the adapted model; it is trained in place.
        onward: given the stages so far, the goal of the next; ``None`` ends the walk.
        enter: called with the goal before each stage.
        train_stage: called with the stage's index and goal, trains ``model``, with a new optimizer and a new schedule each time; returns
            what was logged, if anything was.
        evaluate: measures ``model`` as it is.
        adapter: the adapter that is trained.
        store: keeps each stage as it ends; those that it has already are not trained again.

    Returns:
        The stages in order. A stage in which no rank is left is the last.
    """
    stages = list(store.finished()) if store is not None else []
    while not (stages and stages[-1].parameters == 0) and (goal := onward(stages)) is not None:
        enter(goal)
        started = time.perf_counter()
        history = train_stage(len(stages), goal) or ()
        seconds = time.perf_counter() - started
        scores = evaluate()
        reference = stages[0].scores if stages else scores
        stage = Stage(
            index=len(stages),
            goal=float(goal),
            scores=scores,
            memorization=percent(scores.train, reference.train, len(stages)),
            generalization=percent(scores.validation, reference.validation, len(stages)),
            adapter=snapshot(model, adapter),
            seconds=seconds,
            history=tuple(history),
        )
        if store is not None:
            store.keep(stage)
        stages.append(stage)
    return tuple(stages)


def percent(value: float, reference: float, index: int) -> float:
    """Percent of the first stage; 100 in that stage itself."""
    if index == 0:
        return 100.0
    return 100.0 * value / reference if reference else math.nan


def by_trainers(
    make_trainer: Callable[[int, float], Trainer], model: nn.Module, *, resume: bool = False
) -> Callable[[int, float], Sequence[Point]]:
    """A ``train_stage`` with a new trainer for each stage.

    Args:
        make_trainer: called with the stage's index and goal, returns a new trainer of ``model``.
        model: the adapted model.
        resume: begin with the last whole checkpoint in the trainer's ``output_dir``, if there is one.

    Returns:
        What :func:`walk` calls. It raises a SettingError if a trainer comes back a second time, or trains another model: its schedule has
        run out, so the stage would train at rate 0.
    """
    seen: list[Trainer] = []

    def train_stage(index: int, goal: float) -> Sequence[Point]:
        trainer = make_trainer(index, goal)
        if any(trainer is other for other in seen):
            raise SettingError(
                f"make_trainer returned the trainer of an earlier stage for stage {index}: its learning rate has run out. Return a new one."
            )
        if trainer.model is not model:
            raise SettingError(f"make_trainer returned a trainer of another model for stage {index}: stages share one model.")
        if trainer.optimizer is not None and any(bare(trainer.optimizer) is bare(other.optimizer) for other in seen):
            raise SettingError(f"make_trainer passed the optimizer of an earlier stage to stage {index}; let each trainer make its own.")
        folder = trainer.args.output_dir
        if resume and any(folder == other.args.output_dir for other in seen):
            raise SettingError(
                f"Stage {index} has the output_dir of an earlier stage, {folder!r}, so its checkpoints could not be told from those; give "
                "each stage a folder of its own."
            )
        seen.append(trainer)
        last = last_checkpoint(Path(folder)) if resume and folder is not None else None
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        # For mixed precision Trainer has put autocast around the forward, and the next one would put it around that.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        return points(trainer.state.log_history)

    return train_stage
