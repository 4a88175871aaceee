"""The flags of one run out of a study's file: those of ``paring train``, checked as its command line is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentError, ArgumentParser

from paring.cli.commands.train import TAKEN, fill
from paring.cli.flags import MODE, take
from paring.cli.reword import reworded
from paring.cli.run.options import AdapterOptions, DataOptions, ModelOptions, TrainingOptions, TrainOptions
from paring.cli.run.settings import take_settings
from paring.core.errors import SettingError, near

if TYPE_CHECKING:
    from paring.method import Method
    from paring.study.records import Job
    from paring.train.whole import Whole

OWN = {
    "seed": "a study sets it for each run (`seeds:`)",
    "eval_share": "rows to choose by are held out by `search: held:`",
    "init_adapter": "a study trains every contestant from the start",
    "method": "it belongs to a contestant",
    "peft": "it belongs to a contestant",
    "metric": "it belongs to a task",
    "planted": "it belongs to a task",
}
"""What a study sets by itself, or elsewhere, or what makes no sense in one; and why."""

ALLOWED = tuple(
    item.name for group in (ModelOptions, DataOptions, AdapterOptions, TrainingOptions) for item in fields(group) if item.name not in OWN
)
"""Flags of ``paring train`` that a study's file may set, beside a method's settings."""

OPTIMISER = frozenset(
    {"learning_rate", "head_learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim"}
)
"""Flags of the training that may belong to a method."""

SHARED = frozenset(ALLOWED) - OPTIMISER - {item.name for item in fields(AdapterOptions)}
"""Flags that are the same for all contestants: they decide data, model, steps, batches, precision and what is computed with."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run is made of.

    Attributes:
        options: of ``paring train``.
        method: how modules are adapted, or the model's own weights trained; ``None`` where PEFT's own configuration says it.
        peft: that configuration, with its ``peft_type``.
    """

    options: TrainOptions
    method: Method | Whole | None
    peft: Mapping[str, Any] | None


def parsed(flags: Mapping[str, Any], output_dir: str) -> Run:
    """The run that flags describe; ``method`` is among them, or ``peft``, a mapping.

    Raises:
        SettingError: in the words of the command line.
    """
    given = dict(flags)
    peft = given.pop("peft", None)
    words = [] if peft is not None else [f"--method={given['method']}"]
    if "seed" in given:
        words.append(f"--seed={given['seed']}")
    parser = _parser(*(["--method=lora"] if peft is not None else words))
    if peft is not None:
        given["method"] = "lora"
    try:
        values = parser.parse_object({**given, "output_dir": output_dir})
    except ArgumentError as error:
        names = {name.lstrip("-") for action in parser._actions for name in action.option_strings if not name.endswith("+")}
        known = sorted(name for name in names if name == "method" or check_flag(name) is None)
        raise SettingError(reworded(str(error), known, words)) from error
    options = take(TrainOptions, values)
    return Run(options=options, method=None if peft is not None else take_settings(values, options.adapter.method, TAKEN), peft=peft)


@cache
def _parser(*words: str) -> ArgumentParser:
    """The parser of a method: a study asks for the same one many times, and it takes a while to make."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, parser_mode=MODE)
    fill(parser, words)
    return parser


_NAME = re.compile(r"\$(?P<name>\w+)|\$\{(?P<braced>\w+)\}")


def filled(value: Any, names: Mapping[str, Any]) -> Any:
    """A value with every ``$name`` replaced; a text that is nothing else takes the value as it is, number or not.

    Names that are not among them stay, for another to replace.
    """
    if isinstance(value, Mapping):
        return {key: filled(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, names) for item in value]
    if not isinstance(value, str):
        return value
    whole = _NAME.fullmatch(value)
    if whole and (name := whole["name"] or whole["braced"]) in names:
        return names[name]
    return _NAME.sub(lambda found: str(names.get(found["name"] or found["braced"], found[0])), value)


def flags_of(job: Job, definitions: Mapping[str, str]) -> dict[str, Any]:
    """The flags of a run but for its seed: the file's, and what was chosen of what is searched over."""
    found: dict[str, Any] = filled({**job.settings["flags"], **job.settings["values"]}, definitions)
    return found


def unfilled(value: Any) -> list[str]:
    """The names that are still to be replaced."""
    if isinstance(value, Mapping):
        return [name for item in value.values() for name in unfilled(item)]
    if isinstance(value, list):
        return [name for item in value for name in unfilled(item)]
    return [found["name"] or found["braced"] for found in _NAME.finditer(value)] if isinstance(value, str) else []


def check_flag(name: str) -> str | None:
    """Why a study's file may not set a flag; ``None`` if it may, or if it is a method's setting."""
    if name in OWN:
        return OWN[name]
    if name in TAKEN and name not in ALLOWED:
        return f"a study writes, evaluates and saves in its own way{near(name, ALLOWED)}"
    return None


def check_own(name: str) -> str | None:
    """Why one contestant may not set a flag, or search over it; ``None`` if it is of the adapter, the method or its optimizer."""
    if name in SHARED:
        return "it is the same for all contestants; set it under `settings`, or under `tasks` for one of them"
    return None
