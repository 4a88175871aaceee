"""``paring inspect``: the ranks that an adapter has, by layer and module, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paring.cli.flags import option, simple
from paring.core.coding import is_whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from paring.core.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring inspect``."""

    adapter: str = option("folder or hub id of an adapter (any PEFT LoRA), or a checkpoint-* folder", positional=True)
    json: bool = option("print JSON, module by module", default=False)
    trust_remote_code: bool = option("of a checkpoint, run model code that comes with the base's weights", default=False)


def run(options: Options) -> int:
    """Print ranks and sizes."""
    import paring
    from paring.cli.run.output import check_exported, is_checkpoint

    folder = Path(options.adapter)
    if is_checkpoint(folder):
        from paring.cli.console import calm_libraries
        from paring.cli.run.loaded import load_checkpoint

        calm_libraries()
        adapter = paring.snapshot(load_checkpoint(folder, trust_remote_code=options.trust_remote_code)[0])
    else:
        check_exported(options.adapter)
        adapter = paring.read(options.adapter)
    costs = sizes(adapter)
    if options.json:
        print(json.dumps({**costs, "base_model": adapter.metadata.base_model, "modules": _modules(adapter)}, indent=2))
        return 0
    from rich.console import Console

    method = (adapter.metadata.method or {}).get("name", "sparse entries" if adapter.entries else "another tool's LoRA")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{options.adapter}: {method} on {adapter.metadata.base_model or 'an unnamed base model'}", markup=False)
    stacks, outside = by_layer(adapter)
    for before, rows in stacks.items():
        if len(stacks) > 1:
            console.print(before, markup=False)
        _print_ranks(console, rows)
    for path, rank in outside.items():
        console.print(f"{path}: rank {rank}", markup=False)
    for line in described(costs):
        console.print(line, markup=False)
    return 0


def sizes(adapter: Adapter) -> dict[str, int]:
    """What an adapter costs, and what plain LoRA would at its largest rank and at the rank that training started with."""
    widths = sum(update.in_features + update.out_features for update in adapter.updates.values())
    started = (adapter.metadata.method or {}).get("rank")
    found = {
        "modules": len(adapter.updates),
        "live_modules": sum(rank > 0 for rank in adapter.ranks.values()),
        "live_ranks": sum(adapter.ranks.values()),
        "max_rank": adapter.max_rank,
        "parameters": adapter.parameters,
        "entries": sum(entries.parameters for entries in adapter.entries.values()),
        "head_parameters": adapter.head_parameters,
        "lora_parameters_at_max_rank": adapter.max_rank * widths,
    }
    if is_whole(started, 1, 2**31 - 1):
        found |= {"start_rank": started, "lora_parameters_at_start_rank": started * widths}
    return found


def described(costs: dict[str, int]) -> list[str]:
    """The sizes in words; megabytes are those of float32."""
    if costs["entries"]:
        lines = [f"sparse entries in {costs['modules']} modules", f"adapter     {_size(costs['parameters'])}"]
        return [*lines, *([f"heads       {_size(costs['head_parameters'])}"] if costs["head_parameters"] else [])]
    lines = [
        f"{costs['live_ranks']} ranks in {costs['live_modules']} of {costs['modules']} modules, the largest {costs['max_rank']}",
        f"adapter     {_size(costs['parameters'])}",
    ]
    if "start_rank" in costs:
        lines.append(f"LoRA r={costs['start_rank']:<4} {_size(costs['lora_parameters_at_start_rank'])}  (the rank at the start)")
    if costs["max_rank"] != costs.get("start_rank"):
        lines.append(f"LoRA r={costs['max_rank']:<4} {_size(costs['lora_parameters_at_max_rank'])}  (the largest rank left)")
    if costs["head_parameters"]:
        lines.append(f"heads       {_size(costs['head_parameters'])}")
    return lines


def _size(parameters: int) -> str:
    return f"{parameters:>12,} parameters {4 * parameters / 1e6:>9.2f} MB"


def _modules(adapter: Adapter) -> list[dict[str, Any]]:
    return [
        {
            "path": path,
            "rank": update.live_rank,
            "in_features": update.in_features,
            "out_features": update.out_features,
            "parameters": update.parameters,
        }
        for path, update in adapter.updates.items()
    ]


def by_layer(adapter: Adapter) -> tuple[dict[str, dict[int, dict[str, int]]], dict[str, int]]:
    """Ranks by stack of layers, layer and module in the layer, and those of the modules that lie in no layer."""
    from paring.exchange.layout import split_layer

    stacks: dict[str, dict[int, dict[str, int]]] = {}
    outside: dict[str, int] = {}
    for path, rank in adapter.ranks.items():
        before, index, after = split_layer(path)
        if index is None:
            outside[path] = rank
        else:
            stacks.setdefault(before, {}).setdefault(index, {})[after] = rank
    return stacks, outside


def shortest(names: Sequence[str]) -> dict[str, str]:
    """Each dotted name from as far back as it takes to tell it from the others.

    >>> list(shortest(["self_attn.q_proj", "output.dense", "attention.output.dense"]).values())
    ['q_proj', 'output.dense', 'attention.output.dense']
    """
    short = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        alone = (end for end in ends if not any(other != name and f".{other}".endswith(f".{end}") for other in names))
        short[name] = next(alone, name)
    return short


def _print_ranks(console: Console, rows: dict[int, dict[str, int]]) -> None:
    """Layers as rows and modules as columns. A heading breaks at dots only; where the screen is too narrow, columns have numbers."""
    from rich.console import Console

    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    headings = {name: short.replace(".", ".\n") for name, short in shortest(names).items()}
    table = _table(rows, headings)
    wide = console.options.update(max_width=10_000)
    if console.measure(table, options=wide).maximum > console.width:
        for number, name in enumerate(names, start=1):
            console.print(f"({number}) {name}", markup=False)
        table = _table(rows, {name: f"({number})" for number, name in enumerate(names, start=1)})
    # On a screen narrower than even that, a line goes on in the next one; rich would cut headings.
    Console(highlight=False, width=max(console.width, console.measure(table, options=wide).maximum)).print(table)


def _table(rows: dict[int, dict[str, int]], headings: dict[str, str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    right = [Column(heading, justify="right", no_wrap=True) for heading in (*headings.values(), "sum")]
    table = Table(Column("layer", no_wrap=True), *right, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, row in rows.items():
        table.add_row(str(index), *(str(row.get(name, "")) for name in headings), str(sum(row.values())))
    return table


COMMAND = simple("inspect", "show an adapter's ranks by layer and module, and what they cost", Options, run)
