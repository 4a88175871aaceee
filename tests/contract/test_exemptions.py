"""The table of exemptions: every row names tests that exist, has a reason, and is needed."""

from __future__ import annotations

import pytest

from paring import method
from tests.contract.cases import CASES, GROUPS, has_gates
from tests.contract.exemptions import EVERY_MODEL, EXEMPTIONS, WITHOUT_GATES, contract_tests, exemption_rows, keys_of, property_rows
from tests.contract.models import KINDS


@pytest.mark.parametrize("key", EXEMPTIONS, ids=lambda key: "-".join(key))
def test_every_exemption_is_used(key: tuple[str, str, str]) -> None:
    test, name, model = key
    assert test in contract_tests(), f"there is no contract test {test!r}"
    assert name == WITHOUT_GATES or name in method.names(), f"there is no method {name!r}"
    assert model == EVERY_MODEL or model in KINDS, f"there is no model {model!r}"
    assert any(key in keys_of(test, case) for case in GROUPS[contract_tests()[test]]), "no case that the test is run for matches"
    assert EXEMPTIONS[key].strip()


def test_every_method_is_tried_on_every_model() -> None:
    assert {(case.method_name, case.kind.name) for case in CASES} == {(name, kind) for name in method.names() for kind in KINDS}
    assert all({case.method_name for case in cases} == set(method.names()) for cases in GROUPS.values())


def test_rows_for_the_docs() -> None:
    assert [row[0] for row in exemption_rows()] == sorted(key[0] for key in EXEMPTIONS)
    assert {test for test, _ in property_rows()} == set(contract_tests())
    assert {has_gates(name) for name in ("lora", "sora")} == {False, True}
