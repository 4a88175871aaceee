"""A campaign of kills, as a process of its own: imports what the jobs need, and then forks a child for every run.

    python tests/trust/kill_worker.py FOLDER '{"python": {"trials": 100, "every": 1, "seed": 0}}'

Prints, as JSON, in which phases children were killed and everything that was wrong with what they left.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tests.trust.forks import End, Moment, Phase, Teller, forked
from tests.trust.killed_jobs import CommandExport, CommandTrain, Job, Python, keep_all

WEIGHTS = {Phase.START: 1, Phase.LOAD: 12, Phase.TRAIN: 5, Phase.SAVE: 16, Phase.EXPORT: 8}
"""How often a phase is aimed at."""

LOADING = 0.15
"""Seconds within which the loading of a checkpoint is killed."""


class Campaign:
    """Runs that are killed, and gone on with until one ends; what that leaves is compared with a run that nobody killed.

    Args:
        job: what runs.
        folder: where.
        seed: of the moments.
    """

    def __init__(self, job: Job, folder: Path, seed: int) -> None:
        self.job, self.folder = job, folder
        self.chooser = random.Random(seed)
        self.killed: Counter[str] = Counter()
        self.trials = self.chains = 0
        self.wrong: list[str] = []
        self.reference = folder / "reference"
        folder.mkdir()
        job.prepare()
        # Once in here: what is imported and set up on the first run is then there in every child.
        job.before(folder / "warm")
        job.run(folder / "warm")
        if threading.active_count() > 1:
            raise RuntimeError(f"the job has left threads behind, so its process cannot be forked: {threading.enumerate()}")
        # Every Trainer collects garbage before it starts; what was imported is not garbage, and looking at it copies its pages.
        gc.collect()
        gc.freeze()
        self.first = self._reference(self.reference)
        again = folder / "again"
        self._alone(again)
        self.wrong += [f"the job does not repeat: {fault}" for fault in job.differs(again, self.reference)]

    def _reference(self, folder: Path) -> End:
        keep = keep_all(folder)
        run = self.job(folder)
        self.job.before(folder)

        def kept(teller: Teller) -> int:
            keep()
            return run(teller)

        return self._ended(forked(kept, self.folder / "said.txt"))

    def _alone(self, folder: Path) -> None:
        self.job.before(folder)
        self._ended(forked(self.job(folder), self.folder / "said.txt"))

    def _ended(self, end: End) -> End:
        if end.status != 0:
            raise RuntimeError(f"a run that nobody killed ended with {end.status}: {(self.folder / 'said.txt').read_text()[-2000:]}")
        return end

    def chance(self, later: bool) -> Moment:
        """A moment drawn at random: a phase, and how far into it, by the length that it has in the run that nobody killed.

        Args:
            later: whether there is something to go on from, so that its loading can be aimed at.
        """
        loads = later and bool(self.first.lengths(Phase.TRAIN))
        phases = [phase for phase in WEIGHTS if (loads if phase == Phase.LOAD else self.first.lengths(phase))]
        phase = self.chooser.choices(phases, [WEIGHTS[one] for one in phases])[0]
        lengths = self.first.lengths(phase) or [LOADING]
        time = self.chooser.randrange(len(lengths))
        return Moment(phase=phase, time=time, delay=self.chooser.random() * lengths[time])

    def run(self, trials: int) -> None:
        """Kill so often, in chains: what a kill leaves is gone on with, which may be killed as well, but not for ever."""
        while self.trials < trials:
            self.chain([self.chance(later) for later in (False, True, True)[: self.chooser.choice((1, 2, 2, 3))]])

    def chain(self, moments: list[Moment]) -> None:
        """One run, killed at one moment after the other, and gone on with to its end."""
        folder = self.folder / f"chain-{self.chains}"
        said = self.folder / f"said-{self.chains}.txt"
        self.chains += 1
        self.job.before(folder)
        history = []
        done = False
        for moment in moments:
            end = forked(self.job(folder), said, moment)
            history.append(f"{moment} -> {end.phase.name} {end.status}")
            if end.killed:
                self.trials += 1
                self.killed[end.phase.name] += 1
            elif end.status != 0:
                self.wrong.append(f"ended with {end.status} after {history}: {said.read_text()[-1500:]}")
            done = done or not end.killed
            self.wrong += [f"{fault} after {history}" for fault in self.job.faults(folder, self.reference)]
        if not done:
            end = forked(self.job(folder), said)
            if end.status != 0:
                self.wrong.append(f"going on ended with {end.status} after {history}: {said.read_text()[-1500:]}")
        self.wrong += [f"at the end: {fault} after {history}" for fault in self.job.differs(folder, self.reference)]
        if not self.wrong:
            shutil.rmtree(folder, ignore_errors=True)

    def operations(self, phases: list[Phase], every: int) -> None:
        """Kill at every so-manieth file operation of the first time in each phase."""
        for phase in phases:
            if not self.first.lengths(phase):
                continue
            operation, before = 0, -1
            while before < self.trials:
                before = self.trials
                self.chain([Moment(phase=phase, operation=operation)])
                operation += every


def jobs(folder: Path) -> Iterator[Job]:
    """All of them, by what each needs."""
    yield Python(folder)
    yield CommandTrain(folder)
    yield CommandExport(folder)


def conduct(job: Job, folder: Path, settings: Mapping[str, int]) -> dict[str, Any]:
    """A campaign by its settings: so many ``trials`` at random moments, and one at ``every`` so-manieth file operation."""
    campaign = Campaign(job, folder, settings["seed"])
    if "every" in settings:
        campaign.operations([Phase.SAVE, Phase.EXPORT], settings["every"])
    by_operation = campaign.trials
    if "trials" in settings:
        campaign.run(by_operation + settings["trials"])
    found = {"trials": campaign.trials, "by_operation": by_operation, "killed": dict(campaign.killed), "wrong": campaign.wrong[:20]}
    return {**found, "seed": settings["seed"]}


def main(folder: Path, settings: Mapping[str, Mapping[str, int]]) -> None:
    """Conduct the campaigns that are asked for, and print what came of each as one line of JSON at the end."""
    print(json.dumps({job.name: conduct(job, folder / job.name, settings[job.name]) for job in jobs(folder) if job.name in settings}))


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # else a thread watches over progress bars that nobody sees
    main(Path(sys.argv[1]).resolve(), json.loads(sys.argv[2]))
