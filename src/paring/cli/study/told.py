"""What is said of a study on the terminal: its plan, its results, a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from paring.cli.console import say
from paring.cli.study.work import Prober
from paring.core.errors import SettingError
from paring.study.conduct import estimated, seconds_of
from paring.study.plan import Estimate, Study
from paring.study.records import Entry, Findings
from paring.study.statistics import FEW, Interval, compare
from paring.study.tables import digits_of

if TYPE_CHECKING:
    from paring.cli.study.build import Built
    from paring.study.store import Store


def runs_told(study: Study, more: str = "") -> None:
    """Say how many runs the study takes."""
    trials = sum(study.search.count(cell.space) for cell in study.cells)
    seeds = f"{len(study.seeds)} seed{'' if len(study.seeds) == 1 else 's'}"
    say(f"study: at most {study.runs} runs ({trials} to choose settings, {study.runs - trials} with {seeds}){more}")


def plan_told(study: Study, store: Store, built: Built, most: float | None) -> dict[str, Estimate]:
    """Time a few steps of every cell, and say how many runs and hours the study takes.

    Raises:
        SettingError: a contestant cannot be trained on a task, or it takes more hours than it may.
    """
    say(f"study: {len(study.cells)} contestants on tasks; timing a few steps of each")
    known: dict[str, Estimate] = {}
    prober = Prober(definitions=built.definitions, metrics=study.metrics)
    for name, found in estimated(study, store, prober, threads=built.threads).items():
        if not isinstance(found, Estimate):
            raise SettingError(f"{name}: {found.error}")
        known[name] = found
    hours = seconds_of(study, known) / 3600
    cores = "core" if built.threads == 1 else "cores"
    runs_told(study, f", about {hours:.1f} hours of {built.threads} {cores}, less what has run before and what is cut short")
    if most is not None and hours > most:
        raise SettingError(f"The study takes about {hours:.1f} hours, more than --max_hours {most:g}; shrink it, or allow more.")
    return known


def results_told(findings: Findings) -> None:
    """A table for each task: no name is marked as the best, since a mean alone says nothing of that."""
    console = Console(stderr=True, highlight=False)
    for task, metric in findings.metrics.items():
        table = Table("", metric.name, "seeds", "parameters", "chosen", title=task, title_justify="left")
        for name in findings.names:
            entry = findings.of(name).get(task)
            if entry is not None:
                table.add_row(
                    name, _spread(entry, metric.points, digits_of(findings, task)), _seeds(entry), _mean(entry.parameters), _chosen(entry)
                )
        console.print(table)


def _spread(entry: Entry, points: float, digits: int) -> str:
    scores = [points * score for score in entry.scores if score is not None]
    if not scores:
        return "no run came to its end"
    return f"{fmean(scores):.{digits}f}" + (f" ({min(scores):.{digits}f} to {max(scores):.{digits}f})" if len(scores) > 1 else "")


def _seeds(entry: Entry) -> str:
    finished = sum(score is not None for score in entry.scores)
    return str(finished) if finished == len(entry.scores) else f"{finished} of {len(entry.scores)}"


def _mean(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):,.0f}" if known else ""


def _chosen(entry: Entry) -> str:
    if entry.chosen is None:
        return "nothing: every trial failed"
    return ", ".join(f"{name} {value:g}{' (at the edge)' if name in entry.edges else ''}" for name, value in entry.chosen.items())


def comparison_told(findings: Findings, first: str, second: str) -> None:
    """Two contestants, seed by seed."""
    found = compare(findings, first, second)
    table = Table("task", "difference", "95% interval", "pairs")
    rows = {**found.tasks, **({"all tasks": found.overall} if found.overall is not None else {})}
    decimals = {task: digits_of(findings, task) for task in findings.metrics}
    for task, interval in rows.items():
        digits = decimals.get(task, max(decimals.values()))
        table.add_row(task, f"{interval.mean:+.{digits}f}", _between(interval, digits), str(interval.count))
    console = Console(highlight=False)
    console.print(f"{first} minus {second}, in points, paired by seed; above zero {first} is better")
    console.print(table)
    for said in found.missing:
        console.print(f"left out: {said}")
    if found.missing:
        console.print("so there is no mean over tasks and no test of it: what came to its end is no fair sample of either")
    if found.p is not None:
        console.print(f"sign-flip test that there is no difference: p = {found.p:.3g}")
    if len(findings.seeds) < FEW:
        console.print(
            f"Few seeds, {len(findings.seeds)}: intervals rest on differences being about normal, which so few can't show, and the "
            f"sign-flip test, which does not, can't have p below {2.0 ** (1 - len(findings.seeds)):.2g} on one task."
        )


def _between(interval: Interval, digits: int) -> str:
    return "none" if interval.low is None or interval.high is None else f"{interval.low:+.{digits}f} to {interval.high:+.{digits}f}"
