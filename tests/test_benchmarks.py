"""What decides a published number: the choice of a learning rate, and the log that runs are taken from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paring.methods.sora import SoRA

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(vars(sys.modules[name]).get("__file__")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({1: (0.900, 80), 2: (0.899, 20)}, 1),
        ({1: (0.900, 80), 2: (0.910, 80), 3: (0.905, 80)}, 2),
        ({1: (0.900, 50), 2: (0.900, 40), 3: (0.900, 60)}, 2),
    ],
)
def test_the_rate_is_the_most_accurate_and_of_equal_ones_the_smallest(found: dict[float, tuple[float, int]], chosen: float) -> None:
    from accuracy import choose

    rows = {rate: {"accuracy": accuracy, "parameters": size, "scored": 900} for rate, (accuracy, size) in found.items()}
    assert choose(rows) == chosen


def test_finished_jobs_are_taken_from_the_log_and_machines_are_not_mixed(tmp_path: Path) -> None:
    from runs import Job, Runner, measured

    job = Job(task="trec", method=SoRA(rank=8), rate=1e-3, seed=0, size=16, dtype="bf16", device="cpu")
    assert Job.decode(json.loads(json.dumps(job.encode()))) == job
    one: dict[str, Any] = {"job": job.encode(), "accuracy": 0.5, "environment": {"date": "2000-01-01", "machine": "abacus"}}
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(one) + "\n")
    run = Runner(data=tmp_path / "nothing", log=log, workers=1)
    assert run([job, job]) == [one, one]
    assert measured([one, {**one, "environment": {"date": "2000-01-02", "machine": "abacus"}}])["date"] == "2000-01-02"
    with pytest.raises(SystemExit, match="different machines"):
        measured([one, {**one, "environment": {"date": "2000-01-01", "machine": "slide rule"}}])


def test_merged_adapters_are_of_one_seed_or_of_three() -> None:
    from merging import TASKS, Merging, summary

    same = Merging(way="svd", seed=1, starts="same")
    assert list(same.seeds().values()) == [1, 1, 1]
    for seed in range(3):
        assert sorted(Merging(way="svd", seed=seed, starts="different").seeds().values()) == [0, 1, 2]
    accuracies = {same: 0.5, Merging(way="svd", seed=2, starts="same"): 0.7, Merging(way="svd", seed=1, starts="different"): 0.9}
    rows = {
        job: {"scores": {task: {"accuracy": value} for task in TASKS}, "rank": 8, "parameters": 10, "from_mean": 0.5}
        for job, value in accuracies.items()
    }
    one, other = summary(rows, list(rows))
    assert (one["starts"], one["accuracy"]["trec"], one["mean"]) == ("same", [0.5, 0.7], pytest.approx(0.6))
    assert (other["starts"], other["mean"]) == ("different", pytest.approx(0.9))
