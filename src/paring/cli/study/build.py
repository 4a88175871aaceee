"""A study out of its file, every contestant on every task tried out before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paring.cli.data.metrics import METRICS, SMALLER_IS_BETTER
from paring.cli.study.flags import check_flag, filled, parsed, unfilled
from paring.cli.study.planted import METRICS as PLANTED
from paring.cli.study.planted import planting
from paring.cli.study.text import Place, Text
from paring.core.coding import is_whole
from paring.core.errors import ParingError, SettingError, near
from paring.study.plan import Cell, Listed, Range, Sampler, Search, Space, Study
from paring.study.records import Metric

TOP = ("name", "settings", "tasks", "contestants", "budgets", "search", "seeds", "threads")
SEARCH = ("trials", "sampler", "held", "evaluations", "prune", "first", "seed")
MOST_CELLS, MOST_SEEDS = 5000, 1000
"""Contestants on tasks at budgets, and runs of each with other seeds, that a study has."""
POINTS = frozenset({"accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman", "mean_token_accuracy"})
"""Metrics that are shares of one, which are told in percent."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A study, ready to be conducted.

    Attributes:
        study: the study.
        threads: of each run; noted with it, and no part of what it is known by.
        definitions: what stands for each ``$name`` that the file leaves to the command line.
    """

    study: Study
    threads: int
    definitions: Mapping[str, str]


def build(text: Text, definitions: Mapping[str, str], command: str = "") -> Built:
    """The study that a file describes.

    Args:
        text: the file.
        definitions: values for names that it leaves open.
        command: what repeats the study.

    Raises:
        SettingError: names the line and the reason.
    """
    text.mapping((), TOP)
    search, common = _search(text)
    tasks = text.mapping(("tasks",))
    contestants = text.mapping(("contestants",))
    for name, found in (("tasks", tasks), ("contestants", contestants)):
        if not found:
            raise text.wrong((name,), f"a study needs `{name}:`, at least one of them.")
    budgets = text.mapping(("budgets",))
    _check_flags(text, ("settings",), text.mapping(("settings",)))
    count = len(tasks) * len(contestants) * max(len(budgets), 1)
    if count > MOST_CELLS:
        raise text.wrong(("tasks",), f"contestants on tasks at budgets are {count:,} comparisons; at most {MOST_CELLS:,} are one study.")
    metrics = {task: _metric(text, task) for task in tasks}
    cells = [cell for contestant in contestants for task in tasks for cell in _cells(text, contestant, task, budgets, common, definitions)]
    study = Study(name=_name(text), cells=tuple(cells), metrics=metrics, seeds=_seeds(text), search=search, command=command)
    for cell in study.cells:
        try:
            search.count(cell.space)
        except SettingError as error:
            raise text.wrong(("search",), f"{cell.contestant}: {error}") from error
    used = {name for cell in cells for name in unfilled(cell.settings["flags"])}
    for name in definitions:
        if name not in used:
            raise SettingError(f"--define {name}=...: nothing in {str(text.path)!r} says ${name}.{near(name, used)}")
    return Built(study=study, threads=_whole(text, ("threads",), 1), definitions=definitions)


def _name(text: Text) -> str:
    name = text.data.get("name", text.path.stem)
    if not isinstance(name, str) or not name.strip():
        raise text.wrong(("name",), f"name is {name!r}; give a text.")
    return name


def _whole(text: Text, place: Place, default: int) -> int:
    found: Any = text.data.get(str(place[0]), default)
    if not is_whole(found, 1):
        raise text.wrong(place, f"{place[0]} is {found!r}; give a whole number of at least 1.")
    return found


def _seeds(text: Text) -> tuple[int, ...]:
    found = text.data.get("seeds", 3)
    if is_whole(found, 1, MOST_SEEDS):
        return tuple(range(found))
    if isinstance(found, list) and found and all(is_whole(seed, 0, 2**32 - 1) for seed in found):
        if len(set(found)) == len(found):
            return tuple(found)
        raise text.wrong(("seeds",), f"seeds {found} holds one twice, which would count the same run two times.")
    raise text.wrong(("seeds",), f"seeds is {found!r}; give how many, at most {MOST_SEEDS:,}, or a list of whole numbers from 0.")


def _search(text: Text) -> tuple[Search, Space]:
    """How is searched, and what over for every contestant."""
    found = text.mapping(("search",))
    space = {name: _values(text, ("search", name), value) for name, value in found.items() if name not in SEARCH}
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


def _values(text: Text, place: Place, value: Any) -> Listed | Range:
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


def _metric(text: Text, task: str) -> Metric:
    place = ("tasks", task)
    flags = text.mapping(place)
    _check_flags(text, place, {name: value for name, value in flags.items() if name not in ("metric", "planted")})
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
    larger = name not in SMALLER_IS_BETTER and name not in PLANTED
    return Metric(name=str(name), larger_is_better=larger, points=100.0 if name in POINTS or name in PLANTED else 1.0)


def _check_flags(text: Text, place: Place, flags: Mapping[str, Any]) -> None:
    for name in flags:
        reason = check_flag(name)
        if reason is not None:
            raise text.wrong((*place, name), f"{name!r} can't be set here: {reason}.")


def _cells(text: Text, contestant: str, task: str, budgets: Mapping[str, Any], common: Space, definitions: Mapping[str, str]) -> list[Cell]:
    """A contestant on a task: once, or at each budget if one of its settings says so."""
    place: Place = ("contestants", contestant)
    given = dict(text.mapping(place))
    searched = given.pop("search", None)
    space = dict(common)
    if searched is not None:
        space |= {name: _values(text, (*place, "search", name), value) for name, value in text.mapping((*place, "search")).items()}
    if ("method" in given) == ("peft" in given):
        raise text.wrong(place, f"contestant {contestant!r} needs either a `method:` of paring's or `peft:`, PEFT's own configuration.")
    _check_flags(text, place, {name: value for name, value in given.items() if name not in ("method", "peft")})
    if "peft" in given:
        text.mapping((*place, "peft"))
    flags = {**text.mapping(("settings",)), **text.mapping(("tasks", task)), **given}
    flags.pop("metric", None)
    flags.pop("planted", None)
    # What is given outright is not searched.
    space = {name: of for name, of in space.items() if name not in given}
    if "learning_rate" not in {**space, **flags}:
        raise text.wrong(place, f"contestant {contestant!r} has no learning_rate: search it (`search: learning_rate:`), or give one.")
    flags = {name: value for name, value in flags.items() if name not in space}
    named = {name for values in budgets.values() for name in (values if isinstance(values, dict) else ())}
    if not named.intersection(unfilled(given)):
        return [_cell(text, place, contestant, task, None, space, flags, definitions)]
    cells = []
    for budget in budgets:
        values = text.mapping(("budgets", budget))
        cells.append(_cell(text, place, contestant, task, budget, space, filled(flags, values), definitions))
    return cells


def _cell(
    text: Text,
    place: Place,
    contestant: str,
    task: str,
    budget: str | None,
    space: Space,
    flags: Mapping[str, Any],
    definitions: Mapping[str, str],
) -> Cell:
    """A cell whose flags have been tried out at both ends of what is searched."""
    missing = [name for name in unfilled(flags) if name not in definitions]
    if missing:
        known = [*definitions, *{name for values in text.mapping(("budgets",)).values() for name in (values or {})}]
        where = next((line for line in _places(flags, missing[0], place, task) if line in text.lines), place)
        raise text.wrong(where, f"nothing says what ${missing[0]} is.{near(missing[0], known)} Give --define {missing[0]}=VALUE.")
    for end in (min, max) if space else (min,):
        values = {name: end(of.values if isinstance(of, Listed) else (of.low, of.high)) for name, of in space.items()}
        try:
            _try(filled({**flags, **values, "seed": 0}, definitions))
        except ParingError as error:
            raise text.wrong(_blamed(text, place, task, str(error)), f"{contestant}: {error}") from error
    more = {"planted": dict(text.mapping(("tasks", task, "planted")))} if "planted" in text.mapping(("tasks", task)) else {}
    return Cell(contestant=contestant, task=task, budget=budget, space=space, settings={"flags": dict(flags), **more})


def _try(flags: Mapping[str, Any]) -> None:
    from paring.cli.run.checks import check_options
    from paring.cli.study.contestants import check_peft

    run = parsed(flags, str(Path("study")))
    check_options(run.options)
    if run.peft is not None:
        check_peft(run.peft)


def _places(flags: Mapping[str, Any], name: str, place: Place, task: str) -> list[Place]:
    holding = [flag for flag, value in flags.items() if name in unfilled(value)]
    return [(*above, flag) for flag in holding for above in (place, ("tasks", task), ("settings",))]


def _blamed(text: Text, place: Place, task: str, said: str) -> Place:
    """The line of the flag that an error speaks of; the contestant's own if it speaks of none."""
    for name in re.findall(r"--(\w+)|(?:flag or key|method|argument) '(\w+)'|\b(\w+)=", said):
        flag = next(word for word in name if word)
        for above in ((*place, "search"), place, (*place, "peft"), ("tasks", task), ("settings",), ("search",)):
            if (*above, flag) in text.lines:
                return (*above, flag)
    if said.startswith("Unknown method"):
        return (*place, "method")
    return (*place, "peft") if (*place, "peft") in text.lines else place
