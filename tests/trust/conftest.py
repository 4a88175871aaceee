"""Fixtures of other folders that the trust matrix's tests use too, and one of their own."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.cli.conftest import bert, llama, moods, offline, run, trained
from tests.cli.test_bad_input import refused
from tests.trust.disks import disk

__all__ = ["bert", "disk", "frozen", "llama", "moods", "offline", "refused", "run", "trained"]


@pytest.fixture(scope="module")
def frozen() -> Iterator[None]:
    """Every Trainer collects garbage before it starts; what was imported is none, and looking at it takes most of a test's time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
