"""The parts of a study's file that stand for themselves: its name, seeds, search and metrics, and which flags may stand where."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from paring.cli.data.metrics import METRICS, SMALLER_IS_BETTER
from paring.cli.flags import listed
from paring.cli.study.flags import check_flag, check_own, filled
from paring.cli.study.planted import METRICS as PLANTED
from paring.cli.study.planted import planting
from paring.cli.study.text import Place, Text
from paring.core.coding import is_whole
from paring.core.errors import SettingError, near
from paring.study.plan import Listed, Range, Sampler, Search, Space
from paring.study.records import Metric

SEARCH = ("trials", "sampler", "held", "evaluations", "prune", "first", "widen", "seed")
MOST_SEEDS = 1000
"""Runs with other seeds that a study has of each contestant."""
POINTS = frozenset({"accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman", "mean_token_accuracy"})
"""Metrics that are shares of one, which are told in percent."""


def name_of(text: Text) -> str:
    """The study's name: the file's own, where it says none.

    Raises:
        SettingError: names the line.
    """
    name = text.data.get("name", text.path.stem)
    if not isinstance(name, str) or not name.strip():
        raise text.wrong(("name",), f"name is {name!r}; give a text.")
    return name


def whole(text: Text, place: Place, default: int) -> int:
    """A whole number of at least 1 at the top of the file.

    Raises:
        SettingError: names the line.
    """
    found: Any = text.data.get(str(place[0]), default)
    if not is_whole(found, 1):
        raise text.wrong(place, f"{place[0]} is {found!r}; give a whole number of at least 1.")
    return found


def seeds_of(text: Text) -> tuple[int, ...]:
    """The seeds of the final runs.

    Raises:
        SettingError: names the line.
    """
    found = text.data.get("seeds", 3)
    if is_whole(found, 1, MOST_SEEDS):
        return tuple(range(found))
    if isinstance(found, list) and found and all(is_whole(seed, 0, 2**32 - 1) for seed in found):
        if len(set(found)) == len(found):
            return tuple(found)
        raise text.wrong(("seeds",), f"seeds {found} holds one twice, which would count the same run two times.")
    raise text.wrong(("seeds",), f"seeds is {found!r}; give how many, at most {MOST_SEEDS:,}, or a list of whole numbers from 0.")


def search_of(text: Text) -> tuple[Search, Space]:
    """How is searched, and what over for every contestant.

    Raises:
        SettingError: names the line.
    """
    found = text.mapping(("search",))
    space = {name: values_of(text, ("search", name), value) for name, value in found.items() if name not in SEARCH}
    for name in space:
        if name != "learning_rate":
            raise text.wrong(
                ("search", name),
                f"unknown key {name!r}.{near(name, (*SEARCH, 'learning_rate'))} What one contestant alone is searched over stands in its "
                "own `search:`.",
            )
    given = {name: value for name, value in found.items() if name in SEARCH}
    try:
        if "sampler" in given:
            given["sampler"] = Sampler(given["sampler"])
        return Search(**given), space
    except (SettingError, ValueError, TypeError) as error:
        named = [("search", word) for word in re.findall(r"\w+", str(error)) if word in given]
        place: Place = named[0] if named else ("search",)
        if "sampler" in given and not isinstance(given["sampler"], Sampler):
            names = ", ".join(Sampler)
            raise text.wrong(("search", "sampler"), f"there is no sampler {given['sampler']!r}; give one of {names}.") from error
        raise text.wrong(place, str(error)) from error


def values_of(text: Text, place: Place, value: Any) -> Listed | Range:
    """What a setting is searched over.

    Raises:
        SettingError: names the line.
    """
    name = place[-1]
    numbers = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]
    if any(isinstance(one, bool) or not isinstance(one, int | float) for one in numbers):
        raise text.wrong(place, f"{name} is {value!r}; give a list of numbers, or a range {{low: 1e-4, high: 1e-2}}.")
    try:
        if isinstance(value, dict):
            text.mapping(place, ("low", "high"))
            if set(value) != {"low", "high"}:
                raise SettingError("give both low and high")
            return Range(low=float(value["low"]), high=float(value["high"]))
        return Listed(values=tuple(float(one) for one in numbers))
    except OverflowError as error:
        raise text.wrong(place, f"{name} holds a whole number that is too large to compute with.") from error
    except SettingError as error:
        raise text.wrong(place, f"{name}: {error}") from error


def budgets_of(text: Text) -> Mapping[str, Mapping[str, Any]]:
    """The values of each budget by the names that contestants say them by.

    Raises:
        SettingError: names the line.
    """
    found = text.mapping(("budgets",))
    for budget, values in found.items():
        if not isinstance(values, dict) or not values:
            said = f"budget {budget!r} is {values!r}; give names with values, such as {{rank: 4}} for contestants that say $rank."
            raise text.wrong(("budgets", budget), said)
    return found


def metric_of(text: Text, task: str, definitions: Mapping[str, str]) -> Metric:
    """What a task is scored in; where its kind is said, one that is measured of this kind.

    Raises:
        SettingError: names the line.
    """
    place = ("tasks", task)
    flags = text.mapping(place)
    check_flags(text, place, [name for name in flags if name not in ("metric", "planted")])
    name = flags.get("metric")
    known = sorted({metric for metrics in METRICS.values() for metric in metrics} | {"perplexity"})
    if "planted" in flags:
        known = list(PLANTED)
        try:
            planting(text.mapping((*place, "planted")))
        except SettingError as error:
            raise text.wrong((*place, "planted"), str(error)) from error
    if name not in known:
        said = "it has no `metric:`" if name is None else f"there is no metric {name!r}"
        raise text.wrong((*place, "metric"), f"task {task!r}: {said}.{near(str(name), known)} Give one of {', '.join(known)}.")
    _check_kind(text, task, str(name), definitions)
    larger = name not in SMALLER_IS_BETTER and name not in PLANTED
    return Metric(name=str(name), larger_is_better=larger, points=100.0 if name in POINTS or name in PLANTED else 1.0)


def _check_kind(text: Text, task: str, metric: str, definitions: Mapping[str, str]) -> None:
    """Refuse a metric that is never measured of a task of the kind that the file says."""
    place = ("tasks", task)
    flags: Mapping[str, Any] = filled({**text.mapping(("settings",)), **text.mapping(place)}, definitions)
    known = {kind: (*names, *(("perplexity",) if kind == "causal-lm" else ())) for kind, names in METRICS.items()}
    kind = flags.get("task")
    if isinstance(kind, str) and kind in known and "planted" not in flags and metric not in known[kind]:
        raise text.wrong((*place, "metric"), f"task {task!r}: of {kind} there is no {metric!r}; give one of {', '.join(known[kind])}.")
    names = flags.get("label_names")
    if metric == "f1" and isinstance(names, str | list) and len(listed(names) or ()) > 2:
        raise text.wrong((*place, "metric"), f"task {task!r}: f1 is that of one of two classes, and there are more; give f1_macro.")


def check_flags(text: Text, place: Place, flags: Iterable[str], *, own: bool = False) -> None:
    """Refuse flags that may not stand at a place.

    Args:
        text: the file.
        place: where they stand.
        flags: their names.
        own: they are a contestant's own, which is to differ from the others in nothing but itself.

    Raises:
        SettingError: names the line and the reason.
    """
    for name in flags:
        reason = check_flag(name) or (check_own(name) if own else None)
        if reason is not None:
            raise text.wrong((*place, name), f"{name!r} can't be set here: {reason}.")
