"""The tables of a report as plain values; one macro of the template prints them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paring.core.records import ModuleRecord, RunRecord, WholeRecord
from paring.report.places import in_order, place
from paring.report.series import BOOKKEEPING, keys, merged, thin
from paring.report.words import (
    NOTHING,
    as_float,
    change,
    count,
    duration,
    flatten,
    metric_name,
    number,
    sentence_case,
    share,
    size,
)

MOST_HISTORY = 200

# Where a record does not say which metric counts: the first of these that is there.
_TELLING = ("accuracy", "f1_macro", "macro_f1", "f1", "matthews", "pearson", "spearman", "perplexity")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell.

    Attributes:
        text: what it says.
        bar: 0 to 1 for a bar of that length beside the text.
        code: set as code.
    """

    text: str
    bar: float | None = None
    code: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column heads its rows.

    Attributes:
        key: unique on the page.
        caption: what it holds.
        columns: heading and whether the column holds numbers.
        rows: cells, as many as columns.
        tall: long enough to scroll within the page.
    """

    key: str
    caption: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[Cell, ...], ...]
    tall: bool = False


def kinds_table(record: RunRecord, key: str) -> Table:
    """Live ranks, or sparse entries, by kind of module."""
    kinds: dict[str, list[ModuleRecord]] = {}
    for module in record.modules:
        kinds.setdefault(place(module.path).kind, []).append(module)
    rows = []
    for kind, members in kinds.items():
        live, start = sum(module.live_rank for module in members), sum(module.start_rank for module in members)
        if record.entries:
            live, start = sum(module.entries for module in members), sum(module.in_features * module.out_features for module in members)
        rows.append((Cell(text=kind, code=True), _cell(f"{count(live)} of {count(start)}"), _bar(live, start), _cell(count(len(members)))))
    what = "Entries" if record.entries else "Live ranks"
    columns = (("Kind", False), (what, True), ("Trained" if record.entries else "Kept", True), ("Modules", True))
    return Table(key=key, caption=f"{what} by kind of module", columns=columns, rows=tuple(rows))


def modules_table(record: RunRecord, key: str) -> Table:
    """Every adapted module with shape, ranks and parameters, or its entries."""
    if record.entries:
        return _entries_table(record, key)
    rows = tuple(
        (
            Cell(text=module.path, code=True),
            _cell(count(module.live_rank)),
            _cell(count(module.start_rank)),
            _bar(module.live_rank, module.start_rank),
            _cell(count(module.parameters)),
            _cell(count(module.start_parameters)),
            _cell(f"{count(module.in_features)} → {count(module.out_features)}"),
        )
        for module in in_order(record.modules)
    )
    columns = (
        ("Module", False),
        ("Live rank", True),
        ("Rank at start", True),
        ("Kept", True),
        ("Parameters", True),
        ("Parameters at start", True),
        ("In → out", True),
    )
    return Table(key=key, caption=f"Adapted modules ({count(len(rows))})", columns=columns, rows=rows, tall=len(rows) > 24)


def _entries_table(record: RunRecord, key: str) -> Table:
    rows = tuple(
        (
            Cell(text=module.path, code=True),
            _cell(count(module.entries)),
            _bar(module.entries, module.in_features * module.out_features),
            _cell(f"{count(module.in_features)} → {count(module.out_features)}"),
        )
        for module in in_order(record.modules)
    )
    columns = (("Module", False), ("Entries", True), ("Of the weight", True), ("In → out", True))
    return Table(key=key, caption=f"Adapted modules ({count(len(rows))})", columns=columns, rows=rows, tall=len(rows) > 24)


def blocks_table(record: RunRecord, key: str) -> Table | None:
    """For how many steps each block of the model's own weights was trained; ``None`` for an adapter."""
    whole = record.whole
    if whole is None:
        return None
    rows = tuple((Cell(text=path, code=True), _cell(count(steps)), _bar(steps, whole.steps)) for path, steps in whole.blocks.items())
    columns = (("Block", False), ("Steps", True), ("Of all steps", True))
    return Table(key=key, caption=f"Blocks ({count(len(rows))})", columns=columns, rows=rows, tall=len(rows) > 24)


def stages_table(record: RunRecord, key: str) -> Table | None:
    """The stages of a path; ``None`` for a run that had none."""
    path = record.path
    if path is None:
        return None
    others = list(dict.fromkeys(name for stage in path.stages for name in stage.metrics if name not in BOOKKEEPING))[:1]
    rows = []
    for index, stage in enumerate(path.stages):
        word = path.verdict(index)
        rows.append(
            (
                _cell(f"{index}, {word}" if word else str(index)),
                _cell(count(stage.parameters)),
                _cell(count(stage.live_ranks)),
                _cell(number(stage.train)),
                _cell(number(stage.held_out) + (f" ± {number(stage.error)}" if stage.error is not None else "")),
                _cell(f"{stage.memorization:.1f}"),
                _cell(f"{stage.generalization:.1f}"),
                *(_cell(number(stage.metrics[name]) if name in stage.metrics else NOTHING) for name in others),
                _cell(duration(stage.seconds)),
            )
        )
    metric = metric_name(path.metric)
    columns = (
        ("Stage", False),
        ("Parameters", True),
        ("Ranks", True),
        (f"{sentence_case(metric)}, training rows", True),
        (f"{sentence_case(metric)}, held-out rows", True),
        ("Memorization", True),
        ("Generalization", True),
        *((f"{sentence_case(metric_name(name))}, evaluation", True) for name in others),
        ("Training time", True),
    )
    asked = f" (tolerance {path.tolerance})" if path.tolerance else ""
    return Table(key=key, caption=f"Stages of the path{asked}", columns=columns, rows=tuple(rows))


def sizes_table(record: RunRecord, key: str) -> Table:
    """Parameters and adapter file at the start and at the end."""
    if record.whole is not None:
        return _whole_sizes(record, record.whole, key)
    start, end, heads = record.start_parameters, record.parameters, record.head_parameters
    rows = [("Adapter parameters", count(start), count(end), change(start, end))]
    if not record.entries:
        rows.insert(0, ("Ranks", count(record.start_ranks), count(record.live_ranks), change(record.start_ranks, record.live_ranks)))
    if heads:
        rows.append(("Heads trained in full", count(heads), count(heads), "unchanged"))
        rows.append(("Adapter and heads", count(start + heads), count(end + heads), change(start + heads, end + heads)))
    if record.base_parameters:
        base = record.base_parameters
        rows.append(("Base model, frozen", count(base), count(base), "unchanged"))
        rows.append(("Adapter as share of the base", _fine_share(start, base), _fine_share(end, base), NOTHING))
    written = adapter_file(record)
    if written is not None:
        before, after = record.start_bytes, written[1]
        rows.append(
            (
                "Adapter file",
                size(before) if before else NOTHING,
                size(after),
                change(before, after).replace("fewer", "smaller") if before else NOTHING,
            )
        )
    columns = (("", False), ("At the start", True), ("At the end", True), ("Change", True))
    return Table(key=key, caption="Sizes before and after", columns=columns, rows=tuple(tuple(map(_cell, row)) for row in rows))


def _whole_sizes(record: RunRecord, whole: WholeRecord, key: str) -> Table:
    rows = [("Trained at some time", count(whole.parameters)), ("At most trained at a time", count(whole.at_once))]
    if record.base_parameters:
        rows.append(("Of the model", count(record.base_parameters)))
    written = adapter_file(record)
    if written is not None:
        rows.append(("Model file", size(written[1])))
    return Table(key=key, caption="Sizes", columns=(("", False), ("Parameters", True)), rows=tuple(tuple(map(_cell, row)) for row in rows))


def adapter_file(record: RunRecord) -> tuple[str, int] | None:
    """The file that holds the adapter, or the model: the largest safetensors file of the export, if there is one."""
    weights = {name: value for name, value in record.files.items() if name.endswith(".safetensors")}
    return max(weights.items(), key=lambda item: (item[1], item[0])) if weights else None


def files_table(record: RunRecord, key: str) -> Table:
    """The files of the export."""
    rows = tuple((Cell(text=name, code=True), _cell(size(value)), _cell(count(value))) for name, value in sorted(record.files.items()))
    return Table(key=key, caption="Files of the export", columns=(("File", False), ("Size", True), ("Bytes", True)), rows=rows)


def metrics_table(record: RunRecord, key: str) -> Table:
    """All final metrics."""
    rows = tuple((Cell(text=name, code=True), _cell(number(record.metrics[name]))) for name in metric_keys(record))
    return Table(key=key, caption="Metrics at the end", columns=(("Metric", False), ("Value", True)), rows=rows)


def metric_keys(record: RunRecord) -> list[str]:
    """Metrics with the main one first, then those that tell most, the loss late, what a trainer logs about itself last."""

    def rank(key: str) -> tuple[bool, int, str]:
        name = key.removeprefix("eval_")
        told = _TELLING.index(name) if name in _TELLING else len(_TELLING)
        return (key != record.main_metric, len(_TELLING) + 2 if key in BOOKKEEPING else told + int("loss" in name), key)

    return sorted(record.metrics, key=rank)


def history_table(record: RunRecord, key: str) -> Table | None:
    """The logged values, at most :data:`MOST_HISTORY` steps of them; ``None`` if nothing was logged."""
    history = merged(record.history)
    if not history:
        return None
    columns, points = keys(history), thin(history, MOST_HISTORY)
    rows = tuple(
        (_cell(count(point.step)), *(_cell(number(as_float(point.values[name])) if name in point.values else "") for name in columns))
        for point in points
    )
    caption = (
        f"Logged values ({count(len(points))} of {count(len(history))} steps, evenly spaced)"
        if len(points) < len(history)
        else "Logged values"
    )
    return Table(key=key, caption=caption, columns=(("Step", True), *((name, True) for name in columns)), rows=rows, tall=len(rows) > 24)


def plain_table(values: Mapping[str, Any], key: str, caption: str, heads: tuple[str, str]) -> Table | None:
    """Nested plain data as two columns; ``None`` if it is empty."""
    rows = tuple((Cell(text=name, code=True), Cell(text=value)) for name, value in flatten(values).items())
    return Table(key=key, caption=caption, columns=((heads[0], False), (heads[1], False)), rows=rows) if rows else None


def results_table(records: Sequence[RunRecord], labels: Sequence[str], key: str) -> Table:
    """Runs side by side: metrics, parameters, file size, time, ranks."""
    names = list(dict.fromkeys(name for record in records for name in metric_keys(record) if name not in BOOKKEEPING))
    rows = []
    for record, label in zip(records, labels, strict=True):
        written = adapter_file(record)
        rows.append(
            (
                Cell(text=label),
                *(_cell(number(record.metrics[name]) if name in record.metrics else NOTHING) for name in names),
                _cell(NOTHING if record.whole else f"{count(record.live_ranks)} of {count(record.start_ranks)}"),
                _cell(count(record.whole.parameters if record.whole else record.parameters)),
                Cell(text=NOTHING) if record.whole else _bar(record.parameters, record.start_parameters),
                _cell(size(written[1]) if written else NOTHING),
                _cell(duration(record.seconds)),
            )
        )
    columns = (
        ("Run", False),
        *((heading, True) for heading in _headings(names)),
        ("Live ranks", True),
        ("Parameters", True),
        ("Kept", True),
        ("Adapter file", True),
        ("Training time", True),
    )
    return Table(key=key, caption="Metrics, sizes and time at the end", columns=columns, rows=tuple(rows))


def differences_table(records: Sequence[RunRecord], labels: Sequence[str], key: str) -> Table | None:
    """The settings in which the runs differ; ``None`` if there are none."""
    flat = [
        flatten({"method": record.method, "base_model": record.base_model, "seed": record.seed, "settings": record.settings})
        for record in records
    ]
    names = sorted({name for values in flat for name in values if len({other.get(name) for other in flat}) > 1})
    rows = tuple((Cell(text=name, code=True), *(Cell(text=values.get(name, NOTHING)) for values in flat)) for name in names)
    columns = (("Setting", False), *((label, False) for label in labels))
    return Table(key=key, caption="Settings that differ", columns=columns, rows=rows) if rows else None


def _headings(names: Sequence[str]) -> list[str]:
    """Metrics in words, but by key where two would read the same (``accuracy`` and ``eval_accuracy``)."""
    words = [metric_name(name) for name in names]
    return [sentence_case(word) if words.count(word) == 1 else name for word, name in zip(words, names, strict=True)]


def _cell(text: str) -> Cell:
    return Cell(text=text)


def _bar(part: int, whole: int) -> Cell:
    return Cell(text=share(part, whole), bar=min(1.0, part / whole) if whole > 0 else None)


def _fine_share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2g}%" if part else "0%"
