"""Fixtures of other folders that the trust matrix's tests use too."""

from __future__ import annotations

from tests.cli.conftest import bert, llama, moods, offline, run, trained, whole_programs
from tests.cli.test_bad_input import refused
from tests.trust.disks import disk

__all__ = ["bert", "disk", "llama", "moods", "offline", "refused", "run", "trained", "whole_programs"]
