"""The tables of the cut to a budget, on the site's pages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tools.markdown import points, rows


def planted(result: Mapping[str, Any]) -> str:
    """A row for each contestant, budget and rate; then the cut beside its peers, where there are any."""
    several = len({row["rate"] for row in result["rows"]}) > 1
    made = rows(
        ("budget", "contestant", *(["rate"] if several else []), "of the planted size", "error", "from", "to", "rank error", "runs"),
        (
            (
                _size(row["budget"], row.get("share")) or "none",
                row["contestant"],
                *(["" if row["rate"] is None else f"{row['rate']:g}"] if several else []),
                f"{row['size']:.2f}",
                f"{row['error']:.4f}",
                f"{row['error_low']:.4f}",
                f"{row['error_high']:.4f}",
                f"{row['rank_error']:.0%}",
                str(row["runs"]),
            )
            for row in result["rows"]
        ),
    )
    if not result.get("pairs"):
        return made
    body = (
        (
            row["ours"],
            _size(row["budget"], row["share"]),
            " ".join(filter(None, (row["peer"], _size(row["peer_budget"], row["peer_share"])))),
            row["among"],
            f"{row['times_as_large']:.2f}",
            f"{row['ratio']:.2f}",
            f"[{row['low']:.2f}, {row['high']:.2f}]",
        )
        for row in result["pairs"]
    )
    head = ("the cut", "budget", "the best peer that is not smaller", "of those", "size / size", "error / error", "interval of 95%")
    return f"{made}\n\n{rows(head, body)}"


def budgets(result: Mapping[str, Any]) -> str:
    """A row for each model and budget, over starting ranks, rates and seeds."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["model"], row["share"]), []).append(row)
    made = rows(
        (
            "model",
            "budget",
            "runs",
            "parameters / budget, from",
            "to",
            "reached at",
            "metric",
            "before the last cut",
            "after it",
            "at the end",
        ),
        (
            (
                model,
                _share(share),
                str(len(group)),
                f"{min(row['of_budget'] for row in group):.3f}",
                f"{max(row['of_budget'] for row in group):.3f}",
                f"{max(row['reached'] for row in group):.0%}",
                result["metric"][model],
                *(f"{statistics.fmean(row[name] for row in group):.4f}" for name in ("before", "at", "after")),
            )
            for (model, share), group in groups.items()
        ),
    )
    return f"{made}\n\n{result['inside']} of {len(result['rows'])} runs end in [0.95, 1.00] of the budget."


def path(result: Mapping[str, Any]) -> str:
    """A row for each task and contestant."""
    return rows(
        ("task", "contestant", "parameters", "from", "to", "dev accuracy", "paired difference, points", "time / LoRA r 8", "from", "to"),
        (
            (
                task,
                row["contestant"],
                f"{statistics.fmean(row['parameters']):,.0f}",
                f"{min(row['parameters']):,}",
                f"{max(row['parameters']):,}",
                f"{100 * row['mean']:.2f} ± {100 * (statistics.stdev(row['dev']) if len(row['dev']) > 1 else 0.0):.2f}",
                f"{row['paired_difference_points']:+.2f}",
                f"{statistics.fmean(row['cost']):.2f}",
                f"{min(row['cost']):.2f}",
                f"{max(row['cost']):.2f}",
            )
            for task, table in result["tables"].items()
            for row in table
        ),
    )


def rivals(result: Mapping[str, Any]) -> str:
    """A row for each task, contestant and size; then what the sizes come to."""
    body = (
        (
            task,
            row["contestant"],
            f"{row['parameters']:,.0f}",
            f"{row['rate']:g}",
            points(row["dev"]),
            f"{row['seconds']:.0f}",
        )
        for task, found in result["tables"].items()
        for row in found
    )
    duels = (
        (
            row["ours"],
            _share(row["share"]),
            f"{row['difference']:+.2f}",
            f"[{row['low']:+.2f}, {row['high']:+.2f}]",
            "; ".join(f"{task}: {name}" for task, name in row["rivals"].items()),
        )
        for row in result["duels"]
    )
    table = rows(("task", "contestant", "parameters", "rate", "dev accuracy [least, most]", "seconds"), body)
    versus = rows(("the cut", "size, of LoRA r 8", "minus rival, points", "interval of 95%", "the rival that the tenth chose"), duels)
    return f"{table}\n\n{versus}"


def tried(result: Mapping[str, Any]) -> str:
    """A row for each variant of the cut, over seeds: each size of each task."""
    places = list(dict.fromkeys((row["task"], row["share"]) for row in result["rows"]))
    groups: dict[str, dict[tuple[str, float], Sequence[float]]] = {}
    for row in result["rows"]:
        groups.setdefault(row["variant"], {})[row["task"], row["share"]] = row["differences"]
    pairs = {name: [value for values in found.values() for value in values] for name, found in groups.items() if name != result["plain"]}
    return rows(
        ("variant", *(f"{task}, {_share(share)} of LoRA r 8" for task, share in places), "all", "better in"),
        (
            (
                name,
                *(points(groups[name][place], 1.0, "+") if place in groups[name] else "" for place in places),
                f"{statistics.fmean(pairs[name]):+.2f}",
                f"{sum(value > 0 for value in pairs[name])} of {len(pairs[name])}",
            )
            for name in sorted(pairs, key=lambda name: -statistics.fmean(pairs[name]))
        ),
    )


def _share(share: float) -> str:
    return f"1/{round(1 / share)}"


def _size(budget: float | None, share: float | None) -> str:
    if share is not None:
        return f"{_share(share)} of LoRA r 8"
    return "" if budget is None else f"{budget:g}"
