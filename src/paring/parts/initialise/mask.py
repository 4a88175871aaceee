"""Which entries of a weight are trained: a given number of places in an (out, in) matrix."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from paring.parts.parameterise.base import Source
from paring.parts.shape import Shape

Mask: TypeAlias = Literal["random", "structured", "magnitude", "gradient", "snip"]
"""How the places are chosen: drawn at random; the diagonal and whole rows; where the weight is largest; where its gradient is; where the
product of the two is."""

MASKS: tuple[Mask, ...] = ("random", "structured", "magnitude", "gradient", "snip")

_SOURCES: dict[Mask, Source] = {"magnitude": Source.WEIGHT, "gradient": Source.GRADIENT, "snip": Source.SALIENCE}


def source_of(mask: Mask) -> Source | None:
    """The matrix that a choice reads; ``None`` where the shape tells it."""
    return _SOURCES.get(mask)


def drawn(mask: Mask, shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """The places that need no matrix, ascending, int64."""
    return _structured(shape, count, generator) if mask == "structured" else _random(shape, count, generator)


def largest(matrix: Tensor, count: int) -> Tensor:
    """The places of the entries of largest magnitude, ascending, int64."""
    return torch.topk(matrix.abs().flatten(), count, sorted=False).indices.sort().values


def _random(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Every set of places is equally likely."""
    size = shape.in_features * shape.out_features
    if count > size // 2:
        return torch.randperm(size, generator=generator)[:count].sort().values
    # A permutation of all places would take eight bytes an entry of the weight. Some of what is drawn with repetition, once each, is as
    # good: no place is preferred.
    found = torch.empty(0, dtype=torch.int64)
    while found.shape[0] < count:
        found = torch.unique(torch.cat([found, torch.randint(size, (count + count // 4 + 16,), generator=generator)]))
    return found[torch.randperm(found.shape[0], generator=generator)[:count]].sort().values


def _structured(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """The diagonal first, then whole rows drawn at random, the last one as far as it goes."""
    width = shape.in_features
    diagonal = torch.arange(min(width, shape.out_features)) * (width + 1)
    wanted = torch.ones(width * shape.out_features, dtype=torch.bool)
    wanted[diagonal] = False
    rows = torch.randperm(shape.out_features, generator=generator)[: -(-count // max(1, width - 1))]
    places = (rows[:, None] * width + torch.arange(width)).flatten()
    places = places[wanted[places]]
    return torch.cat([diagonal, places])[:count].sort().values
