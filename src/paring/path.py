r"""The whole path: from the full adapter down to ever smaller ones, a family on disk, and of it the smallest that is good enough.

The first stage trains the adapter at its full size. Each later one begins with the weights of the one before, cut to half of the parameters
by the singular values of all modules (:mod:`paring.train.down`), and trains on for a part of the first's steps; or, for an adapter with
gates, trains on with a larger penalty, which is SoRA's Algorithm 1 (:mod:`paring.train.stages`). Every stage is scored on rows that are
not trained on, and kept: as a plain LoRA, and as what it takes to go on from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from paring.api import export
from paring.attach.find import method_of, slots
from paring.core.records import Point
from paring.train.down import Descent, Halve, given_up
from paring.train.family import ADAPTER, Family
from paring.train.tolerance import Tolerance, check_reference, choose
from paring.train.walk import Scores, Stage, by_trainers, walk


@dataclass(frozen=True, kw_only=True, eq=False)
class Walked:
    """What a path has led to.

    Attributes:
        stages: all of them; the first is the full adapter.
        chosen: the smallest inside the tolerance, whose weights the model has now; ``None`` if no tolerance was given, and the model has
            those of the last stage.
        floor: the lowest score on held-out rows that is inside the tolerance; ``None`` without one.
        folder: where the family is.
    """

    stages: tuple[Stage, ...]
    chosen: Stage | None
    floor: float | None
    folder: Path

    def adapter(self, stage: Stage) -> Path:
        """The folder of a stage's adapter, a plain LoRA."""
        return self.folder / f"stage-{stage.index:02d}" / ADAPTER


def pare(
    model: nn.Module,
    make_trainer: Callable[[int, float], Trainer],
    evaluate: Callable[[], Scores],
    *,
    folder: str | Path,
    tolerance: Tolerance | None = None,
    descent: Descent | None = None,
    resume: bool = False,
    adapter: str = "default",
) -> Walked:
    """Walk down with a new trainer for each stage: ``ParingTrainer``, or any other with a ``ParingCallback``.

    Args:
        model: with an adapter of method :class:`~paring.methods.spectral.Spectral` that has all its parameters,
            ``budget=Share(share=1.0)``, and ``quicken=0.0`` as ``paring path`` has it by default; or one with gates, for ``Rise``.
        make_trainer: called with the stage's index and goal (its most parameters, or its penalty), returns a new trainer of ``model``. The
            first stage is the training in full; a quarter of its steps is enough for the later ones. With ``resume`` each stage needs an
            ``output_dir`` of its own, whose checkpoints it then goes on from.
        evaluate: measures ``model`` as it is, on rows that are not trained on.
        folder: for the family.
        tolerance: how much may be given up; the walk ends two stages after it was. ``None`` walks to the end.
        descent: how the adapter becomes smaller; by default ``Halve()``, ``Rise(penalties=...)`` for an adapter with gates.
        resume: go on with the family in the folder, in the midst of a stage too.
        adapter: the adapter that is trained.

    Returns:
        The stages and the choice. The model has the chosen stage's weights: ``paring.export(model, ...)`` writes them.

    Raises:
        SettingError: the adapter cannot be made smaller, a trainer comes back a second time, or the family in the folder was trained with
            other settings.
        OutputExistsError: there is a family in the folder, and ``resume`` was not asked for.
        DataError: the full adapter has no score to compare with.
    """
    train_stage = by_trainers(make_trainer, model, resume=resume)
    return descend(
        model, train_stage, evaluate, folder=folder, tolerance=tolerance, descent=descent or Halve(), resume=resume, adapter=adapter
    )


def descend(
    model: nn.Module,
    train_stage: Callable[[int, float], Sequence[Point] | None],
    evaluate: Callable[[], Scores],
    *,
    folder: str | Path,
    tolerance: Tolerance | None,
    descent: Descent,
    resume: bool = False,
    adapter: str = "default",
    settings: Mapping[str, Any] | None = None,
    write: Callable[[Path], object] | None = None,
    writes: bool = True,
) -> Walked:
    """Walk down with a training of your own; for the rest see :func:`pare`.

    Args:
        model: the adapted model.
        train_stage: called with the stage's index and goal, trains ``model`` with a new optimizer and a new schedule, and returns what was
            logged, if anything was.
        evaluate: measures ``model`` as it is.
        folder: for the family.
        tolerance: how much may be given up.
        descent: how the adapter becomes smaller.
        resume: go on with the family in the folder.
        adapter: the adapter that is trained.
        settings: what else the stages depend on, as plain data; a walk with others does not go on from them.
        write: exports a stage's adapter into a folder that may be there; by default :func:`paring.export` does.
        writes: whether this process writes.
    """
    about = {"method": method_of(model, adapter).encode(), "targets": sorted(slots(model, adapter)), "descent": descent.lasting}

    def onward(stages: Sequence[Stage]) -> float | None:
        if stages and tolerance is not None:
            check_reference(stages[0], tolerance)  # before another stage is trained
        return None if given_up(stages, tolerance) else descent.goal(model, stages, adapter)

    def enter(goal: float) -> None:
        descent.enter(model, goal, adapter)

    def export_stage(place: Path) -> Path:
        return export(model, place, adapter=adapter, overwrite=True)

    onward(())  # An adapter that cannot be made smaller is refused before there is a folder.
    family = Family(
        Path(folder), model, {**about, **(settings or {})}, write or export_stage, resume=resume, adapter=adapter, writes=writes
    )
    found = walk(model, onward, enter, train_stage, evaluate, adapter=adapter, store=family)
    if tolerance is None:
        return Walked(stages=found, chosen=None, floor=None, folder=family.folder)
    chosen = choose(found, tolerance)
    if chosen.index != found[-1].index:
        family.restore(chosen.index)
    return Walked(stages=found, chosen=chosen, floor=tolerance.floor(found[0].scores), folder=family.folder)
