"""Shapes and types are checked while tests run: every annotated function of the lower floors is called through beartype."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator

import jaxtyping
import jinja2
import pytest
import torch
from hypothesis import settings

from tests.contract.stock import Stock
from tests.warm import Warm

# How long an example takes depends on what else the machine is doing, and proves nothing.
settings.register_profile("paring", deadline=None)
settings.load_profile("paring")

# Before paring is imported, since the checks are put in as modules load. In Python's own rules an int may stand for a float.
jaxtyping.install_import_hook(
    ["paring.core", "paring.parts", "paring.kernels"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)
# Tiny models: a second thread costs more in waiting than it computes, and far more where the machine is busy.
torch.set_num_threads(1)
# What a disk loses with the power no test can see, and thousands of exports would wait for it. Other processes have their own.
os.fsync = lambda _: None
# PEFT writes a model card with each adapter, and compiles its template, always the same, each time.
jinja2.Environment.compile = functools.lru_cache(maxsize=64)(jinja2.Environment.compile)


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays until the end: the collector, which every Trainer calls, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations as users have them, not checked: for tests of what the code itself says to a value of the wrong type."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def stock() -> Iterator[Stock]:
    """The process without paring; started when a test first asks for it."""
    process = Stock()
    yield process
    process.close()


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """What starts programs that have their imports behind them, those of paring excepted."""
    server = Warm()
    yield server
    server.close()
