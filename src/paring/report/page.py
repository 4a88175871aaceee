"""The pages: what stands on them and in which order. How it looks is in ``templates/``."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from paring.core.errors import DataError
from paring.core.records import RunRecord, WholeRecord
from paring.report import tables
from paring.report.charts import MOST_CHARTS, charts, charts_of_many, frontier
from paring.report.curves import Drawn, draw
from paring.report.drawing import SERIES
from paring.report.heatmap import HeatMap, heat_map
from paring.report.series import BOOKKEEPING
from paring.report.tables import Table
from paring.report.words import (
    NOTHING,
    as_float,
    brief_count,
    change,
    clean,
    count,
    duration,
    metric_name,
    moment,
    number,
    sentence_case,
    share,
    size,
)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One of the numbers on top.

    Attributes:
        label: what it is.
        value: the number.
        detail: a few words below it.
        before: what it was at the start, set small and left of an arrow; may be empty.
        after: set small behind it; may be empty.
    """

    label: str
    value: str
    detail: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as the templates see it.

    Attributes:
        key: unique on the page; prefix of its ids.
        label: its title, numbered where several runs share one.
        record: the run itself.
        method, started, duration: for the line below the title.
        headlines: the numbers on top.
        notices: what a reader must not miss.
        heat: the heat map; ``None`` without modules.
        kinds, modules, sizes: tables that every run has.
        files, metrics: tables; ``None`` if there are none.
        settings, environment: tables of all that is needed to repeat the run.
        blocks: the blocks of a model whose own weights were trained; ``None`` for an adapter.
        stages, frontier: the stages of a path, and their metric against their size; ``None`` for a run that had none.
    """

    key: str
    label: str
    record: RunRecord
    method: str
    started: str
    duration: str
    headlines: tuple[Headline, ...]
    notices: tuple[str, ...]
    heat: HeatMap | None
    kinds: Table
    modules: Table
    sizes: Table
    files: Table | None
    metrics: Table | None
    settings: tuple[Table, ...]
    environment: tuple[Table, ...]
    blocks: Table | None = None
    stages: Table | None = None
    frontier: Drawn | None = None


def render(record: RunRecord) -> str:
    """Write one run as a page of HTML that needs nothing else: no script, no font, no network.

    The same record gives the same bytes. Everything in the record is escaped.
    """
    key = "run"
    drawn = [draw(chart, f"{key}-chart-{index}") for index, chart in enumerate(charts(record), 1)]
    return fill(
        "run.html",
        title=record.title,
        run=_run(record, record.title, key),
        charts=drawn,
        history=tables.history_table(record, f"{key}-history"),
    )


def render_many(records: Sequence[RunRecord], *, title: str = "Runs side by side") -> str:
    """Write several runs as one page: their results in a table, their curves in shared charts, then each by itself.

    Raises:
        DataError: there is no run to show.
    """
    if not records:
        raise DataError("No run to compare: give at least one run record.")
    labels = _labels(records)
    runs = [_run(record, label, f"run-{index}") for index, (record, label) in enumerate(zip(records, labels, strict=True), 1)]
    drawn = [draw(chart, f"chart-{index}") for index, chart in enumerate(charts_of_many(records, labels), 1)]
    histories = [tables.history_table(record, f"{run.key}-history") for record, run in zip(records, runs, strict=True)]
    return fill(
        "many.html",
        title=title,
        runs=runs,
        results=tables.results_table(records, labels, "results"),
        differences=tables.differences_table(records, labels, "differences"),
        charts=drawn,
        histories=histories,
    )


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """Titles, numbered where several runs share one."""
    totals, seen = Counter(record.title for record in records), Counter[str]()
    labels = []
    for record in records:
        seen[record.title] += 1
        labels.append(f"{record.title} ({seen[record.title]})" if totals[record.title] > 1 else record.title)
    return labels


def _run(record: RunRecord, label: str, key: str) -> Run:
    facts = {
        "base model": record.base_model or NOTHING,
        "started": moment(record.started),
        "training time": f"{duration(record.seconds)} ({number(record.seconds)} seconds)" if math.isfinite(record.seconds) else NOTHING,
        "seed": record.seed,
    }
    settings = (
        tables.plain_table(facts, f"{key}-facts", "The run", ("Fact", "Value")),
        tables.plain_table(record.method, f"{key}-method", "Method", ("Setting", "Value")),
        tables.plain_table(record.settings, f"{key}-settings", "Settings", ("Setting", "Value")),
    )
    environment = (
        tables.plain_table(record.versions, f"{key}-versions", "Versions", ("Package", "Version")),
        tables.plain_table(record.machine, f"{key}-machine", "Machine", ("Property", "Value")),
    )
    chart = frontier(record)
    return Run(
        key=key,
        label=label,
        record=record,
        method=str(record.method.get("name", NOTHING)),
        started=moment(record.started),
        duration=duration(record.seconds),
        headlines=_headlines(record),
        notices=_notices(record),
        heat=heat_map(record, f"{key}-heat"),
        kinds=tables.kinds_table(record, f"{key}-kinds"),
        modules=tables.modules_table(record, f"{key}-modules"),
        sizes=tables.sizes_table(record, f"{key}-sizes"),
        files=tables.files_table(record, f"{key}-files") if record.files else None,
        metrics=tables.metrics_table(record, f"{key}-metrics") if record.metrics else None,
        settings=tuple(table for table in settings if table is not None),
        environment=tuple(table for table in environment if table is not None),
        blocks=tables.blocks_table(record, f"{key}-blocks"),
        stages=tables.stages_table(record, f"{key}-stages"),
        frontier=None if chart is None else draw(chart, f"{key}-frontier"),
    )


def _headlines(record: RunRecord) -> tuple[Headline, ...]:
    names = [name for name in tables.metric_keys(record) if name not in BOOKKEEPING]
    others = ", ".join(f"{metric_name(name)} {number(record.metrics[name])}" for name in names[1:3])
    metric = Headline(
        label=sentence_case(metric_name(names[0])) if names else "Metric",
        value=number(record.metrics[names[0]]) if names else NOTHING,
        detail=others if names else "none was recorded",
    )
    empty = sum(module.live_rank == 0 for module in record.modules)
    kept = f"{share(record.live_ranks, record.start_ranks)} kept" + (
        f", {count(empty)} of {count(len(record.modules))} modules empty" if empty else ""
    )
    ranks = Headline(
        label="Live ranks",
        value=count(record.live_ranks),
        after=f"of {count(record.start_ranks)}",
        detail=kept if record.modules else "no module adapted",
    )
    if record.entries:
        places = sum(module.in_features * module.out_features for module in record.modules)
        ranks = Headline(
            label="Sparse entries",
            value=count(record.entries),
            after=f"of {count(places)}",
            detail=f"{share(record.entries, places)} of the weights of {count(len(record.modules))} modules",
        )
    written = tables.adapter_file(record)
    if record.whole is not None:
        return metric, *_whole(record.whole, record.base_parameters), _file("Model file", written, None)
    heads = f", and {count(record.head_parameters)} in heads" if record.head_parameters else ""
    parameters = Headline(
        label="Adapter parameters",
        before=brief_count(record.start_parameters) if record.parameters != record.start_parameters else "",
        value=brief_count(record.parameters),
        detail=change(record.start_parameters, record.parameters) + heads,
    )
    return metric, ranks, parameters, _file("Adapter file", written, record.start_bytes)


def _whole(whole: WholeRecord, total: int | None) -> tuple[Headline, Headline]:
    """What was trained of a model's own weights."""
    drawn = sum(steps > 0 for steps in whole.blocks.values())
    blocks = Headline(
        label="Blocks trained",
        value=count(drawn),
        after=f"of {count(len(whole.blocks))}",
        detail=f"each for {count(round(sum(whole.blocks.values()) / max(drawn, 1)))} of {count(whole.steps)} steps on the mean",
    )
    parameters = Headline(
        label="Parameters trained",
        value=brief_count(whole.parameters),
        detail=f"at most {brief_count(whole.at_once)} at a time" + (f", of {brief_count(total)}" if total else ""),
    )
    return blocks, parameters


def _file(label: str, written: tuple[str, int] | None, before: int | None) -> Headline:
    return Headline(
        label=label,
        before=size(before) if written and before and before != written[1] else "",
        value=size(written[1]) if written else NOTHING,
        detail=written[0] if written else "nothing was exported",
    )


def _notices(record: RunRecord) -> tuple[str, ...]:
    """What a reader must not miss."""
    notices = []
    if record.modules and record.live_ranks == 0 and not record.entries:
        notices.append("No rank is left: the adapter does nothing. Lower the penalty weight, or the gates' learning rate, and train again.")
    broken = sorted(
        (point.step, key) for point in record.history for key, value in point.values.items() if not math.isfinite(as_float(value))
    )
    if broken:
        (step, key), many = broken[0], len(broken) > 1
        notices.append(
            f"{count(len(broken))} logged value{'s are' if many else ' is'} not finite; the first is {key} at step {count(step)}."
        )
    bad = [name for name, value in sorted(record.metrics.items()) if not math.isfinite(as_float(value))]
    if bad:
        notices.append(f"Not finite at the end: {', '.join(bad)}.")
    return tuple(notices)


def fill(name: str, *, charts: Sequence[Drawn] = (), **values: Any) -> str:
    """One of the templates with its values put in."""
    page = _templates().get_template(name).render(charts=charts, most_charts=MOST_CHARTS, series=range(1, SERIES + 1), **values)
    return page.rstrip("\n") + "\n"


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("paring.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(text: str) -> Markup:
    """A path that may go on in the next line behind a dot or a slash."""
    escaped = str(escape(clean(text)))
    return Markup(re.sub(r"([./])", r"\1<wbr>", escaped))  # the pattern adds nothing but <wbr> to escaped text


def _printable(value: object) -> object:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
