"""Runs each contract test for every case of the group that it asks for, and holds the table of exemptions against it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.cases import GROUPS, PLAIN, Case
from tests.contract.exemptions import reason_for


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case, exempt ones expected to fail."""
    for group in GROUPS.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(group, [_parameter(metafunc.function.__name__, case, group) for case in GROUPS[group]])


def _parameter(test: str, case: Case, group: str) -> Any:
    marks = []
    if case.kind.missing:
        marks.append(pytest.mark.skip(reason=case.kind.missing))
    if not case.quick(group):
        marks.append(pytest.mark.slow)
    reason = reason_for(test, case)
    if reason is not None:
        # Strict: an exemption that is not needed fails.
        marks.append(pytest.mark.xfail(reason=reason, strict=True))
    return pytest.param(case, id=str(case), marks=marks)


@pytest.fixture(autouse=True)
def _checked_where_it_is_plain(request: pytest.FixtureRequest) -> None:
    """Shapes and types are checked on the plain module; transformers run the same code, and far more of it."""
    given = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    if any(isinstance(value, Case) and value.kind.name != PLAIN for value in given):
        request.getfixturevalue("unchecked")
