"""Training checkpoints: which can be resumed from, and the task that travels beside each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from paring.cli.data.task import Kind, Task
from paring.cli.run.base import place_of
from paring.cli.run.options import ModelOptions
from paring.core.errors import AdapterError, DataError, SettingError, near
from paring.core.reading import json_object
from paring.exchange import settings
from paring.exchange.layout import CONFIG
from paring.method import Method
from paring.train.checkpoints import complete, last_checkpoint
from paring.train.whole import Whole

TASK = "paring_task.json"
"""Beside each checkpoint: the labels and the model's head, which a checkpoint of PEFT does not hold."""


def resume_point(asked: str | None, output_dir: Path) -> Path | None:
    """The checkpoint that ``--resume_from_checkpoint`` means.

    Raises:
        SettingError: there is none, or it is not whole.
    """
    if asked is None or asked.lower() in ("false", "no"):
        return None
    if asked.lower() in ("last", "true", "yes"):
        found = last_checkpoint(output_dir)
        if found is None:
            raise SettingError(
                f"--resume_from_checkpoint {asked}: {str(output_dir)!r} holds no complete checkpoint; leave the flag out to start anew."
            )
        return found
    folder = Path(asked)
    if not complete(folder):
        beside = [item.name for item in folder.parent.glob("checkpoint-*")] if folder.parent.is_dir() else []
        raise SettingError(
            f"--resume_from_checkpoint {asked}: there is no complete training checkpoint.{near(folder.name, beside)} "
            "Give a checkpoint-* folder of an earlier run, or `last`."
        )
    return folder


def check_resume(checkpoint: Path, method: Method) -> None:
    """Refuse to go on with other settings than the checkpoint was trained with.

    Raises:
        SettingError: names the settings that differ.
    """
    if (whole := read_whole(checkpoint)) is not None:
        raise SettingError(
            f"{str(checkpoint)!r} is of a training of the model's own weights, by {whole.get('name')}, and {method.name} trains an "
            f"adapter. Go on with --method {whole.get('name')}, or start anew."
        )
    stored = json_object(checkpoint / CONFIG, SettingError).get("method")
    if not isinstance(stored, dict):
        raise SettingError(f"{str(checkpoint / CONFIG)!r} is damaged (it names no method); use another checkpoint of the run.")
    _same(checkpoint, stored, method.encode())


def check_resume_whole(checkpoint: Path, whole: Whole) -> None:
    """The same for a training of the model's own weights.

    Raises:
        SettingError: names the settings that differ, or it is an adapter's checkpoint.
    """
    stored = read_whole(checkpoint)
    if stored is None:
        raise SettingError(
            f"{str(checkpoint)!r} is of the training of an adapter, and {whole.name} trains the model's own weights; start anew, or fuse "
            "the adapter into its base (paring export, paring fuse) and train that."
        )
    _same(checkpoint, stored, whole.encode())


def _same(checkpoint: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    differing = sorted(key for key in {*stored, *given} if stored.get(key) != given.get(key))
    if differing:
        shown = ", ".join(f"{key} is {given.get(key)!r} but was {stored.get(key)!r}" for key in differing)
        raise SettingError(f"{str(checkpoint)!r} was trained with other settings: {shown}. Give the same ones to go on, or start anew.")


def check_task(checkpoint: Path, task: Task, base: Mapping[str, Any]) -> None:
    """Refuse to go on with other labels, columns or another base model than the checkpoint was trained with.

    Raises:
        SettingError: names what differs.
    """
    before, options = read_task(checkpoint)
    old, new = asdict(before), asdict(task)
    differing = [f"{key} is {new[key]!r} but was {old[key]!r}" for key in new if old[key] != new[key]]
    names = [str(options["model_name_or_path"]), str(base["model_name_or_path"])]
    if len({place_of(name) for name in names}) > 1:
        differing.append(f"the model is {names[1]!r} but was {names[0]!r}")
    if differing:
        raise SettingError(
            f"{str(checkpoint)!r} was trained on other data or another model: {'; '.join(differing)}. Give the same ones to go on, or "
            "start anew; to use what it has learned elsewhere, export it and give it as --init_adapter."
        )


def check_targets(checkpoint: Path, targets: Any) -> None:
    """Refuse to go on with other modules than the checkpoint was trained with.

    Raises:
        SettingError: names the modules.
    """
    stored = settings.names(json_object(checkpoint / CONFIG, SettingError), "target_modules")
    old, new = ({value} if isinstance(value, str) else set(value or ()) for value in (stored, targets))
    if old != new:
        raise SettingError(
            f"{str(checkpoint)!r} was trained on other modules: {', '.join(sorted(old ^ new)[:5])} only in one of the two. Give the same "
            "--target_modules to go on, or start anew."
        )


def task_file(task: Task, base: Mapping[str, Any], whole: Whole | None = None) -> dict[str, bytes]:
    """What stands beside every checkpoint, so that it can be exported by itself: the task, with its labels.

    Args:
        task: what the run learns.
        base: where the model came from, as the model options have it.
        whole: how its own weights are trained, where there is no adapter.
    """
    trained = {} if whole is None else {"whole": whole.encode()}
    return {TASK: (json.dumps({"task": asdict(task), "base": dict(base), **trained}, indent=2) + "\n").encode()}


def read_task(checkpoint: Path) -> tuple[Task, dict[str, Any]]:
    """The task and the model options beside a checkpoint.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = checkpoint / TASK
    if not path.is_file():
        raise DataError(
            f"{str(checkpoint)!r} has no {TASK}, so its labels are unknown: give a checkpoint-* folder that `paring train` wrote, or "
            "export from Python with paring.export."
        )
    data = json_object(path, DataError)
    try:
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data["task"].items()}
        task, base = Task(**fields), dict(data["base"])
        given = ModelOptions(**base)
        if task.kind not in get_args(Kind) or not isinstance(given.model_name_or_path, str):
            raise ValueError(f"a task {str(task.kind)[:60]!r} on the model {str(given.model_name_or_path)[:60]!r} is none")
        return task, base
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{str(path)!r} is damaged ({error}); use another checkpoint of the run.") from error


def read_whole(checkpoint: Path) -> Mapping[str, Any] | None:
    """How a checkpoint's own weights were trained; ``None`` for an adapter's."""
    try:
        found = json_object(checkpoint / TASK).get("whole")
    except AdapterError:
        return None
    return found if isinstance(found, dict) else None
