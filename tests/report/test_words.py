"""Numbers and times as a reader gets them."""

from __future__ import annotations

import math

import pytest

from paring.report.words import as_float, brief_count, change, clean, duration, flatten, moment, number, share, shorten, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.91324, "0.9132"), (12, "12"), (1234567, "1,234,567"), (1e-5, "1e-5"), (1.5e-5, "1.5e-5"), (123456.7, "123,457"),
        (2.5e12, "2.5e12"), (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "-∞"), (-0.5, "-0.5"), (1e300, "1e300"), (10**400, "∞"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_what_is_no_number_counts_as_nan() -> None:
    assert math.isnan(as_float(None))
    assert math.isnan(as_float("0.5"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1204, "1.2 kB"), (357_000, "357 kB"), (3_600_000, "3.6 MB"), (5 * 10**15, "5,000 TB")],
)
def test_sizes(value: int, text: str) -> None:
    assert size(value) == text


def test_brief_counts() -> None:
    assert [brief_count(value) for value in (0, 999_999, 5_357_000, 1_240_000_000)] == ["0", "999,999", "5.357 M", "1.24 B"]


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 8, "0%"), (8, 8, "100%"), (1, 1000, "<1%"), (999, 1000, ">99%"), (3, 8, "38%"), (0, 0, "\N{EN DASH}")]
)
def test_shares_never_round_to_none_or_all(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


def test_changes() -> None:
    assert [change(10, 3), change(10, 10), change(10, 12), change(0, 1)] == ["70% fewer", "unchanged", "20% more", "\N{EN DASH}"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.24, "8.2 s"),
        (59.99, "1 min 00 s"),
        (252.4, "4 min 12 s"),
        (7500, "2 h 05 min"),
        (3599.9, "1 h 00 min"),
        (math.nan, "\N{EN DASH}"),
        (-1, "\N{EN DASH}"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_moments() -> None:
    assert moment("2025-03-01T15:05:09+01:00") == "2025-03-01 14:05 UTC"
    assert moment("2025-03-01T14:05:09Z") == "2025-03-01 14:05 UTC"
    assert moment("yesterday") == "yesterday"


def test_settings_become_lines_in_order() -> None:
    values = {"b": {"y": [1, 2.5, "q"], "x": None}, "a": True, "c": [], "d": {}, "e": [{"k": [1]}], "f": {"z", "a"}}
    assert flatten(values) == {"a": "true", "b.x": "null", "b.y": "1, 2.5, q", "c": "[]", "d": "{}", "e": '[{"k": [1]}]', "f": "a, z"}
    assert list(flatten(values)) == sorted(flatten(values))


def test_text_is_cut_in_the_middle() -> None:
    assert shorten("short", 10) == "short"
    cut = shorten("a" * 50 + "the end", 20)
    assert len(cut) == 20
    assert cut.endswith("the end")
    assert shorten("a\nb\tc", 10) == "a b c"


def test_unprintable_text_is_replaced() -> None:
    assert clean("a\x00b\ud800c\u202ed\r\ne\tf") == "a\ufffdb\ufffdc\ufffdd\ne\tf"
