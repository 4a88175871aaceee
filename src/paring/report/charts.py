"""What the charts of a report show: curves over the steps of one run or of several, and the frontier of a path over its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from paring.core.records import Point, RunRecord
from paring.report.series import BOOKKEEPING, Series, keys, merged, series
from paring.report.words import metric_name, sentence_case

MOST_CHARTS = 24

_TITLES = {
    "live_parameters": "Live adapter parameters",
    "lambda": "Penalty weight λ",
    "loss": "Loss",
    "live_ranks": "Live ranks",
    "sparsity": "Share of dead ranks",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
}
_FROM_ZERO = frozenset({"live_parameters", "lambda", "live_ranks", "sparsity", "learning_rate"})


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What one chart shows.

    Attributes:
        title: its heading.
        curves: one or more.
        from_zero: the vertical axis starts at 0.
        start: a level to compare with, drawn as a thin line.
        level: what that level is called.
        across: what the horizontal axis shows; parameters are spread by their logarithm.
    """

    title: str
    curves: tuple[Series, ...]
    from_zero: bool = False
    start: float | None = None
    level: str = "at the start"
    across: Literal["step", "parameters"] = "step"


def charts(record: RunRecord) -> list[Chart]:
    """The charts of one run; training and evaluation loss share one."""
    history = merged(record.history)
    logged = keys(history)
    result = []
    for key in _drawn(logged):
        if key == "eval_loss" and "loss" in logged:
            continue
        if key == "loss" and "eval_loss" in logged:
            pair = (series(history, "loss", label="training"), series(history, "eval_loss", label="evaluation", style=1))
            result.append(Chart(title="Loss", curves=pair))
            continue
        start = float(record.start_parameters) if key == "live_parameters" else None
        result.append(_chart(key, (series(history, key, label=_title(key)),), start))
    return result[:MOST_CHARTS]


def frontier(record: RunRecord) -> Chart | None:
    """The metric against the parameters, stage by stage; ``None`` for a run that had none."""
    if record.path is None:
        return None
    # Smallest first; of stages of one size the later.
    sizes = {stage.parameters: stage for stage in record.path.stages if stage.parameters}
    stages = [sizes[size] for size in sorted(sizes)]
    if not stages:
        return None
    steps = tuple(stage.parameters for stage in stages)
    held_out = Series(label="held-out rows", steps=steps, values=tuple(stage.held_out for stage in stages), style=1)
    train = Series(label="training rows", steps=steps, values=tuple(stage.train for stage in stages))
    title = f"{sentence_case(metric_name(record.path.metric))} against parameters"
    floor = record.path.floor
    return Chart(title=title, curves=(held_out, train), start=floor, level="lowest inside the tolerance", across="parameters")


def charts_of_many(records: Sequence[RunRecord], labels: Sequence[str]) -> list[Chart]:
    """The charts of several runs, one curve a run, for every key that any of them logged."""
    histories = [merged(record.history) for record in records]
    everything: list[Point] = [point for history in histories for point in history]
    result = []
    for key in _drawn(keys(everything)):
        curves = (
            series(history, key, label=label, style=style) for style, (history, label) in enumerate(zip(histories, labels, strict=True))
        )
        result.append(_chart(key, tuple(curve for curve in curves if curve.steps), None))
    return result[:MOST_CHARTS]


def _drawn(logged: Sequence[str]) -> list[str]:
    # The share of dead ranks is the mirror of the live ranks.
    return [key for key in logged if key not in BOOKKEEPING and not (key == "sparsity" and "live_ranks" in logged)]


def _title(key: str) -> str:
    if key.startswith("eval_"):
        return f"{sentence_case(metric_name(key))}, evaluation"
    return _TITLES.get(key, sentence_case(metric_name(key)))


def _chart(key: str, curves: tuple[Series, ...], start: float | None) -> Chart:
    return Chart(title=_title(key), curves=curves, from_zero=key in _FROM_ZERO, start=start)
