"""Every method's table of properties is proved by tests, and its training goes where it went."""

from __future__ import annotations

import importlib
import json

import pytest

from paring import method as methods
from paring.cli.run.settings import kind_of
from paring.train.whole import Whole
from tests.methods.golden import FOLDER, record
from tests.methods.properties import PROPERTIES

FIRST = {"lora", "sora", "spectral"}
"""Methods that were there before the table, whose properties are proved where their parts are tested."""


@pytest.mark.parametrize(("method", "name"), [(method, name) for method, names in PROPERTIES.items() for name in names])
def test_a_property_has_its_test(method: str, name: str) -> None:
    folder = "train" if method in Whole.members else "methods"
    module = importlib.import_module(f"tests.{folder}.test_{method}")
    test = vars(module).get(f"test_{name}")
    assert callable(test), f"tests/{folder}/test_{method}.py has no test_{name}: {PROPERTIES[method][name]}"
    marks = {mark.name for mark in vars(test).get("pytestmark", ())}
    assert not marks & {"skip", "skipif", "xfail"}, f"test_{name} of {method} proves nothing: it is marked {marks}"


@pytest.mark.parametrize("method", sorted({*methods._own(), *Whole.members} - FIRST))
def test_what_a_method_says_is_the_table(method: str) -> None:
    assert method in PROPERTIES, f"method {method!r} has no properties in tests/methods/properties.py"
    assert tuple(PROPERTIES[method].values()) == kind_of(method).about.verified


@pytest.mark.parametrize("method", methods._own())
def test_training_goes_where_it_went(method: str) -> None:
    path = FOLDER / f"{method}.json"
    assert path.is_file(), f"no golden data for {method!r}: python -m tests.methods.golden {method}"
    golden, now = json.loads(path.read_text()), record(method)
    assert now["losses"] == pytest.approx(golden["losses"], rel=1e-6)
    assert now["ranks"] == golden["ranks"]
    # Something was learned, or there is nothing to compare.
    assert now["losses"][0] != now["losses"][-1]
