"""The axes of charts: every number that is shown is true and lies within the drawing; and what is drawn and headed at all."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.core.records import Point
from paring.report.charts import Chart, charts
from paring.report.curves import _vertical, draw
from paring.report.series import Series
from paring.report.tables import metric_keys
from tests.report.samples import run

_UNITS = {"k": 1e3, "M": 1e6, "B": 1e9}
_WIDEST = 6.7  # pixels of a digit in the page's font of 12


def _chart(*values: float, steps: tuple[int, ...] = ()) -> Chart:
    return Chart(title="Loss", curves=(Series(label="Loss", steps=steps or tuple(range(len(values))), values=values),))


def _value(label: str, offset: str) -> float:
    return float(label.rstrip("kMB")) * _UNITS.get(label[-1], 1.0) + float(offset.replace(",", "") or 0)


def cut_off(svg: str) -> list[str]:
    """Words that stand out of the drawing."""
    cut = []
    root = ET.fromstring(svg)
    for item in root.iter("text"):
        at, word = float(item.attrib["x"]) if "x" in item.attrib else 0.0, item.text or ""
        moved = re.search(r"translate\(([-\d.]+)", item.attrib.get("transform", ""))
        at += float(moved[1]) if moved else 0.0
        anchor = re.search(r"text-anchor: (\w+)", item.attrib.get("style", ""))
        width = _WIDEST * len(word)
        start = at - {"middle": width / 2, "end": width}.get(anchor[1] if anchor else "", 0.0)
        if start < 0 or start + width > float(root.attrib["width"]):
            cut.append(word)
    return cut


@pytest.mark.parametrize(
    "values",
    [
        (6.950430, 6.950440),
        (0.5, 0.75),
        (100_000.25, 100_000.75),
        (1e9, 1e9 + 2),
        (-123_456.5, -123_456.25),
        (1.05e-5, 1.2e-5),
        (1e12, 3e12),
    ],
)
def test_every_label_is_whole_and_true(values: tuple[float, ...]) -> None:
    axis = _vertical(_chart(*values))
    assert len(axis.labels) >= 2
    near = 0.02 * (axis.ceiling - axis.bottom)
    assert all(abs(_value(label, axis.offset) - tick) < near for label, tick in zip(axis.labels, axis.ticks, strict=True))
    assert len(set(axis.labels)) == len(axis.labels)
    svg = draw(_chart(*values), "k").svg
    assert all(f">{label}</text>" in svg for label in axis.labels)
    assert cut_off(svg) == []
    assert (f">add {axis.offset}</text>" in svg) == bool(axis.offset)


@settings(max_examples=40, deadline=None)
@given(low=st.floats(-1e12, 1e12), span=st.floats(1e-6, 1e9))
def test_no_label_is_false(low: float, span: float) -> None:
    axis = _vertical(_chart(low, low + span))
    near = 0.02 * (axis.ceiling - axis.bottom)
    assert all(abs(_value(label, axis.offset) - tick) < near for label, tick in zip(axis.labels, axis.ticks, strict=True))
    assert max(map(len, axis.labels)) <= 10


def test_many_digits_of_steps_stay_within_the_drawing() -> None:
    steps = (100_001, 100_002, 100_003, 100_004)
    assert cut_off(draw(_chart(1.0, 2.0, 3.0, 4.0, steps=steps), "k").svg) == []


def test_nothing_but_zeros_lies_on_an_axis_from_0_to_1() -> None:
    axis = _vertical(_chart(0.0, 0.0))
    assert (axis.bottom, axis.ceiling) == (0.0, 1.0)
    assert axis.labels == ("0", "0.25", "0.50", "0.75", "1.00")


@pytest.mark.parametrize("value", [1.0, -5.0, 6.95, 1e-6])
def test_one_level_lies_in_the_middle_of_what_is_near_it(value: float) -> None:
    axis = _vertical(_chart(value, value * (1 + 1e-15)))
    assert axis.bottom == pytest.approx(value - 0.1 * abs(value))
    assert axis.ceiling == pytest.approx(value + 0.1 * abs(value))


def test_what_a_trainer_counts_is_not_drawn() -> None:
    values = {"eval_num_tokens": 1.0, "num_tokens": 1.0, "eval_num_input_tokens_seen": 1.0, "eval_accuracy": 0.5}
    assert [chart.title for chart in charts(run(history=(Point(step=1, values=values),)))] == ["Accuracy, evaluation"]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("mse", "loss", "pearson", "spearman"), ["pearson", "spearman", "mse", "loss"]),
        (("entropy", "loss", "num_tokens", "perplexity"), ["perplexity", "entropy", "loss", "num_tokens"]),
        (("matthews", "eval_loss", "f1", "eval_accuracy", "f1_macro"), ["eval_accuracy", "f1_macro", "f1", "matthews", "eval_loss"]),
    ],
)  # fmt: skip
def test_the_metric_that_tells_most_leads_where_none_is_named(names: tuple[str, ...], order: list[str]) -> None:
    assert metric_keys(run(metrics=dict.fromkeys(names, 0.5), main_metric=None)) == order
    assert metric_keys(run(metrics=dict.fromkeys(names, 0.5), main_metric=names[0]))[0] == names[0]
