"""Valleys of learning rates, and what is worth its size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paring.study.shapes import frontier, valley
from tests.study.samples import ACCURACY, PERPLEXITY, entry, findings, usual


def test_a_valley_is_as_wide_as_the_rates_around_the_best_that_are_as_good() -> None:
    found = valley(entry("a", "t", [0.9], trials=(0.80, 0.90, 0.895, 0.5)), ACCURACY)
    assert found is not None
    assert (found.best, found.width, found.ends) == (1e-3, pytest.approx(3.0), False)
    assert [rate for rate, _ in found.points] == [3e-4, 1e-3, 3e-3, 1e-2]
    open_end = valley(entry("a", "t", [0.9], trials=(0.80, None, 0.895, 0.9)), ACCURACY)
    assert open_end is not None
    assert (open_end.best, open_end.width, open_end.ends) == (1e-2, pytest.approx(1e-2 / 3e-3), True)
    # A good rate behind a bad one is another valley.
    apart = valley(entry("a", "t", [0.9], trials=(0.9, 0.5, 0.9, 0.5)), ACCURACY)
    assert apart is not None
    assert (apart.best, apart.width) == (3e-4, 1.0)
    lower = valley(entry("a", "t", [30.0], trials=(30.4, 30.0, 30.2, 90.0)), PERPLEXITY)
    assert lower is not None
    # What is no share has no points: a hundredth of the best is as good.
    assert (lower.best, lower.width, lower.margin) == (1e-3, pytest.approx(3.0), pytest.approx(0.3))
    assert valley(replace(entry("a", "t", [0.9]), trials=()), ACCURACY) is None


def test_the_frontier_knows_what_is_worth_its_size() -> None:
    places = frontier(usual(), "sst2")
    assert [place.name for place in places] == ["cut @ 1/8", "cut @ 1/2", "SoRA", "LoRA"]
    assert [place.dominated_by for place in places] == [None, None, "cut @ 1/2", None]
    assert [place.contestant for place in places] == ["cut", "cut", "SoRA", "LoRA"]
    # Smaller is better here.
    lower = {place.name: place.dominated_by for place in frontier(usual(), "notes")}
    assert (lower["SoRA"], lower["LoRA"]) == ("cut @ 1/2", None)


def test_twins_do_not_dominate_each_other_and_who_has_no_size_has_no_place() -> None:
    rows = [entry("a", "t", [0.9]), entry("b", "t", [0.9]), entry("c", "t", [0.9], parameters=50_000)]
    rows += [replace(entry("whole", "t", [0.99]), parameters=(None,)), entry("failed", "t", [None])]
    assert {place.name: place.dominated_by for place in frontier(findings(*rows), "t")} == {"a": None, "b": None, "c": "a"}


def test_survivors_dominate_nobody_and_have_no_place() -> None:
    rows = [entry("A", "t", [0.99, None, None], parameters=1000), entry("B", "t", [0.8, 0.81, 0.82])]
    assert {place.name: place.dominated_by for place in frontier(findings(*rows), "t")} == {"B": None}
    # In the sample a seed of SoRA failed on trec.
    assert [place.name for place in frontier(usual(), "trec")] == ["cut @ 1/8", "cut @ 1/2", "LoRA"]


def test_a_rate_without_a_score_bounds_the_valley() -> None:
    # All but the middle two were cut short: they were tried, so the best lies at no edge, and the valley can't be wider.
    bounded = valley(entry("a", "t", [0.9], trials=(None, 0.90, 0.895, None)), ACCURACY)
    assert bounded is not None
    assert bounded.tried == (3e-4, 1e-3, 3e-3, 1e-2)
    assert (bounded.edge, bounded.ends, bounded.width) == (False, False, pytest.approx(3.0))
    # Behind a rate that was cut short another valley begins.
    apart = valley(entry("a", "t", [0.9], trials=(0.90, None, 0.90, 0.5)), ACCURACY)
    assert apart is not None
    assert (apart.best, apart.width, apart.edge, apart.ends) == (3e-4, 1.0, True, True)


def test_the_margin_is_in_points_and_its_end_is_inside() -> None:
    one = entry("a", "t", [0.9], trials=(0.80, 0.90, 0.89, 0.87))
    widths = {margin: valley(one, ACCURACY, margin) for margin in (0.9, 1.0, 3.0, 10.0)}
    assert [found and found.width for found in widths.values()] == pytest.approx([1.0, 3.0, 10.0, 100 / 3])
    lower = valley(entry("a", "t", [30.0], trials=(31.0, 30.0, 31.5, 40.0)), PERPLEXITY, 1.0)
    assert lower is not None
    assert (lower.width, lower.ends) == (pytest.approx(10 / 3), True)
