"""Tables that the site's pages ask for by name, made while it is built (see `hooks` in mkdocs.yml), so that they are never stale.

<!-- table: exemptions -->       the contract tests' exemptions
<!-- table: properties -->       the contract tests, with the models that each is run on
<!-- table: licences -->         what paring depends on, and under which licences
<!-- table: environments -->     what the tests have run with
<!-- table: trust -->            what the trust matrix was recorded with
<!-- table: trust-GRID -->       a grid of the trust matrix
<!-- table: study-NAME-PART -->  a part of benchmarks/results/studies/NAME/findings.json
<!-- table: NAME -->             benchmarks/results/NAME.json
"""

from __future__ import annotations

import importlib
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools import cut_tables, dependencies, matrix, studies, trust
from tools.markdown import missing, points, rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

_ASKED = re.compile(r"<!-- table: (?P<name>[\w-]+) -->")


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Put the tables in."""
    return _ASKED.sub(lambda match: table(match["name"]), markdown)


def table(name: str, results: Path = RESULTS) -> str:
    """One table in Markdown; for a benchmark that has not been run, a line that says so.

    Raises:
        LookupError: there is no table of that name.
    """
    if name in CONTRACT:
        return CONTRACT[name]()
    if name.startswith(TRUST):
        return trust.matrix(name.removeprefix(TRUST))
    if name.startswith(STUDY):
        return studies.table(name.removeprefix(STUDY))
    if name not in BENCHMARKS:
        raise LookupError(f"There is no table {name!r}; there are {', '.join([*CONTRACT, *BENCHMARKS])}.")
    path = results / f"{name}.json"
    if not path.exists():
        return missing(path, results.parent.parent)
    result = json.loads(path.read_text(encoding="utf-8"))
    return f"{BENCHMARKS[name](result)}\n\n{_measured(result)}"


def exemptions() -> str:
    """Test, method, model and reason."""
    found = _contract().exemption_rows()
    return rows(("test", "method", "model", "reason"), ((_said(test), *rest) for test, *rest in found))


def properties() -> str:
    """Every contract test and the models that it is run on."""
    found: list[tuple[str, tuple[str, ...]]] = _contract().property_rows()
    everything = max((models for _, models in found), key=len)
    listed = "\n".join(f"- {model}" for model in everything)
    body = ((_said(test), "all" if models == everything else "; ".join(models)) for test, models in found)
    return f"The models:\n\n{listed}\n\n{rows(('property', 'on'), body)}"


def accuracy(result: Mapping[str, Any]) -> str:
    """A row for each task and method, LoRA of rank 8 being what the others are compared with."""
    return rows(
        ("task", "method", "learning rate", "accuracy", "parameters", "of LoRA r 8", "paired difference, points"),
        (
            (
                task,
                method,
                f"{row['rate']:g}",
                f"{100 * row['mean']:.2f} ± {100 * row['sd']:.2f}",
                f"{row['parameters']:,.0f}",
                f"{row['share']:.0%}",
                f"{row['paired_difference_points']:+.2f}",
            )
            for task, methods in result["tables"].items()
            for method, row in methods.items()
        ),
    )


def defaults(result: Mapping[str, Any]) -> str:
    """A row for each run, and how many end where they should."""
    runs = result["runs"]
    said = f"{result['inside']} of {len(runs)} runs end between 20% and 80% of their ranks, {result['at_the_ends']} at 0% or 100%."
    body = (
        (row["task"], f"{row['rate']:.1e}", str(row["steps"]), f"{row['live']:.0%}", f"{100 * row['dev_accuracy']:.2f}") for row in runs
    )
    return f"{said}\n\n{rows(('task', 'main rate', 'steps', 'live ranks', 'accuracy'), body)}"


def revive(result: Mapping[str, Any]) -> str:
    """A row for each rule."""
    return rows(
        ("dead gates come back", "accuracy", "live ranks", "paired difference, points"),
        (
            (name, f"{100 * row['mean']:.2f} ± {100 * row['sd']:.2f}", f"{row['live']:.1%}", f"{row['paired_difference_points']:+.2f}")
            for name, row in result["rules"].items()
        ),
    )


def step_time(result: Mapping[str, Any]) -> str:
    """For each model and precision: every contestant's step over the limit by rank, then the comparisons of two."""
    parts = []
    for model, dtype in dict.fromkeys((cell["model"], cell["dtype"]) for cell in result["cells"]):
        cells = sorted(
            (cell for cell in result["cells"] if (cell["model"], cell["dtype"]) == (model, dtype)), key=lambda cell: int(cell["rank"])
        )
        count, width = cells[0]["tokens"]
        head = [f"{model}, {count} x {width} tokens, {dtype}", *(f"r {cell['rank']}" for cell in cells)]
        body = [[name, *(_interval(cell["over_limit"][name]) for cell in cells)] for name in cells[0]["over_limit"]]
        for kind, said in (("step", "step: "), ("overhead", "overhead: ")):
            body += [[said + name, *(_interval(cell[kind][name]) for cell in cells)] for name in cells[0][kind]]
        parts.append(rows(head, body))
    return "\n\n".join(parts)


def memory(result: Mapping[str, Any]) -> str:
    """A row for each model, precision, rank and contestant."""
    return rows(
        ("model", "precision", "rank", "contestant", "saved, MiB", "peak, MiB", "GFLOPs"),
        (
            (
                cell["model"],
                cell["dtype"],
                str(cell["rank"]),
                name,
                f"{row['saved'] / 2**20:.1f}",
                f"{row['peak'] / 2**20:.1f}",
                f"{row['flops'] / 1e9:.2f}",
            )
            for cell in result["cells"]
            for name, row in cell["contestants"].items()
        ),
    )


def attach(result: Mapping[str, Any]) -> str:
    """Attaching at each number of modules; then what is done with an adapter's file."""
    names = list(next(iter(result["attach"].values())))
    attached = rows(
        ("linear modules", *(f"{name}, ms" for name in names)),
        ([count, *(f"{1e3 * times[name]:.0f}" for name in names)] for count, times in result["attach"].items()),
    )
    size = result["files"].get("bytes")
    if size is None:
        return attached
    seconds = ((name, f"{value:.2f}") for name, value in result["files"].items() if name != "bytes")
    return f"{attached}\n\n{rows((f'{size / 2**20:.0f} MiB', 'seconds'), seconds)}"


def compress(result: Mapping[str, Any]) -> str:
    """A row for each target and type."""
    return rows(
        ("target", "type", "GB", "parameters before", "after", "seconds", "seconds / GB", "peak memory beside it, GB"),
        (
            (
                row["target"],
                row["dtype"],
                f"{row['bytes'] / 1e9:.2f}",
                *(f"{count:,}" for count in row["parameters"]),
                f"{row['seconds']:.1f}",
                f"{row['per_gb']:.1f}",
                f"{row['peak_beside'] / 1e9:.2f}",
            )
            for row in result["rows"]
        ),
    )


def merging(result: Mapping[str, Any]) -> str:
    """A row for each way and kind of start."""

    def scored(values: Sequence[float]) -> str:
        mean = f"{100 * statistics.fmean(values):.1f}"
        return mean if len(values) == 1 else f"{mean} [{100 * min(values):.1f}, {100 * max(values):.1f}]"

    tasks = list(result["steps"])
    body = (
        (
            row["way"],
            row["starts"] or "",
            str(row["rank"] or ""),
            *(scored(row["accuracy"][task]) for task in tasks),
            f"{100 * row['mean']:.1f}",
            f"{row['from_mean']:.2f}" if row["rule"] else "",
        )
        for row in result["rows"]
    )
    steps = ", ".join(f"{task} {count}" for task, count in result["steps"].items())
    sets = ", ".join(f"{count} of {starts} starts" for starts, count in result["sets"].items())
    said = f"Sets of three adapters: {sets}. Steps of 16 rows: {steps}."
    return f"{said}\n\n{rows(('merged by', 'starts', 'rank', *tasks, 'all', 'from the mean'), body)}"


def first_step(result: Mapping[str, Any]) -> str:
    """A row for each implementation."""
    said = f"{result['modules']} modules of MiniLM, trec, rank {result['rank']}, {result['batches']} batches of 16."
    body = (
        (
            name,
            f"{statistics.median(row['missed']):.4f}",
            f"{max(row['missed']):.4f}",
            *(f"{row['start'][factor]:.5f}" for factor in ("1", "1000")),
        )
        for name, row in result["found"].items()
    )
    head = ("LoRA-GA of", "missed, median", "missed, worst", "start / weight", "start / weight, loss x 1000")
    return f"{said}\n\n{rows(head, body)}"


def switching(result: Mapping[str, Any]) -> str:
    """A row for each width, rank and type."""
    names = ("paring, entries", "PEFT, LoRA", "PEFT, SHiRA")
    body = (
        (
            f"{row['width']:,}",
            f"{row['rank']}",
            f"{100 * row['share']:.1f}%",
            row["dtype"],
            *(f"{1e3 * row[name]['into']:.1f} + {1e3 * row[name]['out']:.1f}" for name in names),
            *(
                f"{statistics.median(row[name]['ratio']):.1f} [{row[name]['ratio'][1]:.1f}, {row[name]['ratio'][-2]:.1f}]"
                for name in names[1:]
            ),
        )
        for row in result["rows"]
    )
    heads = (*(f"{name}, ms in + out" for name in names), *(f"{name} / entries [2nd, 2nd last]" for name in names[1:]))
    return f"{result['rows'][0]['modules']} modules.\n\n{rows(('width', 'rank', 'of the weight', 'type', *heads), body)}"


def forgetting(result: Mapping[str, Any]) -> str:
    """A row for each contestant, with the mean over seeds and the extremes."""
    first = result["table"][0]
    known = (
        f"Before: {points(first['forgotten_before'])} on the rows of the classes that are to be forgotten, "
        f"{points(first['remaining_before'])} on all others."
    )
    body = (
        (
            row["contestant"],
            points(row["forgotten_after"]),
            points(row["remaining_after"]),
            points([100 * (after - before) for after, before in zip(row["remaining_after"], row["remaining_before"], strict=True)], 1, "+"),
            f"{', '.join(map(str, row['blocks']))} of {row['of']}",
            f"{statistics.fmean(row['parameters']):,.0f}",
            f"{row['least_norm']:.2g}",
        )
        for row in result["table"]
    )
    head = ("contestant", "forgotten, %", "remaining, %", "change, points", "blocks left", "parameters", "least norm of a block")
    return f"{known}\n\n{rows(head, body)}"


def lisa(result: Mapping[str, Any]) -> str:
    """A row for each way and rate, with the accuracy of what was extracted out of it."""
    ranks = sorted(result["rows"][0]["extracted"], key=int)

    def points(values: Sequence[float]) -> str:
        return f"{100 * statistics.fmean(values):.1f}"

    body = (
        (
            row["way"],
            f"{row['rate']:g}",
            points(row["accuracy"]),
            f"{row['state_bytes'] / 1e6:.1f}",
            *(
                f"{points(row['extracted'][rank]['accuracy'])} ({100 * statistics.fmean(row['extracted'][rank]['kept']):.0f}%)"
                if row["extracted"]
                else ""
                for rank in ranks
            ),
        )
        for row in result["rows"]
    )
    heads = (f"extracted, {'full rank' if rank == ranks[-1] else f'rank {rank}'}" for rank in ranks)
    return rows(("way", "rate", "dev accuracy, %", "optimizer state at most, MB", *heads), body)


TRUST, STUDY = "trust-", "study-"
CONTRACT: Mapping[str, Callable[[], str]] = {
    "exemptions": exemptions,
    "properties": properties,
    "licences": lambda: rows(("package", "versions", "extra", "licence"), dependencies.licences()),
    "trust": trust.versions,
    "environments": lambda: rows(("environment", "Python", *matrix.SHOWN, "tests"), matrix.rows()),
}
BENCHMARKS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "sora-accuracy": accuracy,
    "sora-accuracy-gpu": accuracy,
    "sora-defaults": defaults,
    "sora-revive": revive,
    "step-time": step_time,
    "step-time-minilm": step_time,
    "step-time-gpu": step_time,
    "step-time-gpu-compiled": step_time,
    "step-time-variants": step_time,
    "memory": memory,
    "memory-variants": memory,
    "memory-gpu": memory,
    "attach": attach,
    "planted": cut_tables.planted,
    "planted-knee": cut_tables.planted,
    "planted-peers": cut_tables.planted,
    "budgets": cut_tables.budgets,
    "path": cut_tables.path,
    "compress": compress,
    "first-step": first_step,
    "rivals": cut_tables.rivals,
    "tried": cut_tables.tried,
    "switching": switching,
    "merging": merging,
    "forgetting": forgetting,
    "lisa": lisa,
}


def _contract() -> Any:
    # The tests are no package that type checkers know, and importing them takes seconds.
    return importlib.import_module("tests.contract.exemptions")


def _said(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


def _interval(values: Sequence[float]) -> str:
    middle, low, high = values
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} [{values[1]:.1f}, {values[-2]:.1f}]"


def _measured(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    where = machine["accelerator"] or f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    return f"Measured {result['date']} on {where}; {versions}. Repeated by `{result['command']}`."
