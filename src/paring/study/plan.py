"""A study as a plan: what is compared, what is searched over, and by which means."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from paring.core.coding import is_whole, number, positive_int
from paring.core.errors import SettingError
from paring.study.records import Job, Metric, Phase, named

EDGE = 0.1
"""The share of a range, on the scale that is searched, that counts as its edge."""

MOST_BEYOND = 20
"""Values beyond a list that a cell may try."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Values to choose from.

    Attributes:
        values: all of them, ascending.

    Raises:
        SettingError: there are none, or they do not ascend.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or any(not math.isfinite(value) for value in self.values):
            raise SettingError(f"values={list(self.values)!r}: give at least one finite number.")
        if any(first >= second for first, second in zip(self.values, self.values[1:], strict=False)):
            raise SettingError(f"values={list(self.values)!r}: give them ascending, each once.")

    def at_edge(self, value: float, tried: Collection[float]) -> bool:
        """Whether something better may lie beyond what was tried, a part of a list where trials are fewer; one setting has no edge."""
        return len(self.values) > 1 and value in (min(tried), max(tried))

    @property
    def widens(self) -> bool:
        """Whether it can be gone beyond: it has steps, and by factors, which take a value above 0 to begin with."""
        return len(self.values) > 1 and self.values[0] > 0

    def beyond(self, value: float, tried: Collection[float]) -> float:
        r"""The next value past an end.

        A list goes on as it came: with values :math:`v_1 < \dots < v_n` at hand the next one is :math:`v_{n-1} v_n / v_{n-2}`, so that
        1e-3, 3e-3, 1e-2 are followed by 3e-2, and :math:`v_n^2 / v_{n-1}` after two; below the first one likewise.

        Args:
            value: the end.
            tried: values beyond the list that were tried before.
        """
        known = sorted({*self.values, *tried}, reverse=value == min(*self.values, *tried))
        last, before = known[-1], known[-2]
        following = last * last / before if len(known) == 2 else before * last / known[-3]
        return float(f"{following:.6g}")


@dataclass(frozen=True, kw_only=True)
class Range:
    """A range to choose from, on a logarithmic scale.

    Attributes:
        low, high: its ends, above 0.

    Raises:
        SettingError: it is none.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        number("low", self.low, low=0.0, open_low=True)
        number("high", self.high, low=self.low, open_low=True)

    def at_edge(self, value: float, tried: Collection[float]) -> bool:
        """Whether something better may lie beyond: the value is in the outermost tenth, on the logarithmic scale."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return not EDGE <= share <= 1 - EDGE


Space: TypeAlias = Mapping[str, Listed | Range]
"""What is searched over, by name."""


class Sampler(StrEnum):
    """How the next setting is chosen: the whole grid, a Gaussian process, a tree-structured Parzen estimator, or at random."""

    GRID = "grid"
    GP = "gp"
    TPE = "tpe"
    RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Search:
    """How every contestant is tuned, the same for all.

    Attributes:
        trials: settings that are tried for each contestant on each task; ``None`` tries the whole grid, and needs one.
        sampler: how the next is chosen; ``None`` takes the grid where everything is listed, and else a Gaussian process.
        held: share of the training rows that settings are chosen by, and that no trial is trained on.
        evaluations: how often a trial is scored on them while it trains; 1 is at its end only.
        prune: cut a trial short that is below the median of those before it, at one of its evaluations from the half of them on, the last
            one left out (of 4: the second and the third); needs ``evaluations`` above 1.
        first: trials that are never cut short.
        widen: where the best of a grid lies at an end of a list, so many more values are tried beyond it, one after the other, as long as
            the last one was the best; of a knob whose list has a value of 0 or below, none.
        seed: of the trials' trainings, the held rows and the sampler.

    Raises:
        SettingError: a value is out of range, or pruning can't see anything.
    """

    trials: int | None = None
    sampler: Sampler | None = None
    held: float = 0.1
    evaluations: int = 4
    prune: bool = True
    first: int = 2
    widen: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials is not None:
            positive_int("trials", self.trials)
        number("held", self.held, low=0.0, high=1.0, open_low=True, open_high=True)
        positive_int("evaluations", self.evaluations)
        positive_int("first", self.first)
        if not is_whole(self.seed, 0, 2**32 - 1):
            raise SettingError(f"seed={self.seed!r}: give a whole number from 0 to {2**32 - 1}.")
        given: object = self.prune
        if not isinstance(given, bool):
            raise SettingError(f"prune={given!r}: give true or false.")
        if not is_whole(self.widen, 0, MOST_BEYOND):
            raise SettingError(f"widen={self.widen!r}: give a whole number from 0 to {MOST_BEYOND}.")
        if self.widen and (self.trials is not None or self.sampler not in (None, Sampler.GRID)):
            raise SettingError(f"widen={self.widen} goes beyond a grid all of which was tried; leave trials and sampler out.")
        if self.prune and self.evaluations < 2:
            raise SettingError("prune=true needs evaluations of at least 2: a trial that is scored at its end only cannot be cut short.")

    def sampler_for(self, space: Space) -> Sampler:
        """The sampler for a space.

        Raises:
            SettingError: it cannot search it.
        """
        listed = all(isinstance(values, Listed) for values in space.values())
        chosen = self.sampler or (Sampler.GRID if listed else Sampler.GP)
        if chosen is Sampler.GRID and not listed:
            names = ", ".join(name for name, values in space.items() if isinstance(values, Range))
            raise SettingError(f"sampler=grid: {names} is a range; list its values, or take another sampler.")
        return chosen

    def count(self, space: Space) -> int:
        """The most trials in a space.

        Raises:
            SettingError: nothing says how many.
        """
        if not space:
            return 0
        if self.sampler_for(space) is Sampler.GRID:
            whole = math.prod(len(values.values) for values in space.values() if isinstance(values, Listed))
            return whole + self.beyond(space) if self.trials is None else min(self.trials, whole)
        if self.widen:
            names = ", ".join(name for name, values in space.items() if isinstance(values, Range))
            raise SettingError(f"widen={self.widen}: {names} is a range, whose ends you give; list its values, or leave widen out.")
        if self.trials is None:
            raise SettingError("trials: say how many settings are tried where a range is searched.")
        return self.trials

    def beyond(self, space: Space) -> int:
        """The most trials beyond a space's lists."""
        return self.widen if any(isinstance(values, Listed) and values.widens for values in space.values()) else 0

    def ends(self, space: Space) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """The smallest and the largest value that may be tried of everything that is searched over."""
        low: dict[str, float] = {}
        high: dict[str, float] = {}
        for name, values in space.items():
            if isinstance(values, Range):
                low[name], high[name] = values.low, values.high
                continue
            tried = values.values
            for _ in range(self.widen if values.widens else 0):
                tried = (values.beyond(min(tried), tried), *tried, values.beyond(max(tried), tried))
            low[name], high[name] = min(tried), max(tried)
        return low, high


class Scored(StrEnum):
    """What final runs are scored on: all rows that the task has for it, a sample of them, or rows held out of those to train on."""

    WHOLE = "whole"
    SAMPLED = "sampled"
    HELD_OUT = "held out"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A contestant on a task, at a budget.

    Attributes:
        contestant, task, budget: which.
        space: what is searched over; empty where all is given.
        settings: all else that a run's result depends on, as plain data.
        scored: on which rows; those that are drawn are drawn once, by the search's seed, and are the same for every run.
    """

    contestant: str
    task: str
    budget: str | None
    space: Space
    settings: Mapping[str, Any]
    scored: Scored = Scored.WHOLE

    @property
    def name(self) -> str:
        """The cell in a few words."""
        return f"{named(self.contestant, self.budget)} on {self.task}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, and how.

    Attributes:
        name: of the study.
        cells: all of them.
        metrics: of each task.
        seeds: of the final runs.
        search: how settings are chosen.
        command: what repeats the study.
    """

    name: str
    cells: tuple[Cell, ...]
    metrics: Mapping[str, Metric]
    seeds: tuple[int, ...]
    search: Search
    command: str = ""

    @property
    def runs(self) -> int:
        """The most runs that it takes."""
        return sum(map(self.runs_of, self.cells))

    def runs_of(self, cell: Cell) -> int:
        """The most runs of a cell: its trials, and one for each seed."""
        return self.search.count(cell.space) + len(self.seeds)

    @property
    def held_out(self) -> tuple[str, ...]:
        """The tasks whose final runs are scored on rows that are held out of those to train on."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells if cell.scored is Scored.HELD_OUT))

    def trial(self, cell: Cell, values: Mapping[str, float]) -> Job:
        """A run of the search; by its seed the rows are drawn that final runs are scored on, so it is trained on none of these."""
        search = self.search
        looked = {"held": search.held, "held_seed": search.seed, "evaluations": search.evaluations}
        return self._job(cell, Phase.SEARCH, search.seed, {**cell.settings, "values": dict(values), "search": looked})

    def final(self, cell: Cell, seed: int, values: Mapping[str, float]) -> Job:
        """A run with the chosen setting."""
        drawn = {} if cell.scored is Scored.WHOLE else {"drawn": self.search.seed}
        return self._job(cell, Phase.FINAL, seed, {**cell.settings, "values": dict(values), **drawn})

    @staticmethod
    def _job(cell: Cell, phase: Phase, seed: int, settings: Mapping[str, Any]) -> Job:
        return Job(contestant=cell.contestant, task=cell.task, budget=cell.budget, phase=phase, seed=seed, settings=settings)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long a run takes, from a few timed steps.

    Attributes:
        setup: seconds before the first step and after the last.
        step: seconds of an optimizer step.
        steps: optimizer steps of a final run.
        score: seconds to score the rows that a final run is scored on.
        details: what it was measured by.
    """

    setup: float
    step: float
    steps: int
    score: float
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of a final run."""
        return self.setup + self.step * self.steps + self.score
