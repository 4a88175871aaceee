"""``paring merge``: one adapter out of several, without their base model and without training."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paring.cli.flags import listed, option, simple
from paring.cli.run.options import DType, Layout
from paring.core.errors import SettingError, near

if TYPE_CHECKING:
    from paring.core.adapter import Adapter
    from paring.merge import Rule

SETTINGS = ("rank", "weights", "density", "seed")
"""The flags that are settings of the rule; its others are written with its name."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring merge``."""

    adapters: list[str] = option("folders or hub ids of at least two LoRAs, of paring's or not", positional=True, many=True)
    output_dir: str = option("folder to write; it must not exist, or hold an earlier export and --overwrite be given")
    rule: str = option(
        "concatenation, svd, linear, ties, dare, magnitude or lego; with other settings as in Python: 'Lego(rank=8, balance=True)'",
        default="svd",
    )
    rank: int | None = option("ranks of every merged module; without it the largest that an adapter has in it", default=None)
    weights: str | list[float] | None = option("one for each adapter, as 0.5,0.3,0.2; without them the rule's equal ones", default=None)
    density: float | None = option("of ties, dare and magnitude: the share of the entries that is kept", default=None)
    seed: int | None = option("of dare and lego", default=None)
    heads_of: str | None = option("the adapter, as it is given, whose heads are kept where several differ", default=None)
    model_name_or_path: str | None = option("what to call the base model, where the adapters call it differently", default=None)
    layout: Layout = option("ragged ranks, or zero-padded to one rank for engines that need it", default="compact")
    export_dtype: DType = option("precision of the tensors; auto keeps the adapters'", default="auto")
    overwrite: bool = option("replace an earlier export", default=False)


def run(options: Options) -> int:
    """Merge."""
    import paring
    from paring.cli.console import calm_libraries, say
    from paring.cli.run.output import check_exported, check_target
    from paring.cli.run.rewrite import rewrite
    from paring.merge import merge

    calm_libraries()
    check_target(Path(options.output_dir), "export", overwrite=options.overwrite)
    chosen, heads_of = rule(options), _heads_of(options)
    for source in options.adapters:
        check_exported(source)
    adapters = [paring.read(source) for source in options.adapters]
    merged = merge(adapters, chosen, heads_of=heads_of, base_model=options.model_name_or_path)
    owner = heads_of if heads_of is not None else next((place for place, one in enumerate(adapters) if one.heads and merged.heads), None)
    rewrite(
        merged,
        options.output_dir,
        layout=options.layout,
        export_dtype=options.export_dtype,
        overwrite=options.overwrite,
        extra_files=_companions(options.adapters if owner is None else [options.adapters[owner]]),
        command=["paring", "merge", *options.adapters, "--output_dir", options.output_dir, *_asked(options)],
    )
    for line in table([*zip(options.adapters, adapters, strict=True), (options.output_dir, merged)]):
        say(line)
    say(_distance(adapters, merged, chosen))
    if not merged.heads and any(one.heads for one in adapters):
        say("the heads differ, so none is kept: load each task's own, or keep one adapter's with --heads_of ADAPTER")
    print(options.output_dir)
    return 0


def rule(options: Options) -> Rule:
    """The rule with its settings.

    Raises:
        SettingError: there is no such rule, it has no such setting, or a setting is given twice.
    """
    from paring.cli.run.parts import part_of
    from paring.merge import Rule

    data = part_of("rule", options.rule, Rule)
    known = [item.name for item in dataclasses.fields(Rule.members[data["name"]])]  # type: ignore[arg-type]
    for name in SETTINGS:
        value = vars(options)[name]
        if value is None:
            continue
        if name not in known:
            raise SettingError(f"--{name} is no setting of {data['name']}, which has {', '.join(known)}; leave it out.")
        if name in data:
            raise SettingError(f"--{name} {value} and --rule {options.rule!r} both say {name}; leave one of them out.")
        data[name] = _numbers(value) if name == "weights" else value
    return Rule.decode(data)


def _numbers(given: str | Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in (listed(given) or () if isinstance(given, str) else given))
    except ValueError as error:
        raise SettingError(f"--weights {given!r}: give numbers separated by commas, one for each adapter, such as 0.5,0.3,0.2.") from error


def _heads_of(options: Options) -> int | None:
    """The place of the adapter whose heads are asked for."""
    if options.heads_of is None:
        return None
    if options.heads_of not in options.adapters:
        raise SettingError(
            f"--heads_of {options.heads_of!r} is none of the adapters {', '.join(options.adapters)}."
            f"{near(options.heads_of, options.adapters)} Give one of them as it is given."
        )
    return options.adapters.index(options.heads_of)


def _companions(sources: Sequence[str]) -> dict[str, bytes]:
    """The files beside the adapters that are the same in all: a tokenizer, but not the labels of different tasks."""
    from paring.exchange.companions import companions

    found = [companions(source) for source in sources]
    return {name: data for name, data in found[0].items() if all(one.get(name) == data for one in found)}


def _asked(options: Options) -> Iterator[str]:
    """The flags that the result depends on."""
    for name in ("rule", *SETTINGS, "heads_of", "model_name_or_path"):
        value: Any = vars(options)[name]
        if value is not None:
            yield from (f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value))


def table(adapters: Sequence[tuple[str, Adapter]]) -> list[str]:
    """A line for each adapter: parameters, ranks, modules."""
    rows: list[tuple[str, ...]] = [("adapter", "parameters", "ranks", "largest", "modules", "in heads")]
    for name, one in adapters:
        live = sum(update.parameters > 0 for update in one.updates.values())
        counts = (one.parameters, sum(one.ranks.values()), one.max_rank, live, one.head_parameters)
        rows.append((name, *(f"{count:,}" for count in counts)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    ]


def _distance(adapters: Sequence[Adapter], merged: Adapter, chosen: Rule) -> str:
    """How far the result is from the weighted sum, on random inputs."""
    import torch

    from paring.exchange.compare import differences
    from paring.merge import weighted_sum

    shares = chosen.shares(len(adapters))
    total = weighted_sum(adapters, chosen, base_model=merged.metadata.base_model)
    found = differences(merged, total, torch.Generator().manual_seed(0))
    worst = max(found, key=found.__getitem__)
    what = "the mean of the updates" if shares == (1 / len(adapters),) * len(adapters) else "the weighted sum of the updates"
    return f"relative difference from {what}: {statistics.median(found.values()):.3f} (median), {found[worst]:.3f} ({worst})"


COMMAND = simple("merge", "make one adapter out of several", Options, run)
