"""``paring train``: fine-tune a model, find the ranks, export the adapter, write the report."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from paring.cli.flags import Command, add, default_of, take
from paring.cli.run.options import AdapterOptions, TrainOptions
from paring.cli.run.settings import add_settings, flag_name, peek, starting_method, take_settings, taken_names

if TYPE_CHECKING:
    from paring.cli.run.finish import Finished
    from paring.method import Method

TAKEN = taken_names(TrainOptions)
BUDGETED = "spectral"
"""The method that `--budget` alone asks for."""

NOT_REPEATED = frozenset({"resume_from_checkpoint", "overwrite"})


def fill(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """The options of a run, and the settings of the method that the command line names."""
    add(parser, TrainOptions)
    method, source = _asked(argv)
    parser.set_defaults(method=method)
    add_settings(parser, method, TAKEN, starting_method(method, source) if source else None)


def run(values: Namespace) -> int:
    """Train."""
    options = take(TrainOptions, values)
    source = options.adapter.init_adapter
    start = starting_method(options.adapter.method, source) if source else None
    method = take_settings(values, options.adapter.method, TAKEN, start)
    # After the options are known to be right: these imports take seconds.
    from paring.cli.console import calm_libraries
    from paring.cli.run.attempt import Stopped
    from paring.cli.run.fit import fit
    from paring.cli.run.hub import push

    calm_libraries()
    outcome = fit(options, method, command_line(options, method))
    if isinstance(outcome, Stopped):
        return outcome.status
    summarise(outcome)
    if options.output.push_to_hub:
        push(outcome.folder / "adapter", options.output.hub_model_id or outcome.folder.resolve().name, options.output.hub_private_repo)
    return 0


def _asked(argv: Sequence[str]) -> tuple[str, str | None]:
    default = next(default_of(item) for item in dataclasses.fields(AdapterOptions) if item.name == "method")
    # Who gives a budget and no method wants what keeps to it.
    return peek(argv, "method") or (BUDGETED if peek(argv, "budget") else default), peek(argv, "init_adapter")


def command_line(options: TrainOptions, method: Method) -> str:
    """The command that repeats the run: every flag that differs from its default, and all settings of the method."""
    words = ["paring", "train"]
    for group in dataclasses.fields(TrainOptions):
        part = vars(options)[group.name]
        for item in dataclasses.fields(part):
            value = vars(part)[item.name]
            if item.name not in NOT_REPEATED and value != default_of(item):
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
    lines["ranks"] = f"{record.live_ranks} of {record.start_ranks} left ({record.live_ranks / max(record.start_ranks, 1):.0%})"
    lines["adapter parameters"] = f"{record.parameters:,} (plain LoRA: {record.start_parameters:,})"
    lines["training time"] = f"{record.seconds:.0f} s"
    lines["adapter"] = str(outcome.folder / "adapter")
    lines["report"] = str(outcome.folder / "report.html")
    for name, value in lines.items():
        print(f"{name:<20}{value}")


COMMAND = Command(name="train", summary="fine-tune a model and let each module find its rank", fill=fill, run=run)
