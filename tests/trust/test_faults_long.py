"""Twenty thousand steps with adapters that come and go: memory, file handles and registries stay flat."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.attach.processes import environment
from tests.trust.grids import cell

WORKER = Path(__file__).with_name("long_worker.py")
MEGABYTE = 2**20

flat = cell("faults", "20,000 steps", "memory and file handles stay flat")

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")


def conducted(folder: Path, steps: int, every: int) -> dict[str, Any]:
    """What the worker has seen."""
    done = subprocess.run(
        [sys.executable, WORKER, folder, str(steps), str(every)], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    found["samples"] = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(found["samples"]) == steps // every
    assert found["died"] > 0
    assert found["lasting"] > 0
    return found


def counts(found: dict[str, Any], start: int) -> dict[str, set[int]]:
    """All values that each count has had from a sample on."""
    return {name: {one[name] for one in found["samples"][start:]} for name in found["samples"][0] if name != "resident"}


@flat
@pytest.mark.slow
def test_counts_stay_flat(tmp_path: Path) -> None:
    found = conducted(tmp_path, 100, 10)
    assert {name: values for name, values in counts(found, 1).items() if len(values) > 1} == {}


@flat
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_twenty_thousand_steps(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    found = conducted(tmp_path, 20_000, 50)
    assert {name: values for name, values in counts(found, 1).items() if len(values) > 1} == {}
    # A line over the second half of the samples: what it says that the whole run would add, with all that chance allows, is nearly nothing.
    # Not nothing at all: safetensors 0.8.0 keeps some 56 bytes of every tensor that it reads by `get_tensor`, which comes to as much.
    resident = np.array([one["resident"] for one in found["samples"]]) / MEGABYTE
    steps = 50.0 * np.arange(1, len(resident) + 1)
    half = len(resident) // 2
    line = stats.linregress(steps[half:], resident[half:])
    error = line.stderr * stats.t.ppf(0.975, len(resident) - half - 2)
    low, high = (20_000 * (line.slope + sign * error) for sign in (-1, 1))
    record_property(
        "trust",
        f"resident memory {resident[half]:.0f} MB at the half, {resident[-1]:.0f} MB at the end; a line over the second half adds "
        f"{20_000 * line.slope:.2f} MB in 20,000 steps (95% interval {low:.2f} to {high:.2f}); {found['samples'][-1]['files']} open files "
        f"throughout; {found['died']} ranks died",
    )
    assert high < 2.0
    assert resident[-1] - resident[half] < 2.0
