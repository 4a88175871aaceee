"""Numbers, sizes and times as a reader wants them, and text made safe to print."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

NOTHING = "\N{EN DASH}"

_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))

# Control characters that XML forbids or that hide or reorder what stands beside them, and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Replace what cannot be encoded, or would hide or reorder its neighbours, by U+FFFD. Line breaks and tabs stay."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a text that is longer than ``width`` characters; white space becomes single blanks."""
    text = " ".join(clean(text).split())
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return text[: width - 1 - tail] + "…" + text[-tail:]


def as_float(value: object) -> float:
    """Read a logged value; what is no number counts as NaN, so that one odd entry never costs the page."""
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return math.nan


def number(value: float) -> str:
    """Four significant digits; whole numbers in full, grouped by thousands up to nine digits."""
    value = as_float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if 1e-4 <= abs(value) < 1e7:
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def count(value: int) -> str:
    """A whole number in full, grouped by thousands."""
    return f"{value:,}"


def brief_count(value: int) -> str:
    """A whole number in full up to six digits, else as ``5.357 M`` or ``1.24 B``."""
    if abs(value) < 10**6:
        return count(value)
    scale, unit = (10**9, "B") if abs(value) >= 10**9 else (10**6, "M")
    return f"{value / scale:.4g} {unit}"


def size(count_of_bytes: int) -> str:
    """Bytes in decimal units: ``357 kB``, ``3.6 MB``."""
    if count_of_bytes < 1000:
        return f"{count_of_bytes} bytes"
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if count_of_bytes >= scale), _UNITS[-1])
    value = count_of_bytes / scale
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def share(part: float, whole: float) -> str:
    """Part of a whole in percent; never 0% for something nor 100% for less than all."""
    if whole <= 0:
        return NOTHING
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "<1%"
    if 99 < percent < 100:
        return ">99%"
    return f"{percent:.0f}%"


def change(before: float, after: float) -> str:
    """Change from before to after: ``70% fewer``, ``unchanged``, ``5% more``."""
    if before == after:
        return "unchanged"
    if before <= 0:
        return NOTHING
    return f"{share(abs(after - before), before)} {'fewer' if after < before else 'more'}"


def duration(seconds: float) -> str:
    """A time span: ``8.2 s``, ``4 min 12 s``, ``2 h 05 min``."""
    if not math.isfinite(seconds) or seconds < 0:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def moment(text: str) -> str:
    """An ISO 8601 time as ``2025-03-01 14:05 UTC``; any other text as it is."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    return when.strftime("%Y-%m-%d %H:%M UTC")


def metric_name(key: str) -> str:
    """``eval_macro_f1`` as ``macro f1``."""
    return key.removeprefix("eval_").replace("_", " ") or key


def sentence_case(text: str) -> str:
    """The first letter as a capital, the others as they are."""
    return text[:1].upper() + text[1:]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``{"optimizer.lr": "0.001"}``, keys sorted; lists of plain values stay on one line."""
    flat: dict[str, str] = {}
    for key in sorted(values, key=str):
        value, name = values[key], f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = _plain(value)
    return flat


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    # A set has no order of its own; the bytes of a page must not depend on the hash seed.
    items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
    if (
        isinstance(items, Sequence)
        and not isinstance(items, bytes)
        and all(not isinstance(item, Sequence | Mapping) or isinstance(item, str) for item in items)
    ):
        return ", ".join(_plain(item) for item in items) or "[]"
    return json.dumps(items, ensure_ascii=False, sort_keys=True, default=str)
