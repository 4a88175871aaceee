"""Conducting a study: all its cells side by side, in processes, with every run kept as it ends."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from paring.core.errors import SettingError, StudyError
from paring.study.plan import Estimate, Listed, Range, Study
from paring.study.pool import Died, Pool
from paring.study.records import Entry, Fault, Findings, Job, Outcome, State
from paring.study.search import Asked, conducted, judged
from paring.study.store import Store


class Watch(Protocol):
    """Who is told how a study goes."""

    def begun(self, asked: Asked) -> None:
        """A run has begun."""

    def ended(self, asked: Asked, outcome: Outcome, *, found: bool) -> None:
        """A run has ended, or was found among those that had."""

    def outdated(self, asked: Asked, changed: Mapping[str, tuple[Any, Any]]) -> None:
        """A run that was found had other defaults, here as then and now, so it is made again."""


@dataclass(eq=False)
class _Chain:
    """A cell under way: what it waits for, and what has come of it."""

    steps: Generator[Sequence[Asked], Sequence[Outcome], Entry]
    waiting: dict[int, Asked] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    entry: Entry | None = None


def conduct(
    study: Study,
    store: Store,
    work: Callable[[Asked], Outcome | Fault],
    *,
    workers: int = 1,
    threads: int = 1,
    retry: bool = False,
    today: Callable[[Job], Mapping[str, Any]] | None = None,
    watch: Watch | None = None,
) -> Findings:
    """Make all runs that are not in the store yet, and gather what was found.

    Args:
        study: what is compared.
        store: keeps every run as it ends.
        work: makes one run; a function at the top of a module.
        workers: processes.
        threads: of each; results may depend on it in their last bits. It is noted with each run, and no part of what a run is known by.
        retry: make runs again that had failed.
        today: what a run has by default; one in the store that had other defaults is made again. ``None`` takes all that are there.
        watch: is told how it goes.

    Returns:
        What was found. It depends on the study alone, and not on how often it was interrupted, or on the workers.

    Raises:
        StudyError: a run met a fault of the machine; it is made again by the next start.
        SettingError: a run that came to its end was not scored in its task's metric, so none will be.
        ExportError: the store cannot be written.
    """
    chains = [_Chain(steps=conducted(study, cell)) for cell in study.cells]
    queue: deque[tuple[_Chain, int]] = deque()
    shared: dict[str, list[tuple[_Chain, int]]] = {}
    ran: dict[str, Outcome] = {}
    fresh: set[str] = set()
    ready: deque[tuple[_Chain, int, Outcome, bool]] = deque()

    def settle() -> None:
        """Hand on what has ended, until every chain waits for runs that have not."""
        while ready:
            chain, place, outcome, found = ready.popleft()
            asked = chain.waiting.pop(place)
            _check_measured(study, asked.job, outcome)
            ran[asked.job.key] = outcome
            if watch is not None:
                watch.ended(asked, outcome, found=found)
            chain.outcomes[place] = outcome
            if not chain.waiting:
                advance(chain, [chain.outcomes[index] for index in sorted(chain.outcomes)])

    def advance(chain: _Chain, outcomes: Sequence[Outcome] | None) -> None:
        try:
            asked = next(chain.steps) if outcomes is None else chain.steps.send(outcomes)
        except StopIteration as done:
            chain.entry = done.value
            return
        chain.waiting, chain.outcomes = dict(enumerate(asked)), {}
        for place in chain.waiting:
            look(chain, place)

    def outdated(asked: Asked, stored: Outcome) -> bool:
        """Whether a run had other defaults than it would have today, of which is told."""
        if today is None or not stored.defaults:
            return False
        changed = stored.outdated(today(asked.job))
        if changed and watch is not None:
            watch.outdated(asked, changed)
        return bool(changed)

    def look(chain: _Chain, place: int) -> None:
        """Take a run from the store, wait for the same one of another cell, or put it into the queue."""
        asked = chain.waiting[place]
        key = asked.job.key
        stored = store.get(asked.job)
        if stored is not None and key not in fresh and (outdated(asked, stored) or (retry and stored.state is State.FAILED)):
            stored = None
        if stored is not None and judged(stored, asked.cut) is not None:
            ready.append((chain, place, stored, key not in fresh))
        elif key in shared:
            shared[key].append((chain, place))
        else:
            shared[key] = []
            queue.append((chain, place))

    for chain in chains:
        advance(chain, None)
    settle()
    with Pool(work, workers=workers, threads=threads, sound=_sound) as pool:
        places: dict[str, tuple[_Chain, int]] = {}
        while queue or pool.busy:
            while queue and pool.free:
                chain, place = queue.popleft()
                asked = chain.waiting[place]
                places[asked.job.key] = (chain, place)
                if watch is not None:
                    watch.begun(asked)
                pool.submit(asked)
            for asked, result in pool.ended(timeout=1.0):
                if isinstance(result, Fault):
                    raise StudyError(
                        f"{asked.job.label} was stopped by the machine, not by the contestant: {result.error}. See to it and give the same "
                        "command again; all runs that had ended are kept."
                    )
                outcome = result if isinstance(result, Outcome) else _failed(result)
                key = asked.job.key
                store.put(asked.job, outcome)
                fresh.add(key)
                ready.append((*places.pop(key), outcome, False))
                for chain, place in shared.pop(key):
                    look(chain, place)
                settle()
    entries = tuple(chain.entry for chain in chains if chain.entry is not None)
    return gathered(study, entries, ran.values())


def _check_measured(study: Study, job: Job, outcome: Outcome) -> None:
    name = study.metrics[job.task].name
    if outcome.state is State.FINISHED and name not in outcome.metrics:
        known = ", ".join(sorted(outcome.metrics)) or "nothing"
        raise SettingError(f"{job.label}: the metric {name!r} of the task is not among what is measured ({known}); give it another one.")


def _sound(result: Outcome | Fault) -> bool:
    return isinstance(result, Outcome) and result.state is not State.FAILED


def _failed(died: Died) -> Outcome:
    return Outcome(state=State.FAILED, error=died.error)


def gathered(study: Study, entries: tuple[Entry, ...], outcomes: Iterable[Outcome]) -> Findings:
    """All that was found."""
    versions: dict[str, set[str]] = {}
    machines: dict[str, Mapping[str, Any]] = {}
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(str(trial.state) for trial in entry.trials)
        counts.update(str(State.FAILED if score is None else State.FINISHED) for score in entry.scores if entry.chosen is not None)
    for outcome in outcomes:
        machines.setdefault(repr(sorted(outcome.machine.items())), outcome.machine)
        for name, version in outcome.versions.items():
            versions.setdefault(name, set()).add(version)
    return Findings(
        name=study.name,
        command=study.command,
        seeds=study.seeds,
        metrics=study.metrics,
        entries=entries,
        versions={name: sorted(found) for name, found in sorted(versions.items())},
        machines=[machines[key] for key in sorted(machines) if machines[key]],
        counts=dict(sorted(counts.items())),
        held_out=study.held_out,
    )


def estimated(study: Study, store: Store, probe: Callable[[Job], Estimate], *, threads: int = 1) -> dict[str, Estimate | Died]:
    """How long a final run of each cell takes, from a few timed steps, one cell at a time so that none slows another.

    Args:
        study: what is compared.
        store: keeps what was measured, so that it is measured once.
        probe: times one run; a function at the top of a module.
        threads: of the process.

    Returns:
        By the cell's name; what went wrong where it could not be measured.
    """
    jobs = {cell.name: study.final(cell, study.seeds[0], {name: _middle(of) for name, of in cell.space.items()}) for cell in study.cells}
    found: dict[str, Estimate | Died] = {}
    with Pool(probe, workers=1, threads=threads) as pool:
        for name, job in jobs.items():
            # A probe also sees whether the task has the metric, which is no part of what a run is known by.
            key = f"{job.key} {study.metrics[job.task].name}"
            stored = store.estimate(key)
            if stored is not None:
                found[name] = stored
                continue
            pool.submit(job)
            for _, result in pool.ended():
                found[name] = result
                if isinstance(result, Estimate):
                    store.put_estimate(key, result)
    return found


def _middle(of: Listed | Range) -> float:
    return of.values[len(of.values) // 2] if isinstance(of, Listed) else (of.low * of.high) ** 0.5


def seconds_of(study: Study, estimates: Mapping[str, Estimate]) -> float:
    """Processor time of the whole study by its estimates, if no trial is cut short; a trial is scored several times on fewer rows."""
    return sum(estimates[cell.name].seconds * study.runs_of(cell) for cell in study.cells if cell.name in estimates)
