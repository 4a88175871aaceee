"""Adapters to merge, and their dense updates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paring.core.adapter import Adapter, Metadata
from paring.core.factors import Factors

SHAPES = {"layers.2.up": (12, 20), "layers.10.up": (12, 20), "down": (20, 9)}
"""Output and input width of each module."""


def factors(path: str, rank: int, generator: torch.Generator, scale: float = 1.0) -> Factors:
    """Random ones, in float64."""
    height, width = SHAPES[path]
    return Factors(
        a=torch.randn(rank, width, generator=generator, dtype=torch.float64),
        b=torch.randn(height, rank, generator=generator, dtype=torch.float64),
        scale=scale,
    )


def adapter(
    seed: int, rank: int = 4, *, paths: Sequence[str] = tuple(SHAPES), scale: float = 1.0, heads: dict[str, Tensor] | None = None
) -> Adapter:
    """An adapter of one rank."""
    generator = torch.Generator().manual_seed(seed)
    modules = {path: factors(path, rank, generator, scale) for path in paths}
    return Adapter(modules=modules, heads=heads or {}, metadata=Metadata(base_model="base", task_type="SEQ_CLS"))


def dense(of: Adapter) -> dict[str, Tensor]:
    """The updates."""
    return {path: one.materialise(torch.float64) for path, one in of.modules.items()}


def far(left: Adapter, right: Adapter) -> float:
    """The largest difference of two updates' entries; a module that one of them lacks is zero."""
    one, other = dense(left), dense(right)
    zero = {path: torch.zeros(SHAPES[path], dtype=torch.float64) for path in SHAPES}
    return max(float((one.get(path, zero[path]) - other.get(path, zero[path])).abs().max()) for path in {*one, *other})
