"""A family of adapters on disk, stage by stage: what each was, its adapter as a plain LoRA, and what it takes to train on from it.

``stage-00/adapter`` loads in stock PEFT, ``stage-00/state.safetensors`` is the trained tensors as they were, and ``stage-00/stage.json`` is
written last, so that a stage without it is one that was cut off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from paring.attach.find import slots, snapshot
from paring.core.errors import DataError, OutputExistsError, SettingError, StepError
from paring.core.records import Point
from paring.exchange.folder import replace_file
from paring.train.look import outside
from paring.train.walk import Scores, Stage, percent

SETTINGS, STAGE, STATE, ADAPTER = "family.json", "stage.json", "state.safetensors", "adapter"


def trained_state(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """All that is trained, on the CPU: the slots with their counters, and the heads.

    Raises:
        StepError: the parameters lie in shards.
    """
    return {key: value.cpu().contiguous() for key, value in _tensors(model, adapter).items()}


def _tensors(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    state = {f"slot.{path}.{key}": value for path, slot in slots(model, adapter).items() for key, value in slot.state_dict().items()}
    state |= {f"head.{name}": parameter.detach() for name, parameter in outside(model) if parameter.requires_grad}
    if any(isinstance(value, DTensor) for value in state.values()):
        raise StepError("Parameters that lie in shards (FSDP2) cannot be kept stage by stage yet; train with DDP or on one device.")
    return state


@torch.no_grad()
def restore(model: nn.Module, state: Mapping[str, Tensor], adapter: str = "default") -> None:
    """Put back what :func:`trained_state` gave.

    Raises:
        SettingError: it belongs to another model or adapter.
    """
    now = _tensors(model, adapter)
    shapes = [{key: value.shape for key, value in each.items()} for each in (now, state)]
    differing = sorted(key for key in shapes[0].keys() | shapes[1].keys() if shapes[0].get(key) != shapes[1].get(key))
    if differing:
        raise SettingError(
            f"The stage that is to be gone on from belongs to another model or adapter: {len(differing)} tensors differ (first: "
            f"{differing[0]!r}). Give the same model and settings, or another folder."
        )
    for path, slot in slots(model, adapter).items():
        prefix = f"slot.{path}."
        slot.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    for key, value in state.items():
        if key.startswith("head."):
            now[key].copy_(value)


class Family:
    """The stages in a folder.

    Args:
        folder: made if it is not there.
        model: the model that is trained.
        settings: what the stages depend on, as plain data; a walk with others does not go on from them.
        export: writes the adapter as it is into a folder.
        resume: go on from the stages that are there; otherwise there may be none.
        adapter: the adapter that is trained.
        writes: whether this process writes; under DDP only one does.

    Raises:
        OutputExistsError: there are stages, and ``resume`` was not asked for.
        SettingError: they were trained with other settings.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        settings: Mapping[str, Any],
        export: Callable[[Path], object],
        *,
        resume: bool = False,
        adapter: str = "default",
        writes: bool = True,
    ) -> None:
        self.folder, self.model, self.adapter, self.writes = folder, model, adapter, writes
        self.export = export
        check_family(folder, settings, resume=resume)
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / SETTINGS, (json.dumps(dict(settings), indent=2, sort_keys=True, default=str) + "\n").encode())

    def place(self, index: int) -> Path:
        """The folder of a stage."""
        return self.folder / f"stage-{index:02d}"

    def finished(self) -> tuple[Stage, ...]:
        """The stages that are there already; the model is put where the last of them ended."""
        stages: list[Stage] = []
        while (self.place(len(stages)) / STAGE).is_file():
            self.restore(len(stages))
            stages.append(self._read(len(stages), stages))
        return tuple(stages)

    def restore(self, index: int) -> None:
        """Put the model where a stage ended.

        Raises:
            DataError: the stage's state is damaged.
            SettingError: it belongs to another model.
        """
        path = self.place(index) / STATE
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{str(path)!r} is damaged or missing ({error}); delete the stage's folder and those of later ones.") from error
        restore(self.model, state, self.adapter)

    def keep(self, stage: Stage) -> None:
        """Write a stage; what says that it is there is written last."""
        state = trained_state(self.model, self.adapter)
        if not self.writes:
            return
        place = self.place(stage.index)
        place.mkdir(exist_ok=True)
        if stage.parameters:
            self.export(place / ADAPTER)
        replace_file(place / STATE, save(state))
        data = {
            "goal": stage.goal,
            "scores": asdict(stage.scores),
            "seconds": stage.seconds,
            "parameters": stage.parameters,
            "ranks": dict(stage.adapter.ranks),
            "memorization": stage.memorization,
            "generalization": stage.generalization,
            "history": [asdict(point) for point in stage.history],
        }
        replace_file(place / STAGE, (json.dumps(data, indent=2) + "\n").encode())

    def _read(self, index: int, earlier: list[Stage]) -> Stage:
        path = self.place(index) / STAGE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            scores = Scores(**data["scores"])
            reference = earlier[0].scores if earlier else scores
            return Stage(
                index=index,
                goal=float(data["goal"]),
                scores=scores,
                memorization=percent(scores.train, reference.train, index),
                generalization=percent(scores.validation, reference.validation, index),
                adapter=snapshot(self.model, self.adapter),
                seconds=float(data["seconds"]),
                history=tuple(Point(**point) for point in data["history"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{str(path)!r} is damaged ({error}); delete the stage's folder and those of later ones.") from error


def check_family(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse a folder whose stages are not this walk's, before any work is done.

    Raises:
        OutputExistsError: there are stages, and ``resume`` was not asked for.
        SettingError: they were trained with other settings.
        DataError: what says so is damaged.
    """
    path = folder / SETTINGS
    if not path.is_file():
        return
    if not resume:
        raise OutputExistsError(f"{str(folder)!r} holds the stages of an earlier walk; go on with it (resume), or choose another folder.")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} is damaged ({error}); choose another folder.") from error
    now = json.loads(json.dumps(dict(settings), default=str))
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        shown = ", ".join(f"{key} is {now.get(key)!r} but was {before.get(key)!r}" for key in differing)
        raise SettingError(f"The stages in {str(folder)!r} were trained with other settings: {shown}. Give the same ones to go on.")
