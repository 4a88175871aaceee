"""``paring train``: fine-tune a model, find the ranks, export the adapter, write the report."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from paring.cli.flags import Command, add, default_of, take
from paring.cli.run.options import AdapterOptions, TrainingOptions, TrainOptions
from paring.cli.run.settings import add_settings, flag_name, is_whole, peek, starting_method, take_settings, taken_names
from paring.core.errors import SettingError

if TYPE_CHECKING:
    from paring.cli.run.finish import Finished
    from paring.method import Method
    from paring.train.whole import Whole

TAKEN = taken_names(TrainOptions)
BUDGETED = "spectral"
"""The method that `--budget` alone asks for."""

ALWAYS = frozenset({"learning_rate"})
"""Flags whose default depends on the method."""

NOT_REPEATED = frozenset({"resume_from_checkpoint", "overwrite"})


def fill(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """The options of a run, and the settings of the method that the command line names."""
    _fill(parser, argv, path=bool(peek(argv, "tolerance")))


def fill_walk(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """The same for a run that ends in a family of adapters."""
    _fill(parser, argv, path=True)


def _fill(parser: ArgumentParser, argv: Sequence[str], *, path: bool) -> None:
    add(parser, TrainOptions)
    method, source = _asked(argv, path=path)
    parser.set_defaults(method=method)
    start = starting_method(method, source) if source else None
    if path and method == BUDGETED and start is None and not peek(argv, "budget"):
        from paring.methods.spectral import Spectral
        from paring.parts.allocate.budget import Share

        # A path begins with all parameters; what longer steps are worth to its stages, which have rates of their own, is not measured.
        start = Spectral(budget=Share(share=1.0), quicken=0.0)
    add_settings(parser, method, TAKEN, start)
    if is_whole(method):
        _default_whole(parser, method, argv)


def _default_whole(parser: ArgumentParser, method: str, argv: Sequence[str]) -> None:
    """What is by default otherwise where the model's own weights are trained: a lower learning rate, and draws by the run's seed."""
    from paring.cli.run.whole import LEARNING_RATE

    parser.set_defaults({"learning_rate": LEARNING_RATE})
    seed, drawn = peek(argv, "seed"), flag_name(method, "seed", TAKEN)
    if drawn in parser.get_defaults():
        parser.set_defaults({drawn: int(seed) if seed is not None and seed.isdigit() else TrainingOptions().seed})


def run(values: Namespace) -> int:
    """Train; with a tolerance, walk down to the smallest adapter inside it."""
    return _run(values, path=values["tolerance"] is not None)


def walk_down(values: Namespace) -> int:
    """Walk down."""
    return _run(values, path=True)


def _run(values: Namespace, *, path: bool) -> int:
    options = take(TrainOptions, values)
    source = options.adapter.init_adapter
    start = starting_method(options.adapter.method, source) if source else None
    method = take_settings(values, options.adapter.method, TAKEN, start)
    # After the options are known to be right: these imports take seconds.
    from paring.cli.console import calm_libraries, first
    from paring.cli.run.attempt import Stopped
    from paring.cli.run.descent import fit_path
    from paring.cli.run.fit import fit
    from paring.cli.run.hub import push
    from paring.method import Method

    calm_libraries()
    words = command_line(options, method, "path" if path and options.path.tolerance is None else "train")
    if not path:
        outcome = fit(options, method, words)
    elif isinstance(method, Method):
        outcome = fit_path(options, method, words)
    else:
        raise SettingError(
            f"A path leads to ever smaller adapters, and {method.name} trains the model's own weights, without one. Train, and cut "
            "LoRAs of several sizes out of the model: paring extract."
        )
    if isinstance(outcome, Stopped):
        return outcome.status
    if not first():
        return 0
    summarise(outcome)
    if options.output.push_to_hub:
        push(
            outcome.folder / ("adapter" if outcome.record.whole is None else "model"),
            options.output.hub_model_id or outcome.folder.resolve().name,
            options.output.hub_private_repo,
        )
    return 0


def _asked(argv: Sequence[str], *, path: bool = False) -> tuple[str, str | None]:
    default = next(default_of(item) for item in dataclasses.fields(AdapterOptions) if item.name == "method")
    # Who gives a budget or a tolerance and no method wants what keeps to it.
    return peek(argv, "method") or (BUDGETED if path or peek(argv, "budget") else default), peek(argv, "init_adapter")


def command_line(options: TrainOptions, method: Method | Whole, command: str = "train") -> str:
    """The command that repeats the run: every flag that differs from its default, and all settings of the method."""
    words = ["paring", command]
    for group in dataclasses.fields(TrainOptions):
        part = vars(options)[group.name]
        for item in dataclasses.fields(part):
            value = vars(part)[item.name]
            if item.name not in NOT_REPEATED and (value != default_of(item) or item.name in ALWAYS):
                words += _spelled(item.name, value)
    encoded = method.encode()
    for item in dataclasses.fields(method):
        # A start from a trained adapter is said by --init_adapter.
        if item.name in encoded and not (options.adapter.init_adapter and "family" in item.metadata):
            words += _spelled(flag_name(method.name, item.name, TAKEN), encoded[item.name])
    if options.adapter.method == _asked([])[0]:
        words += ["--method", options.adapter.method]
    return shlex.join(words)


def _spelled(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    if isinstance(value, dict) and set(value) == {"name", "version"}:
        value = value["name"]
    return [f"--{name}", value if isinstance(value, str) else json.dumps(value)]


def summarise(outcome: Finished) -> None:
    """What came out of a run, and where it lies."""
    record = outcome.record
    lines = {name: f"{value:.4f}" for name, value in record.metrics.items()}
    if record.whole is not None:
        lines["parameters trained"] = f"{record.whole.parameters:,}, at most {record.whole.at_once:,} at a time"
    elif record.entries:
        lines["sparse entries"] = f"{record.entries:,} in {len(record.modules)} modules"
    else:
        lines["ranks"] = f"{record.live_ranks} of {record.start_ranks} left ({record.live_ranks / max(record.start_ranks, 1):.0%})"
        lines["adapter parameters"] = f"{record.parameters:,} (plain LoRA: {record.start_parameters:,})"
    lines["training time"] = f"{record.seconds:.0f} s"
    if record.path is not None:
        lines["family"] = str(outcome.folder / "family")
    if record.files:
        what = "adapter" if record.whole is None else "model"
        lines[what] = str(outcome.folder / what)
    lines["report"] = str(outcome.folder / "report.html")
    for name, value in lines.items():
        print(f"{name:<20}{value}")


COMMAND = Command(name="train", summary="fine-tune a model and let each module find its rank", fill=fill, run=run)
PATH = Command(
    name="path", summary="train, then walk down to ever smaller adapters: a family, and its frontier", fill=fill_walk, run=walk_down
)
