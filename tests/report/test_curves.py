"""Charts: which there are, what they say in words, and axes that can be read."""

from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from paring.core.records import PathRecord, Point, RunRecord, StageRecord
from paring.report import render, render_many
from paring.report.axes import tick_labels
from paring.report.charts import MOST_CHARTS, charts, charts_of_many, frontier
from paring.report.curves import draw, summarise
from paring.report.series import Series, keys, merged, series, thin
from tests.report.samples import lora, run


def _curve(*values: float) -> Series:
    return Series(label="loss", steps=tuple(range(len(values))), values=values)


def test_a_run_has_its_charts_in_order() -> None:
    titles = [chart.title for chart in charts(run())]
    assert titles[:3] == ["Live adapter parameters", "Penalty weight λ", "Loss"]
    assert "Accuracy, evaluation" in titles
    assert not [title for title in titles if "runtime" in title.lower() or title == "Epoch" or "dead" in title]
    assert [curve.label for curve in charts(run())[2].curves] == ["training", "evaluation"]


def test_runs_share_charts_and_keep_their_styles() -> None:
    found = {chart.title: chart for chart in charts_of_many([lora(), run()], ["a", "b"])}
    assert [(curve.label, curve.style) for curve in found["Loss"].curves] == [("a", 0), ("b", 1)]
    assert [(curve.label, curve.style) for curve in found["Penalty weight λ"].curves] == [("b", 1)]
    assert [entry[0] for entry in draw(found["Penalty weight λ"], "k").legend] == ["b"]


def test_there_is_an_end_to_charts() -> None:
    record = run(history=(Point(step=1, values={f"eval_{index}": 1.0 for index in range(99)}),))
    assert len(charts(record)) == MOST_CHARTS


def test_words_say_what_the_curve_shows() -> None:
    assert summarise(_curve(2.0, 0.25, 0.5)) == "2 → 0.5, lowest 0.25"
    assert summarise(_curve(1.0, 3.0, math.nan, 0.5)) == "1 → 0.5, highest 3; 1 not finite, first at step 2"
    assert summarise(_curve(math.nan)) == "no finite value"
    assert summarise(_curve(0.125)) == "0.125"


def test_a_drawing_has_a_name_a_description_and_a_mark_for_what_is_not_finite() -> None:
    chart = charts(run(history=tuple(Point(step=step, values={"loss": math.inf if step == 3 else float(step)}) for step in range(6))))[0]
    drawn = draw(chart, "k")
    assert '<title id="k-title">Loss</title>' in drawn.svg
    assert re.search(r'<desc id="k-desc">[^<]*steps 0 to 5: 0 to 5; 1 not finite, first at step 3\.</desc>', drawn.svg)
    assert 'role="img"' in drawn.svg
    assert "var(--warn)" in drawn.svg
    calm = draw(charts(run(history=tuple(Point(step=step, values={"loss": float(step)}) for step in range(6))))[0], "k")
    assert "var(--warn)" not in calm.svg


def test_points_between_gaps_are_marked() -> None:
    values = [float(step) if step % 3 == 0 else math.nan for step in range(120)]
    chart = charts(run(history=tuple(Point(step=step, values={"loss": value}) for step, value in enumerate(values))))[0]
    uses = re.findall(r"<use [^>]*var\(--series-1\)", draw(chart, "k").svg)
    assert len(uses) == 40


@given(low=st.floats(-1e9, 1e9), span=st.floats(1e-6, 1e9))
def test_tick_labels_are_distinct_and_short(low: float, span: float) -> None:
    ticks = [low + span * index / 4 for index in range(5)]
    labels = tick_labels(ticks)
    assert len(labels) == 5
    assert all(math.isfinite(float(label.rstrip("kMB"))) for label in labels)


def test_tick_labels_use_one_unit_and_the_decimals_they_need() -> None:
    assert tick_labels([0.0, 200_000.0, 400_000.0]) == ["0", "200k", "400k"]
    assert tick_labels([0.0, 2.5, 5.0]) == ["0", "2.5", "5.0"]
    assert tick_labels([0.9, 0.925, 0.95]) == ["0.900", "0.925", "0.950"]
    assert tick_labels([0.0, 5e-6, 1e-5]) == ["0", "5e-6", "1e-5"]
    assert tick_labels([2_500_000.0, 5_000_000.0]) == ["2.5M", "5.0M"]
    assert tick_labels([0.0]) == ["0"]
    assert tick_labels([]) == []


def test_history_is_merged_by_step_and_in_order() -> None:
    points = (Point(step=2, values={"loss": 1.0}), Point(step=1, values={"loss": 3.0}), Point(step=2, values={"loss": 2.0, "eval_f1": 0.5}))
    found = merged(points)
    assert [(point.step, dict(point.values)) for point in found] == [(1, {"loss": 3.0}), (2, {"loss": 2.0, "eval_f1": 0.5})]
    assert series(found, "eval_f1", label="f1").steps == (2,)
    assert keys(found) == ["loss", "eval_f1"]


@given(length=st.integers(0, 500), most=st.integers(2, 50))
def test_thinning_keeps_both_ends_and_the_order(length: int, most: int) -> None:
    points = [Point(step=step, values={}) for step in range(length)]
    steps = [point.step for point in thin(points, most)]
    assert len(steps) == min(length, most)
    assert steps == sorted(set(steps))
    if length:
        assert (steps[0], steps[-1]) == (0, length - 1)


def stages(*sizes: tuple[int, float]) -> PathRecord:
    found = tuple(
        StageRecord(
            goal=float(size),
            parameters=size,
            live_ranks=size // 10,
            train=0.9,
            held_out=score,
            error=0.01,
            memorization=100.0,
            generalization=100.0,
            seconds=1.0,
            metrics={"accuracy": score, "epoch": 1.0},
            folder=f"family/stage-{index:02d}/adapter",
        )
        for index, (size, score) in enumerate(sizes)
    )
    return PathRecord(metric="accuracy", stages=found, tolerance="1se", floor=0.85, chosen=1)


def test_a_frontier_has_every_size_once_and_the_floor() -> None:
    assert frontier(run()) is None
    record = run(path=stages((338_000, 0.91), (160_000, 0.90), (80_000, 0.80), (80_000, 0.82), (0, 0.1)))
    chart = frontier(record)
    assert chart is not None
    assert [curve.steps for curve in chart.curves] == [(80_000, 160_000, 338_000)] * 2
    assert chart.curves[0].values == (0.82, 0.90, 0.91)
    drawn = draw(chart, "f")
    assert "Lowest inside the tolerance: 0.85." in drawn.svg
    assert [entry[0] for entry in drawn.legend] == ["held-out rows", "training rows", "lowest inside the tolerance"]
    assert ">100k<" in drawn.svg
    assert frontier(run(path=stages((0, 0.5)))) is None


@given(st.lists(st.tuples(st.integers(1, 10**11), st.floats(allow_nan=True, allow_infinity=True)), min_size=1, max_size=9))
def test_any_frontier_can_be_drawn(sizes: list[tuple[int, float]]) -> None:
    chart = frontier(run(path=stages(*sizes)))
    assert chart is not None
    assert draw(chart, "f").svg.startswith("<svg")


def test_a_path_is_on_the_page_of_its_run_and_survives_a_file() -> None:
    record = run(path=stages((338_000, 0.91), (80_000, 0.88), (40_000, 0.7)))
    page = render(RunRecord.from_json(record.to_json()))
    for text in ("From the full adapter down", "1, chosen", "2, outside", "0, inside", "Stages of the path (tolerance 1se)", "0.88 ± 0.01"):
        assert text in page, text
    assert "From the full adapter down" not in render(run())
    assert "From the full adapter down" in render_many([record, run()])
