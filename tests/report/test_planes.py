"""Points in a plane with a logarithmic axis, and the critical-difference diagram."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.report.axes import brief
from paring.report.curves import Drawn
from paring.report.planes import Dot, Plane, Trace, draw_plane, draw_ranks
from paring.report.words import number
from tests.report.test_ticks import cut_off

RATES = (1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1.0)


def _plane(*dots: Dot, **changes: object) -> Drawn:
    traces = (Trace(label="one", dots=dots, style=0),)
    return draw_plane(Plane(title="t", traces=traces, across="learning rate", shown=number, **changes), "k")  # type: ignore[arg-type]


def test_a_plane_says_its_points_with_their_intervals() -> None:
    drawn = _plane(Dot(x=1e-3, y=90.0, low=89.5, high=91.0), Dot(x=3e-3, y=88.0))
    assert "one: 90 at 0.001 (89.5 to 91), 88 at 0.003." in drawn.svg
    assert drawn.legend == (("● one", "", 1, ""),)


def test_an_interval_is_drawn_as_long_as_it_is() -> None:
    svg = _plane(Dot(x=1e-3, y=90.0, low=80.0, high=100.0), Dot(x=1e-2, y=80.0), Dot(x=1e-1, y=100.0)).svg
    bar, line = re.findall(r'<path d="M ([-\d.]+) ([-\d.]+) L ([-\d.]+) ([-\d.]+)(?: L ([-\d.]+) ([-\d.]+))? ?"[^>]*series-1', svg)
    # From the height of the point at 80 to that at 100, straight up through the first.
    assert (bar[0], bar[2]) == (line[0], line[0])
    assert (bar[1], bar[3]) == (line[3], line[5])


def test_traces_of_a_plane_differ_in_colour_dashes_and_marks() -> None:
    traces = tuple(Trace(label=str(style), dots=(Dot(x=1.0, y=style),), style=style) for style in range(6))
    drawn = draw_plane(Plane(title="t", traces=traces, across="parameters", shown=brief), "k")
    assert len({colour for _, _, colour, _ in drawn.legend}) == 6
    assert len({label[0] for label, _, _, _ in drawn.legend}) == 6


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(RATES), st.floats(-1e6, 1e6)), min_size=1, max_size=5),
    st.lists(st.tuples(st.sampled_from(RATES), st.floats(-1e6, 1e6)), max_size=3),
)
def test_any_plane_can_be_drawn_and_read(points: list[tuple[float, float]], room: list[tuple[float, float]]) -> None:
    dots = [Dot(x=x, y=y) for x, y in sorted(points)]
    svg = _plane(*dots, room=tuple(Dot(x=x, y=y) for x, y in room)).svg
    assert svg.startswith("<svg")
    assert cut_off(svg) == []


def test_ranks_are_drawn_with_what_they_mean() -> None:
    drawn = draw_ranks({"a": 1.2, "b": 1.8, "c": 3.0}, 1.0, (("a", "b"),), "key")
    assert "Not told apart: a, b." in drawn.svg
    assert "critical difference 1.00" in drawn.svg
    assert "critical difference 9.00, longer than the axis" in draw_ranks({"a": 1.0, "b": 2.0}, 9.0, (("a", "b"),), "key").svg
    assert "critical difference" not in draw_ranks({"a": 1.0, "b": 2.0}, None, (), "key").svg


@pytest.mark.parametrize("names", [2, 5, 10, 42, 150])
def test_numbers_of_ranks_do_not_touch(names: int) -> None:
    means = {f"a rather long name of a method {place}": float(place + 1) for place in range(names)}
    svg = draw_ranks(means, 1.0, (), "key").svg
    found = re.findall(r'<text[^>]*?(?:x="([\d.]+)"|translate\(([\d.]+))[^>]*>(\d+)</text>', svg)
    ticks = sorted((float(at or moved), text) for at, moved, text in found)
    assert ticks[0][1] == "1"
    assert len(ticks) >= 2
    assert all(after - before > 3.5 * (len(one) + len(other)) + 4 for (before, one), (after, other) in pairwise(ticks))
    assert cut_off(svg) == []
