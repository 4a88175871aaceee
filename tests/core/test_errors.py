"""Errors: one base to catch, a built-in beside it, never a TypeError."""

from __future__ import annotations

import pytest

from paring.core import errors
from paring.core.errors import ParingError, near

KINDS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ParingError)), key=lambda kind: kind.__name__
)
BUILT_IN = {
    "AdapterError": ValueError,
    "DataError": ValueError,
    "ExportError": RuntimeError,
    "OutputExistsError": FileExistsError,
    "SettingError": ValueError,
    "StepError": RuntimeError,
    "StudyError": RuntimeError,
    "TargetError": ValueError,
}


def test_each_error_is_what_a_stranger_would_catch() -> None:
    assert {kind.__name__ for kind in KINDS} == {*BUILT_IN, "ParingError"}
    for name, expected in BUILT_IN.items():
        assert issubclass(vars(errors)[name], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_no_error_is_a_type_error(kind: type[ParingError]) -> None:
    # PEFT's loader answers a TypeError by dropping the key and trying again.
    assert not issubclass(kind, TypeError)
    assert kind.__doc__
    assert str(kind("rank=0: give more.")) == "rank=0: give more."


def test_near_ends_a_sentence_with_the_closest_names() -> None:
    names = ["q_proj", "k_proj", "v_proj", "lm_head"]
    assert near("q_prj", names, count=1) == " Did you mean 'q_proj'?"
    assert near("q_prj", names).startswith(" Did you mean 'q_proj' or ")
    assert near("xyz", names) == near("", names) == near("q_proj", []) == ""


def test_near_says_a_repeated_name_once() -> None:
    assert near("quer", ["query", "query", "query"]) == " Did you mean 'query'?"
