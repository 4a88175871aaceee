"""Kills at any moment of training, saving and exporting: nothing half-written at a final path, and the same bits in the end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.attach.processes import environment
from tests.trust.grids import cell

WORKER = Path(__file__).with_name("kill_worker.py")
KINDS = ("training", "saving a checkpoint", "exporting")

# Together they take minutes.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")]

Conduct = Callable[[dict[str, dict[str, int]]], dict[str, Any]]


def all_kills(*kinds: str) -> list[pytest.MarkDecorator]:
    """Marks of a test that kills in all of these, by default in training, saving and exporting, and goes on each time."""
    columns = ("nothing half-written at a final path", "resumes to the same bits")
    return [cell("faults", f"SIGKILL while {kind}", column) for kind in kinds or KINDS for column in columns]


@pytest.fixture
def conduct(bert: Path, moods: Path, tmp_path: Path) -> Conduct:
    """Runs campaigns in a process of their own, and returns what came of them by job."""

    def run(settings: dict[str, dict[str, int]]) -> dict[str, Any]:
        for source in (bert, moods):
            shutil.copytree(source, tmp_path / source.name.rstrip("0123456789"))
        variables = {**environment(), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, WORKER, tmp_path, json.dumps(settings)], capture_output=True, text=True, env=variables, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        assert [fault for one in found.values() for fault in one["wrong"]] == []
        return found

    return run


def said(found: dict[str, Any]) -> str:
    """What the page says of a campaign."""
    return f"{found['trials']} kills ({phases(found)}), {found['by_operation']} of them at file operations, seed {found['seed']}"


def phases(found: dict[str, Any]) -> str:
    """How many kills fell into which phase."""
    words = {"START": "before", "LOAD": "loading", "TRAIN": "training", "SAVE": "saving", "EXPORT": "exporting", "END": "after"}
    return ", ".join(f"{found['killed'][name]} {word}" for name, word in words.items() if name in found["killed"])


@pytest.mark.parametrize("settings", [pytest.param({"every": 12, "trials": 1, "seed": 5}, id="python", marks=all_kills())])
def test_some_kills(settings: dict[str, int], conduct: Conduct) -> None:
    found = conduct({"python": settings})["python"]
    assert found["killed"]["SAVE"] >= 2
    assert found["killed"]["EXPORT"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("settings", "least"),
    [
        pytest.param(
            {"python": {"every": 1, "trials": 145, "seed": 0}},
            {"SAVE": 50, "EXPORT": 30, "TRAIN": 10, "LOAD": 10},
            id="python",
            marks=all_kills(),
        ),
        pytest.param(
            {"train": {"trials": 80, "seed": 1}}, {"SAVE": 10, "EXPORT": 10, "TRAIN": 5, "LOAD": 3}, id="train", marks=all_kills()
        ),
        pytest.param(
            {"train": {"seed": 1}, "export": {"every": 1, "trials": 55, "seed": 2}},
            {"EXPORT": 60},
            id="export",
            marks=all_kills("exporting"),
        ),
    ],
)
def test_kills_at_any_moment(
    settings: dict[str, dict[str, int]], least: dict[str, int], conduct: Conduct, record_property: Callable[[str, object], None]
) -> None:
    found = conduct(settings)
    fell = sum((Counter(one["killed"]) for one in found.values()), Counter[str]())
    assert {name: fell[name] for name in least if fell[name] < least[name]} == {}
    assert sum(one["trials"] for one in found.values()) >= sum(one.get("trials", 0) for one in settings.values())
    for name, one in found.items():
        if one["trials"]:
            record_property("trust", f"{name}: {said(one)}")
