"""Fuzzing of every reader that takes foreign files: a sentence or a right result, in bounded time and memory, and nothing outside."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paring.cli.plain import PlainLoader, where, why
from paring.core.errors import AdapterError, SettingError
from paring.exchange import settings
from paring.method import decode
from tests.attach.processes import environment
from tests.trust.grids import cell
from tests.trust.hostile_topics import CONFIG, MODULES, sound_methods

# Together they take minutes.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SEED = 0
ROWS: Mapping[str, tuple[str, ...]] = {
    "adapter weights": ("weights", "folder"),
    "adapter configuration": ("config", "folder"),
    "patterns and targets": ("patterns",),
    "study file": ("study", "flags"),
    "data files": ("data",),
    "method settings": ("method", "checkpoint"),
}
"""The topics of :mod:`tests.trust.hostile_topics` that belong to each row of the grid."""

RESULT, BOUNDED, INSIDE, NO_CODE = (
    "a clear error or a right result",
    "bounded time and memory",
    "nothing outside the folder",
    "no pickle, no remote code",
)
QUICK = {
    "weights": 3000,
    "config": 2000,
    "patterns": 500,
    "folder": 150,
    "study": 20,
    "flags": 400,
    "data": 1000,
    "method": 800,
    "checkpoint": 150,
}
MANY = {
    "weights": 520_000,
    "config": 270_000,
    "patterns": 40_000,
    "folder": 20_000,
    "study": 3_000,
    "flags": 20_000,
    "data": 100_000,
    "method": 50_000,
    "checkpoint": 20_000,
}
SECONDS = 5.0
"""Of the processor, that a single case may take; all but expressions without end take thousandths."""
GROWTH = 2**29
"""Bytes by which the process may grow over all cases of a topic, whatever they claim to hold."""

Came = Mapping[str, Mapping[str, Any]]


def fuzzed(counts: Mapping[str, int], seed: int) -> Came:
    """What came of so many cases of each topic, in a process with limits of its own."""
    words = [f"{topic}={count}" for topic, count in counts.items()]
    command = [sys.executable, "-m", "tests.trust.hostile_worker", str(seed), *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    found = {one["topic"]: one for one in map(json.loads, done.stdout.splitlines())}
    # A parser that crashes takes the process with it.
    assert done.returncode == 0, f"died after {list(found)}: {done.stderr[-2000:]}"
    assert found.keys() == counts.keys()
    return found


@pytest.fixture(scope="module")
def quick() -> Came:
    """A sample."""
    return fuzzed(QUICK, SEED)


def check(came: Came, column: str) -> None:
    """What a column promises."""
    for topic, one in came.items():
        assert one["cases"] == sum(one["came"].values()), topic
        if column == RESULT:
            assert not one["bad"], (topic, one["faults"])
            # A mutator that breaks everything, or nothing, would prove little.
            assert one["came"].get("taken", 0) < one["cases"], topic
        elif column == BOUNDED:
            assert one["slowest"][0] < SECONDS, (topic, one["slowest"])
            assert one["grown"] < GROWTH, (topic, one["grown"])
        else:
            assert not one["outside"], (topic, one["outside"])


@pytest.mark.parametrize(
    ("row", "column"),
    [pytest.param(row, column, marks=cell("hostile", row, column)) for row in ROWS for column in (RESULT, BOUNDED, INSIDE, NO_CODE)],
)
def test_a_sample_of_hostile_input(row: str, column: str, quick: Came, record_property: Any) -> None:
    """The audit hook sees files that are opened, what is changed, imported, unpickled, run and connected to."""
    came = {topic: quick[topic] for topic in ROWS[row]}
    check(came, column)
    record_property("trust", f"{sum(one['cases'] for one in came.values()):,} cases in a sample, seed {SEED}")


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[cell("hostile", row, column) for column in (RESULT, BOUNDED, INSIDE, NO_CODE)]) for row in ROWS],
)
def test_a_million_of_hostile_inputs(row: str, record_property: Any) -> None:
    """More than a million in all rows together; each process is another seed."""
    seed = SEED + 1 + list(ROWS).index(row)
    came = fuzzed({topic: MANY[topic] for topic in ROWS[row]}, seed)
    for column in (RESULT, BOUNDED, INSIDE):
        check(came, column)
    record_property("trust", f"{sum(one['cases'] for one in came.values()):,} cases, seed {seed}")


def test_there_are_a_million() -> None:
    assert sum(MANY[topic] for topics in ROWS.values() for topic in topics) >= 1_000_000


TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@cell("hostile", "adapter configuration", RESULT)
@given(st.dictionaries(st.sampled_from(sorted(CONFIG)), PLAIN))
def test_any_plain_data_in_the_place_of_a_setting(changes: dict[str, Any]) -> None:
    config = {**CONFIG, **changes}
    try:
        settings.refuse(config)
        scales, selection = settings.Scales(config), settings.selection(config)
        found = [(selection.hits(module), scales.scale_of(module)) for module in MODULES]
    except AdapterError:
        return
    assert all(math.isfinite(scale) for _, scale in found)


@cell("hostile", "method settings", RESULT)
@given(st.data())
def test_any_plain_data_in_the_place_of_a_method_s_setting(data: st.DataObject) -> None:
    sound = dict(data.draw(st.sampled_from(sound_methods())))
    sound[data.draw(st.sampled_from(sorted(sound)))] = data.draw(PLAIN)
    with suppress(SettingError):
        assert decode(decode(sound).encode()) == decode(sound)


@cell("hostile", "study file", RESULT)
@given(TEXTS)
def test_any_text_in_the_place_of_yaml(text: str) -> None:
    found: list[yaml.YAMLError] = []
    try:
        PlainLoader(text).get_single_data()
    except yaml.YAMLError as error:
        found.append(error)
    assert all(where(error, text) >= 1 and "\n" not in why(error) for error in found)
