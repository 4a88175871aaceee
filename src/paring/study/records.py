"""What a study is made of, as plain values: runs, and what came of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from paring.core.errors import DataError
from paring.core.records import Point


def named(contestant: str, budget: str | None) -> str:
    """A contestant at a budget, as tables and ``compare`` call it."""
    return contestant if budget is None else f"{contestant} @ {budget}"


class Phase(StrEnum):
    """What a run is for.

    ``SEARCH`` trains on a part of the training rows and is scored on the rest, as often as the study says. ``FINAL`` is scored once,
    at its end, on the rows that nothing was chosen by.
    """

    SEARCH = "search"
    FINAL = "final"


class State(StrEnum):
    """How a run ended: at its end, cut short since others were better at that point, or in an error."""

    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        contestant, task, budget: which of the study's; a study without budgets has ``None``.
        phase: what it is for.
        seed: of the head, the adapter's start, the order of the rows and dropout.
        settings: everything else that its result depends on, as plain data; digests of the data among it.
    """

    contestant: str
    task: str
    budget: str | None
    phase: Phase
    seed: int
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """SHA-256 of all that the result depends on. What things are called in the study is not among it, so renaming repeats no run."""
        data = {"phase": self.phase, "seed": self.seed, "settings": self.settings}
        return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def label(self) -> str:
        """The run in a few words."""
        budget = "" if self.budget is None else f" at {self.budget}"
        return f"{self.contestant}{budget} on {self.task}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run.

    Attributes:
        state: how it ended.
        metrics: at its end, ``{"accuracy": 0.91}``; empty for a run that failed.
        history: logged values over optimizer steps.
        steps: optimizer steps taken.
        seconds: wall time of training, evaluations left out.
        setup_seconds: wall time of making the adapter, before the first step: what a start computes, and batches that it is read off;
            model and data are loaded before. ``None`` if unknown.
        cpu_seconds: processor time of training, of all its threads, evaluations included (a final run has none): what else ran on the
            machine matters less to it. ``None`` if unknown.
        memory: the most bytes that were held while it trained, on the accelerator if there is one; ``None`` if unknown.
        parameters: adapter parameters at the end; ``None`` if there is no adapter.
        start_parameters: the same at the start.
        file_bytes: bytes of the adapter's weights as they are saved.
        error: what went wrong, in a sentence.
        started: ISO 8601 time, UTC.
        versions: package name to version.
        machine: processor, cores, threads, accelerator, as plain data.
        defaults: what it had by default, by setting, as plain data; empty if that was not noted.
    """

    state: State
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: tuple[Point, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    setup_seconds: float | None = None
    cpu_seconds: float | None = None
    memory: int | None = None
    parameters: int | None = None
    start_parameters: int | None = None
    file_bytes: int | None = None
    error: str | None = None
    started: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def outdated(self, today: Mapping[str, Any]) -> Mapping[str, tuple[Any, Any]]:
        """The defaults that are others today, as then and now; what only one of them knows has changed nothing."""
        both = self.defaults.keys() & today.keys()
        return {name: (self.defaults[name], today[name]) for name in sorted(both) if self.defaults[name] != today[name]}

    def encode(self) -> str:
        """As JSON text, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=True)

    @classmethod
    def decode(cls, text: str) -> Outcome:
        """Undo :meth:`encode`."""
        data = json.loads(text)
        data["history"] = tuple(Point(**point) for point in data["history"])
        return cls(**{**data, "state": State(data["state"])})


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What the machine did to a run, which is therefore no result of its contestant.

    Attributes:
        error: in a part of a sentence.
    """

    error: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting that was tried in a search.

    Attributes:
        values: what was searched over, ``{"learning_rate": 0.001}``.
        state: how it ended.
        score: the task's metric on the tuning rows; ``None`` unless it was finished.
    """

    values: Mapping[str, float]
    state: State
    score: float | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contestant on a task, at a budget: what was tried, what was chosen, and how that did.

    Attributes:
        contestant, task, budget: which.
        trials: of the search, in the order in which they were made.
        chosen: the best of them; ``None`` if every one failed.
        edges: the names of what was chosen at the end of what could have been, so that something better may lie beyond.
        scores: of the final runs by seed, in the task's metric; ``None`` for one that failed.
        parameters: adapter parameters of the final runs by seed.
        start_parameters: those that they started with.
        file_bytes: bytes of the adapter's weights as saved, by seed.
        seconds: of training, by seed.
        cpu_seconds: processor time of training, by seed.
        setup_seconds: of making the adapter, by seed.
        search_seconds: of all runs of the search together.
        memory: the most bytes held, by seed.
        errors: what went wrong in runs that failed, by what they were.
    """

    contestant: str
    task: str
    budget: str | None
    trials: tuple[Trial, ...]
    chosen: Mapping[str, float] | None
    edges: tuple[str, ...]
    scores: tuple[float | None, ...]
    parameters: tuple[int | None, ...]
    start_parameters: tuple[int | None, ...]
    file_bytes: tuple[int | None, ...]
    seconds: tuple[float | None, ...]
    search_seconds: float
    memory: tuple[int | None, ...]
    cpu_seconds: tuple[float | None, ...] = ()
    setup_seconds: tuple[float | None, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Contestant and budget."""
        return named(self.contestant, self.budget)

    @property
    def tuned(self) -> float | None:
        """The score on the tuning rows of what was chosen; ``None`` where nothing was searched, or chosen."""
        scores = (trial.score for trial in self.trials if trial.score is not None and trial.values == self.chosen)
        return next(scores, None)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a task is scored in.

    Attributes:
        name: its key.
        larger_is_better: which way is up.
        points: what one unit is told as, 100 for shares of one.
    """

    name: str
    larger_is_better: bool
    points: float

    @property
    def share(self) -> bool:
        """Whether it is a share, told in percent."""
        return self.points == 100.0


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a study has found.

    Attributes:
        name: of the study.
        command: what repeats it.
        seeds: of the final runs.
        metrics: of each task.
        entries: all of them, in the study's order.
        versions, machines: every value that a run has noted, so that a mixture shows.
        counts: how many runs ended in which state.
        held_out: the tasks whose final runs were scored on rows that were held out of those to train on.
    """

    name: str
    command: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, Metric]
    entries: tuple[Entry, ...]
    versions: Mapping[str, Sequence[str]]
    machines: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int]
    held_out: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Everything, as JSON text."""
        return json.dumps(asdict(self), indent=1, allow_nan=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Findings:
        """Undo :meth:`to_json`.

        Raises:
            DataError: it was not written so.
        """
        try:
            data = json.loads(text)
            data["metrics"] = {task: Metric(**metric) for task, metric in data["metrics"].items()}
            data["entries"] = tuple(_entry(entry) for entry in data["entries"])
            data["seeds"] = tuple(data["seeds"])
            data["held_out"] = tuple(data.get("held_out", ()))
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"This is not what a study has found: {error!r}.") from error

    def of(self, name: str) -> dict[str, Entry]:
        """The entries of a contestant at a budget (:attr:`Entry.name`), by task."""
        return {entry.task: entry for entry in self.entries if entry.name == name}

    @property
    def names(self) -> tuple[str, ...]:
        """All of :attr:`Entry.name`, in order."""
        return tuple(dict.fromkeys(entry.name for entry in self.entries))


def _entry(data: Mapping[str, Any]) -> Entry:
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    given["trials"] = tuple(Trial(**{**trial, "state": State(trial["state"])}) for trial in data["trials"])
    return Entry(**given)
