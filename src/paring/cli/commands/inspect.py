"""``paring inspect``: the ranks that an adapter has, by layer and module, and what they cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paring.cli.flags import option, simple

if TYPE_CHECKING:
    from rich.table import Table

    from paring.core.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring inspect``."""

    adapter: str = option("folder or hub id of an adapter (any PEFT LoRA), or a checkpoint-* folder", positional=True)
    json: bool = option("print JSON, module by module", default=False)


def run(options: Options) -> int:
    """Print ranks and sizes."""
    import paring
    from paring.cli.run.output import is_checkpoint

    folder = Path(options.adapter)
    if is_checkpoint(folder):
        from paring.cli.console import calm_libraries
        from paring.cli.run.loaded import load_checkpoint

        calm_libraries()
        adapter = paring.snapshot(load_checkpoint(folder)[0])
    else:
        adapter = paring.read(options.adapter)
    costs = sizes(adapter)
    if options.json:
        print(json.dumps({**costs, "base_model": adapter.metadata.base_model, "modules": _modules(adapter)}, indent=2))
        return 0
    from rich.console import Console

    method = (adapter.metadata.method or {}).get("name", "another tool's LoRA")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{options.adapter}: {method} on {adapter.metadata.base_model or 'an unnamed base model'}", markup=False)
    console.print(_ranks(adapter))
    for line in described(costs):
        console.print(line, markup=False)
    return 0


def sizes(adapter: Adapter) -> dict[str, int]:
    """What an adapter costs, and what plain LoRA would at its largest rank and at the rank that training started with."""
    widths = sum(factors.in_features + factors.out_features for factors in adapter.modules.values())
    started = (adapter.metadata.method or {}).get("rank")
    found = {
        "modules": len(adapter.modules),
        "live_modules": sum(rank > 0 for rank in adapter.ranks.values()),
        "live_ranks": sum(adapter.ranks.values()),
        "max_rank": adapter.max_rank,
        "parameters": adapter.parameters,
        "head_parameters": adapter.head_parameters,
        "lora_parameters_at_max_rank": adapter.max_rank * widths,
    }
    if isinstance(started, int):
        found |= {"start_rank": started, "lora_parameters_at_start_rank": started * widths}
    return found


def described(costs: dict[str, int]) -> list[str]:
    """The sizes in words; megabytes are those of float32."""
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
            "rank": factors.live_rank,
            "in_features": factors.in_features,
            "out_features": factors.out_features,
            "parameters": factors.parameters,
        }
        for path, factors in adapter.modules.items()
    ]


def _ranks(adapter: Adapter) -> Table:
    """Ranks by layer (rows) and module in the layer (columns); what lies in no layer comes last, a row each."""
    from rich.table import Column, Table

    from paring.exchange.layout import split_layer

    cells: dict[tuple[str, int], dict[str, int]] = {}
    outside: dict[str, int] = {}
    for path, rank in adapter.ranks.items():
        before, index, after = split_layer(path)
        if index is None:
            outside[path] = rank
        else:
            cells.setdefault((before, index), {})[after] = rank
    names = list(dict.fromkeys(name for row in cells.values() for name in row))
    several = len({before for before, _ in cells}) > 1
    right = [Column(name, justify="right", overflow="fold") for name in (*names, "sum")]
    table = Table(Column("layer", overflow="fold"), *right)
    for (before, index), row in cells.items():
        label = f"{before}.{index}" if several else str(index)
        table.add_row(label, *(str(row.get(name, "")) for name in names), str(sum(row.values())))
    for path, rank in outside.items():
        table.add_row(path, *[""] * len(names), str(rank))
    return table


COMMAND = simple("inspect", "show an adapter's ranks by layer and module, and what they cost", Options, run)
