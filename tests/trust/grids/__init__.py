"""The grids of the trust matrix. A test names its cell by :func:`cell`; a cell without a test shows as that."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from tests.trust.grid import Grid
from tests.trust.grids import distributed, engines, faults, hostile, models, quantised, trainers

GRIDS: Mapping[str, Grid] = MappingProxyType(
    {
        "trainers": trainers.GRID,
        "distributed": distributed.GRID,
        "quantised": quantised.GRID,
        "models": models.GRID,
        "engines": engines.GRID,
        "faults": faults.GRID,
        "hostile": hostile.GRID,
    }
)
"""By the key that tests and pages name them by."""


def cell(grid: str, row: str, column: str, *, refused: bool = False) -> pytest.MarkDecorator:
    """The mark of a test that belongs to a cell; several tests may share one.

    Args:
        grid: key of :data:`GRIDS`.
        row: of that grid.
        column: of that grid.
        refused: what the test shows is that paring refuses this, and says why.

    Raises:
        ValueError: there is no such cell, or it is said to be without a test.
    """
    known = GRIDS.get(grid)
    if known is None or row not in known.rows or column not in known.columns:
        raise ValueError(f"There is no cell {grid!r}, {row!r}, {column!r}.")
    if (row, column) in known.without:
        raise ValueError(f"The cell {row!r}, {column!r} of {grid!r} is said to have no test: {known.without[row, column]}")
    mark: pytest.MarkDecorator = pytest.mark.trust(grid, row, column, refused=refused)
    return mark
