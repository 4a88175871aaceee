"""Choosing a setting: Optuna proposes, and judges which trial is cut short; what has run before is not run again.

A cell's trials follow each other, so what is tried follows from the study alone: a study that was interrupted proposes the same settings
again, finds them in its database, and goes on behind them.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from paring.core.records import Point
from paring.study.plan import Cell, Listed, Sampler, Search, Space, Study
from paring.study.records import Entry, Job, Metric, Outcome, State, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)

EVALUATED = "eval_"
"""What logged metrics on rows held out begin with."""

SEEN_BY = {"perplexity": "loss"}
"""What is logged in the place of a metric that is known at the end alone, and ranks trials as the metric does."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """When a trial is cut short: below the median of the trials before it, at the same evaluation, in the second half of a training.

    Of ``E`` evaluations those before the one of number ``E / 2``, rounded up, cut nothing: a large rate begins behind and ends ahead.
    Nor does the last one, since it saves nothing. Source: Golovin et al., KDD (2017), the median stopping rule, as Optuna has it.

    Attributes:
        metric: what they are compared by.
        before: of each earlier trial, the metric at each of its evaluations.
        first: so many trials are never cut short.
        evaluations: of a whole trial.
    """

    metric: Metric
    before: tuple[tuple[float, ...], ...] = ()
    first: int = 2
    evaluations: int = 4

    def is_due(self, values: Sequence[float]) -> bool:
        """Whether a trial with these evaluations so far is to end here."""
        if not values or len(values) >= self.evaluations or len(self.before) < self.first:
            return False
        # Optuna counts evaluations from 0, and heeds the one whose number is that of warm-up.
        late = math.ceil(self.evaluations / 2) - 1
        study = optuna.create_study(
            direction=_direction(self.metric), pruner=optuna.pruners.MedianPruner(n_startup_trials=self.first, n_warmup_steps=late)
        )
        for earlier in self.before:
            if len(earlier) == self.evaluations:
                study.add_trial(create_trial(value=earlier[-1], intermediate_values=dict(enumerate(earlier))))
            elif earlier:
                study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values=dict(enumerate(earlier))))
        trial = study.ask()
        for step, value in enumerate(values):
            trial.report(value, step)
        return bool(trial.should_prune())

    def length(self, values: Sequence[float]) -> int:
        """At how many of a whole trial's evaluations it would have been cut short; all of them if it would not."""
        return next((count for count in range(1, len(values)) if self.is_due(values[:count])), len(values))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A run that is to be made, and when it may be cut short."""

    job: Job
    cut: Cut | None = None


def _direction(metric: Metric) -> StudyDirection:
    return StudyDirection.MAXIMIZE if metric.larger_is_better else StudyDirection.MINIMIZE


def logged(metric: Metric) -> str:
    """The name under which evaluations log what trials are cut short by: the metric's own, or that of :data:`SEEN_BY`."""
    return f"{EVALUATED}{SEEN_BY.get(metric.name, metric.name)}"


def evaluations(history: Sequence[Point], metric: Metric) -> tuple[float, ...]:
    """What trials are cut short by, on the held-out rows, at each evaluation that was logged."""
    name = logged(metric)
    return tuple(point.values[name] for point in history if name in point.values)


def _sampler(search: Search, space: Space) -> optuna.samplers.BaseSampler:
    kind = search.sampler_for(space)
    if kind is Sampler.RANDOM:
        return optuna.samplers.RandomSampler(seed=search.seed)
    # A few trials are all there are, so the model has to begin early.
    startup = max(2, search.count(space) // 3)
    if kind is Sampler.TPE:
        return optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=startup)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=search.seed, n_startup_trials=startup, deterministic_objective=False)


def grid(space: Space) -> list[dict[str, float]]:
    """All settings of a listed space, from its middle outwards, so that the first ones are no bad measure for those that follow."""
    lists = {name: of.values for name, of in space.items() if isinstance(of, Listed)}
    places = itertools.product(*(range(len(values)) for values in lists.values()))

    def distance(place: tuple[int, ...]) -> float:
        return sum(abs(index - (len(values) - 1) / 2) / len(values) for index, values in zip(place, lists.values(), strict=True))

    return [
        {name: values[index] for index, (name, values) in zip(place, lists.items(), strict=True)} for place in sorted(places, key=distance)
    ]


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {
        name: CategoricalDistribution(list(of.values)) if isinstance(of, Listed) else FloatDistribution(of.low, of.high, log=True)
        for name, of in space.items()
    }


def judged(outcome: Outcome, cut: Cut | None) -> State | None:
    """How a stored run counts for a search in which it may be cut short; ``None`` if it says too little and has to be made again.

    A trial that was cut short elsewhere may not be so here, and the other way round.
    """
    if cut is None or outcome.state is State.FAILED:
        return None if outcome.state is State.PRUNED else outcome.state
    values = evaluations(outcome.history, cut.metric)
    if cut.length(values) < len(values):
        return State.PRUNED
    if outcome.state is State.PRUNED:
        return State.PRUNED if cut.is_due(values) else None
    return State.FINISHED


@dataclass(kw_only=True)
class _Searched:
    """What a search has found so far.

    Attributes:
        trials: all of them.
        seen: the last trial's evaluations, to where it was cut short.
        seconds: of all trials together.
        errors: by trial.
        best: the best score and its loss, both so that more is better, and the values that had them.
    """

    trials: list[Trial] = field(default_factory=list)
    seen: tuple[float, ...] = ()
    seconds: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)
    best: tuple[tuple[float, float], Mapping[str, float]] | None = None


def conducted(study: Study, cell: Cell) -> Generator[Sequence[Asked], Sequence[Outcome], Entry]:
    """One cell: asks for runs, is sent what came of them, and ends with what was found."""
    searched = (yield from _search(study, cell)) if cell.space else _Searched()
    chosen: Mapping[str, float] | None = {} if not cell.space else None if searched.best is None else searched.best[1]
    outcomes: Sequence[Outcome] = ()
    if chosen is not None:
        metric = study.metrics[cell.task]
        outcomes = yield tuple(Asked(job=study.final(cell, seed, chosen)) for seed in study.seeds)
        for seed, one in zip(study.seeds, outcomes, strict=True):
            if one.error is not None or _score(one, metric) is None:
                searched.errors[f"seed {seed}"] = one.error or _unscored(metric)
    return _entry(study, cell, searched, chosen, outcomes)


def _search(study: Study, cell: Cell) -> Generator[Sequence[Asked], Sequence[Outcome], _Searched]:
    """The trials of a cell, one after the other."""
    metric, search, space = study.metrics[cell.task], study.search, cell.space
    found = _Searched()
    proposed = _gridded(search, space, found) if search.sampler_for(space) is Sampler.GRID else _sampled(search, space, found, metric)
    before: tuple[tuple[float, ...], ...] = ()
    for number, values in enumerate(proposed):
        cut = Cut(metric=metric, before=before, first=search.first, evaluations=search.evaluations) if search.prune else None
        (outcome,) = yield (Asked(job=study.trial(cell, values), cut=cut),)
        found.seconds += outcome.seconds
        state = judged(outcome, cut) or outcome.state
        seen = evaluations(outcome.history, metric)
        score = _score(outcome, metric) if state is State.FINISHED else None
        if state is State.FINISHED and score is None:
            state, found.errors[f"trial {number}"] = State.FAILED, _unscored(metric)
        if outcome.error is not None:
            found.errors[f"trial {number}"] = outcome.error
        if score is not None:
            before = (*before, seen)
            # Of equal ones the lower loss.
            rank = (score if metric.larger_is_better else -score, -outcome.metrics.get("loss", 0.0))
            found.best = (rank, values) if found.best is None or rank > found.best[0] else found.best
        elif state is State.PRUNED:
            seen = seen[: cut.length(seen)] if cut is not None else seen
            before = (*before, seen)
        found.seen = seen
        found.trials.append(Trial(values=values, state=state, score=score))
    return found


def _gridded(search: Search, space: Space, found: _Searched) -> Iterator[dict[str, float]]:
    """All settings of a grid, and beyond it as long as the best lies at an end."""
    yield from grid(space)[: search.count(space)]
    for _ in range(search.beyond(space)):
        values = _beyond(space, found)
        if values is None:
            return
        yield values


def _beyond(space: Space, found: _Searched) -> dict[str, float] | None:
    """The best setting with the first knob moved on whose value lies at an end of what was tried; ``None`` if there is none."""
    if found.best is None:
        return None
    best = found.best[1]
    for name, values in space.items():
        tried = [trial.values[name] for trial in found.trials]
        if isinstance(values, Listed) and values.widens and values.at_edge(best[name], tried):
            return {**best, name: values.beyond(best[name], tried)}
    return None


def _sampled(search: Search, space: Space, found: _Searched, metric: Metric) -> Iterator[dict[str, float]]:
    """Settings that a sampler proposes by what came of those before."""
    optimiser = optuna.create_study(direction=_direction(metric), sampler=_sampler(search, space))
    for _ in range(search.count(space)):
        asked = optimiser.ask(_distributions(space))
        yield {name: float(value) for name, value in asked.params.items()}
        trial = found.trials[-1]
        if trial.score is not None:
            optimiser.tell(asked, trial.score)
        elif trial.state is State.PRUNED:
            for step, value in enumerate(found.seen):
                asked.report(value, step)
            optimiser.tell(asked, state=TrialState.PRUNED)
        else:
            optimiser.tell(asked, state=TrialState.FAIL)


def _score(outcome: Outcome, metric: Metric) -> float | None:
    value = outcome.metrics.get(metric.name)
    return value if value is not None and abs(value) < float("inf") else None


def _unscored(metric: Metric) -> str:
    return f"the metric {metric.name} is not among what was measured, or not finite"


def _entry(
    study: Study,
    cell: Cell,
    searched: _Searched,
    chosen: Mapping[str, float] | None,
    outcomes: Sequence[Outcome],
) -> Entry:
    finished = [one if one.state is State.FINISHED else None for one in outcomes] or [None] * len(study.seeds)

    def each(of: Any) -> tuple[Any, ...]:
        return tuple(None if one is None else of(one) for one in finished)

    metric = study.metrics[cell.task]
    return Entry(
        contestant=cell.contestant,
        task=cell.task,
        budget=cell.budget,
        trials=tuple(searched.trials),
        chosen=chosen,
        edges=tuple(
            name
            for name, value in (chosen or {}).items()
            if cell.space[name].at_edge(value, [trial.values[name] for trial in searched.trials])
        ),
        scores=each(lambda one: _score(one, metric)),
        parameters=each(lambda one: one.parameters),
        start_parameters=each(lambda one: one.start_parameters),
        file_bytes=each(lambda one: one.file_bytes),
        seconds=each(lambda one: one.seconds),
        cpu_seconds=each(lambda one: one.cpu_seconds),
        setup_seconds=each(lambda one: one.setup_seconds),
        search_seconds=searched.seconds,
        memory=each(lambda one: one.memory),
        errors=searched.errors,
    )
