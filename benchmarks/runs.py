"""Training runs as jobs: what each is, several at a time, and a log that holds every finished one, so that what was cut off goes on."""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from environment import RESULTS, environment, finished
from tasks import Examples, examples, score, tenth, train

import paring
from paring.method import Method, decode
from paring.study.pool import follow_parent

J = TypeVar("J")


@dataclass(frozen=True, kw_only=True)
class Task:
    """How much of a task is trained on.

    Attributes:
        limit: training rows, from the top of the file; ``None`` means all.
        epochs: passes over them, where a job gives no steps.
    """

    limit: int | None
    epochs: int


TASKS = {"trec": Task(limit=None, epochs=2), "sst2": Task(limit=8000, epochs=1), "banking77": Task(limit=None, epochs=1)}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: all that its result depends on.

    Attributes:
        task: a key of :data:`TASKS`.
        method: with its settings.
        rate: main learning rate.
        seed: of the adapter's start, the head and the order of the rows.
        size: rows of a batch.
        steps: ``None`` means the task's own number of passes.
        held: score on a tenth of the training rows that is not trained on, and leave dev alone.
        dtype: ``fp32``, or ``bf16`` for autocast.
        device: of torch.
    """

    task: str
    method: Method
    rate: float
    seed: int
    size: int
    steps: int | None = None
    held: bool = False
    dtype: str
    device: str

    def encode(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "method": self.method.encode()}

    @classmethod
    def decode(cls, given: dict[str, Any]) -> Job:
        """Undo :meth:`encode`; settings that were added since have their defaults."""
        return cls(**{**given, "method": decode(given["method"])})


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs jobs, or takes them from the log.

    Attributes:
        data: folder of the tasks.
        log: a line for each finished run.
        workers: processes; the machine's threads are divided among them.
    """

    data: Path
    log: Path
    workers: int

    def __call__(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The rows of ``jobs``, in their order."""
        rows = resumed(work, jobs, self.data, workers=self.workers, log=self.log, decode=Job.decode, tell=_told)
        return [rows[job] for job in jobs]


def _told(_: Job, row: dict[str, Any]) -> str:
    job = row["job"]
    return (
        f"{job['task']:9} {job['method']['name']:5} r {job['method']['rank']} rate {job['rate']:.1e} seed {job['seed']} "
        f"steps {row['steps']:4d}{' held out' if job['held'] else ''}: accuracy {row['accuracy']:.4f} loss {row['loss']:.4f} "
        f"live {row['live']:.1%} {row['seconds']:.0f} s"
    )


def logged(
    work: Callable[[J, Path], dict[str, Any]], jobs: Sequence[J], data: Path, *, workers: int, log: Path
) -> Iterator[tuple[J, dict[str, Any]]]:
    """Run jobs in processes of their own, each with its share of the threads, and write a line for each as it ends.

    One that fails stops no other; its error is raised when all have ended.
    """
    log.parent.mkdir(exist_ok=True)
    # CUDA cannot be used in a fork of a process that has used it.
    spawn = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin, initargs=(threads,)) as executor:
        waiting = {executor.submit(work, job, data): job for job in jobs}
        for future in as_completed(waiting):
            if future.exception() is not None:
                continue  # What the others have done is kept before this is raised.
            row = future.result()
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            yield waiting[future], row
    for future in waiting:
        future.result()


def resumed(
    work: Callable[[J, Path], dict[str, Any]],
    jobs: Sequence[J],
    data: Path,
    *,
    workers: int,
    log: Path,
    decode: Callable[[dict[str, Any]], J],
    tell: Callable[[J, dict[str, Any]], str],
) -> dict[J, dict[str, Any]]:
    """The row of each job, in their order: those of the log, and those that are run now, each told in a line as it ends."""
    rows = {decode(row["job"]): row for row in finished(log)}
    for job, row in logged(work, [job for job in dict.fromkeys(jobs) if job not in rows], data, workers=workers, log=log):
        rows[job] = row
        print(tell(job, row), flush=True)
    return {job: rows[job] for job in jobs}


def _begin(threads: int) -> None:
    """Take a share of the threads, and end with the parent: a worker that has lost it would work on for nobody."""
    torch.set_num_threads(threads)
    follow_parent()


@functools.cache
def rows_of(data: Path, task: str, held: bool) -> tuple[Examples, Examples]:
    """What is trained on, and what is scored."""
    fit = examples(data, task, "train", TASKS[task].limit)
    if not held:
        return fit, examples(data, task, "dev")
    return tenth(fit)


def work(job: Job, data: Path) -> dict[str, Any]:
    """Train and score one run."""
    fit, held = rows_of(data, job.task, job.held)
    steps = TASKS[job.task].epochs * len(fit) // job.size if job.steps is None else job.steps
    run = train(
        job.method,
        fit,
        rate=job.rate,
        steps=steps,
        seed=job.seed,
        size=job.size,
        classes=fit.classes,
        device=job.device,
        dtype=job.dtype,
    )
    accuracy, loss = score(run.model, held, device=job.device, dtype=job.dtype)
    adapter = paring.snapshot(run.model)
    return {
        "job": job.encode(),
        "steps": steps,
        "accuracy": accuracy,
        "loss": loss,
        "scored": len(held),
        "live": run.trajectory[-1],
        "trajectory": run.trajectory,
        "parameters": adapter.parameters,
        "head_parameters": adapter.head_parameters,
        "seconds": round(run.seconds, 1),
        "environment": environment(),
    }


def measured(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all of these rows were measured with, on their last day.

    Raises:
        SystemExit: they come from different machines or versions, so they are not to be compared.
    """
    found = sorted((row["environment"] for row in rows), key=lambda one: str(one["date"]))
    if any({**one, "date": None} != {**found[0], "date": None} for one in found):
        raise SystemExit("The log has runs of different machines or versions; give another --log to run all of them here.")
    last: dict[str, Any] = found[-1]
    return last


def arguments(description: str | None, log: str) -> argparse.ArgumentParser:
    """The options that all scripts of runs have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="a folder for each task, with train.tsv and dev.tsv")
    parser.add_argument("--size", type=int, default=16, help="batch size")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16", help="bf16: autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--log", type=Path, default=RESULTS / f"{log}.jsonl")
    return parser
