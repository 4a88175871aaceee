"""A study out of its file, every contestant on every task tried out before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paring.cli.study.flags import filled, parsed, unfilled
from paring.cli.study.parts import budgets_of, check_flags, metric_of, name_of, search_of, seeds_of, values_of, whole
from paring.cli.study.text import Place, Text
from paring.core.errors import ParingError, SettingError, near
from paring.study.plan import Cell, Search, Space, Study
from paring.study.records import named

TOP = ("name", "settings", "tasks", "contestants", "budgets", "search", "seeds", "threads")
MOST_CELLS = 5000
"""Contestants on tasks at budgets that a study has."""


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
    search, common = search_of(text)
    tasks = text.mapping(("tasks",))
    contestants = text.mapping(("contestants",))
    for name, found in (("tasks", tasks), ("contestants", contestants)):
        if not found:
            raise text.wrong((name,), f"a study needs `{name}:`, at least one of them.")
    budgets = budgets_of(text)
    check_flags(text, ("settings",), text.mapping(("settings",)))
    count = len(tasks) * len(contestants) * max(len(budgets), 1)
    if count > MOST_CELLS:
        raise text.wrong(("tasks",), f"contestants on tasks at budgets are {count:,} comparisons; at most {MOST_CELLS:,} are one study.")
    metrics = {task: metric_of(text, task, definitions) for task in tasks}
    cells = [
        cell
        for contestant in contestants
        for task in tasks
        for cell in _cells(text, contestant, task, budgets, (search, common), definitions)
    ]
    study = Study(name=name_of(text), cells=tuple(cells), metrics=metrics, seeds=seeds_of(text), search=search, command=command)
    _check_budgets(text, budgets)
    _check_labels(text, cells)
    _check_rates(text, common)
    for cell in study.cells:
        try:
            search.count(cell.space)
        except SettingError as error:
            raise text.wrong(("search",), f"{cell.contestant}: {error}") from error
    used = {name for cell in cells for name in unfilled(cell.settings["flags"])}
    for name in definitions:
        if name not in used:
            raise SettingError(f"--define {name}=...: nothing in {str(text.path)!r} says ${name}.{near(name, used)}")
    return Built(study=study, threads=whole(text, ("threads",), 1), definitions=definitions)


def _check_budgets(text: Text, budgets: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse values that no contestant asks for."""
    used = {name for given in text.mapping(("contestants",)).values() for name in unfilled(given)}
    for budget, values in budgets.items():
        for name in values:
            if name not in used:
                raise text.wrong(("budgets", budget, name), f"budget {budget!r}: no contestant says ${name}.{near(name, used)}")


def _check_labels(text: Text, cells: Sequence[Cell]) -> None:
    """Refuse two contestants of one name, which tables could not tell apart."""
    seen: dict[tuple[str, str], str] = {}
    for cell in cells:
        label = named(cell.contestant, cell.budget)
        other = seen.setdefault((label, cell.task), cell.contestant)
        if other != cell.contestant:
            line = text.lines["contestants", other]
            said = f"{label!r} is also what the contestant of line {line} is called at a budget; give one of them another name."
            raise text.wrong(("contestants", cell.contestant), said)


def _check_rates(text: Text, common: Space) -> None:
    """Refuse a value for all of what is searched for all."""
    for above in (("settings",), *(("tasks", task) for task in text.mapping(("tasks",)))):
        for name in common:
            if name in text.mapping(above):
                line = text.lines["search", name]
                raise text.wrong((*above, name), f"{name} is given here, and searched over in line {line}; leave one of them out.")


def _cells(
    text: Text,
    contestant: str,
    task: str,
    budgets: Mapping[str, Mapping[str, Any]],
    searched_for_all: tuple[Search, Space],
    definitions: Mapping[str, str],
) -> list[Cell]:
    """A contestant on a task: once, or at each budget if one of its settings says so."""
    search, common = searched_for_all
    place: Place = ("contestants", contestant)
    given = dict(text.mapping(place))
    searched = given.pop("search", None)
    space = dict(common)
    if searched is not None:
        check_flags(text, (*place, "search"), text.mapping((*place, "search")), own=True)
        space |= {name: values_of(text, (*place, "search", name), value) for name, value in text.mapping((*place, "search")).items()}
    if ("method" in given) == ("peft" in given):
        raise text.wrong(place, f"contestant {contestant!r} needs either a `method:` of paring's or `peft:`, PEFT's own configuration.")
    check_flags(text, place, [name for name in given if name not in ("method", "peft")], own=True)
    if "peft" in given and not text.mapping((*place, "peft")):
        raise text.wrong((*place, "peft"), "peft is empty; give PEFT's own configuration, such as {peft_type: LORA, r: 8}.")
    for name in text.mapping((*place, "search")):
        if name in given:
            line = text.lines[(*place, "search", name)]
            raise text.wrong((*place, name), f"{name} is given here, and searched over in line {line}; leave one of them out.")
    flags = {**text.mapping(("settings",)), **text.mapping(("tasks", task)), **given}
    flags.pop("metric", None)
    if flags.pop("planted", None) is not None and flags.get("head_learning_rate") is not None:
        above = next(one for one in (place, ("tasks", task), ("settings",)) if "head_learning_rate" in text.mapping(one))
        raise text.wrong(
            (*above, "head_learning_rate"), f"planted ranks ({task!r}) are learned without a head; leave head_learning_rate out."
        )
    # What is given outright is not searched.
    space = {name: of for name, of in space.items() if name not in given}
    if "learning_rate" not in {**space, **flags}:
        raise text.wrong(place, f"contestant {contestant!r} has no learning_rate: search it (`search: learning_rate:`), or give one.")
    flags = {name: value for name, value in flags.items() if name not in space}
    if not {name for values in budgets.values() for name in values}.intersection(unfilled(given)):
        return [_cell(text, place, contestant, task, None, (search, space), flags, definitions)]
    cells = []
    for budget, values in budgets.items():
        cells.append(_cell(text, place, contestant, task, budget, (search, space), filled(flags, values), definitions))
    return cells


def _cell(
    text: Text,
    place: Place,
    contestant: str,
    task: str,
    budget: str | None,
    searched: tuple[Search, Space],
    flags: Mapping[str, Any],
    definitions: Mapping[str, str],
) -> Cell:
    """A cell whose flags have been tried out at both ends of what is searched."""
    search, space = searched
    missing = [name for name in unfilled(flags) if name not in definitions]
    if missing:
        known = [*definitions, *{name for values in budgets_of(text).values() for name in values}]
        where = next((line for line in _places(flags, missing[0], place, task) if line in text.lines), place)
        raise text.wrong(where, f"nothing says what ${missing[0]} is.{near(missing[0], known)} Give --define {missing[0]}=VALUE.")
    for values in search.ends(space)[: 2 if space else 1]:
        try:
            _try(filled({**flags, **values, "seed": 0}, definitions))
        except ParingError as error:
            raise text.wrong(_blamed(text, place, task, str(error)), f"{contestant}: {error}") from error
    more = {"planted": dict(text.mapping(("tasks", task, "planted")))} if "planted" in text.mapping(("tasks", task)) else {}
    return Cell(contestant=contestant, task=task, budget=budget, space=space, settings={"flags": dict(flags), **more})


def _try(flags: Mapping[str, Any]) -> None:
    from paring.cli.run.checks import check_options
    from paring.cli.run.whole import refuse_head_rate
    from paring.cli.study.contestants import check_peft
    from paring.train.whole import Whole

    run = parsed(flags, str(Path("study")))
    check_options(run.options)
    if isinstance(run.method, Whole):
        refuse_head_rate(run.options, run.method)
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
