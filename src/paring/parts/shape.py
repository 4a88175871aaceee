"""What a part may know about the module that it serves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One linear module: its path in the base model and its widths.

    Attributes:
        path: dotted name in the base model.
        in_features, out_features: widths of its input and output.
    """

    path: str
    in_features: int
    out_features: int
