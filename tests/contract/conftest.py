"""Runs each contract test for every case of the group that it asks for, and holds the table of exemptions against it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.contract.cases import GROUPS, Case
from tests.contract.exemptions import reason_for

ROOT = Path(__file__).parents[2]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case, exempt ones expected to fail."""
    for group in GROUPS.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(group, [_parameter(metafunc.function.__name__, case) for case in GROUPS[group]])


def _parameter(test: str, case: Case) -> Any:
    marks = []
    if case.kind.missing:
        marks.append(pytest.mark.skip(reason=case.kind.missing))
    reason = reason_for(test, case)
    if reason is not None:
        # Strict: an exemption that is not needed fails.
        marks.append(pytest.mark.xfail(reason=reason, strict=True))
    return pytest.param(case, id=str(case), marks=marks)


@pytest.fixture(scope="package", autouse=True)
def _quick() -> Iterator[None]:
    """One thread: tiny models are faster so, and the stock process computes on one. Collections look at new objects only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


class Stock:
    """A long-lived process without paring."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.stock_worker"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, case: Case, how: str, adapter: Path, inputs: Mapping[str, Tensor], place: Path) -> tuple[Tensor, dict[str, int]]:
        """The logits that the adapter gives there, and the rank of each module that it adapts."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        save_file(dict(inputs), place / "inputs.safetensors")
        request = {"how": how, "kind": case.kind.name, "base": case.folder, "adapter": str(adapter)}
        request |= {"inputs": str(place / "inputs.safetensors"), "outputs": str(place / "outputs.safetensors")}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        said = json.loads(self._process.stdout.readline())
        assert "error" not in said, said["error"]
        assert said["paring"] == [], "the stock process has loaded paring"
        return load_file(place / "outputs.safetensors")["logits"], said["ranks"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="session")
def stock() -> Iterator[Stock]:
    """The process without paring; started when a test first asks for it."""
    process = Stock()
    yield process
    process.close()
