"""The floors of the package, lowest first: a folder (or a module that stands alone) imports only from floors below its own."""

from __future__ import annotations

FLOORS = (
    ("core",),
    ("kernels",),
    ("parts",),
    ("method", "step", "lead", "rates", "compress", "extract", "merge"),
    ("methods", "attach", "exchange"),
    ("train",),
    ("api", "report"),
    ("path", "study", "serve", "federate"),
    ("cli",),
)

ORDER = tuple(name for floor in FLOORS for name in floor)
"""All of them in one row, lowest first."""


def floor_of(name: str) -> int:
    """The floor of a folder or module of the package.

    Raises:
        LookupError: it has none yet; give it one above.
    """
    for number, names in enumerate(FLOORS):
        if name in names:
            return number
    raise LookupError(f"paring.{name} has no floor: give it one in tools/floors.py.")
