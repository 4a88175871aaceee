"""A table of the trust matrix: what is tried with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One table of the docs.

    Attributes:
        title: above it.
        what: the head of its first column.
        rows, columns: in the order in which they are shown.
        without: why a cell has no test, by row and column: only for what there is no sense in or no way to.
    """

    title: str
    what: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    without: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [place for place in self.without if place[0] not in self.rows or place[1] not in self.columns]
        if unknown:
            raise ValueError(f"{self.title}: no such cells: {unknown}")
