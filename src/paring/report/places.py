"""Where a module sits: layer and kind, read from its path, and the grids (layer x kind) that the heat map draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paring.core.records import ModuleRecord


@dataclass(frozen=True, kw_only=True)
class Place:
    """A module path taken apart, ``encoder.layer.3.attention.self.query`` for example.

    Attributes:
        stack: path of the stack of layers, ``encoder.layer``; empty without a layer number.
        layer: 3; ``None`` without a layer number.
        kind: ``attention.self.query``; the whole path without a layer number.
    """

    stack: str
    layer: int | None
    kind: str


def place(path: str) -> Place:
    """Take a module path apart.

    The layer is the first number behind a component that names layers or blocks (``layer``, ``layers``, ``h``,
    ``block``, ``albert_layers``, ``resblocks`` ...), else the first number that has something behind it; so the 0 of
    ``0.auto_model.encoder.layer.3.output.dense`` and the 7 of ``model.layers.3.mlp.experts.7.w1`` are not taken.
    """
    parts = path.split(".")
    numbers = [index for index, part in enumerate(parts[:-1]) if part.isascii() and part.isdigit()]
    if not numbers:
        return Place(stack="", layer=None, kind=path)
    named = [index for index in numbers if index and _names_layers(parts[index - 1])]
    at = (named or numbers)[0]
    return Place(stack=".".join(parts[:at]), layer=int(parts[at]), kind=".".join(parts[at + 1 :]))


def _names_layers(part: str) -> bool:
    return part.lower() == "h" or part.lower().endswith(("layer", "layers", "block", "blocks"))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The modules of one stack of layers, or those outside any (``layers == (None,)``).

    Attributes:
        stack: path of the stack, ``encoder.layer``.
        layers: layer numbers, rising.
        kinds: module kinds in the order in which the record names them.
        cells: module by kind and layer; a pair that has no module is absent.
    """

    stack: str
    layers: tuple[int | None, ...]
    kinds: tuple[str, ...]
    cells: dict[tuple[str, int | None], ModuleRecord]


def grids(modules: Sequence[ModuleRecord]) -> tuple[Grid, ...]:
    """Sort modules into grids; stacks and kinds in order of appearance, what has no layer number last."""
    stacks: dict[tuple[bool, str], dict[tuple[str, int | None], ModuleRecord]] = {}
    for module in modules:
        at = place(module.path)
        stacks.setdefault((at.layer is None, at.stack), {})[at.kind, at.layer] = module
    result = []
    for (_, stack), cells in sorted(stacks.items(), key=lambda item: item[0][0]):
        layers = sorted({layer for _, layer in cells if layer is not None})
        kinds = tuple(dict.fromkeys(kind for kind, _ in cells))
        result.append(Grid(stack=stack, layers=tuple(layers) or (None,), kinds=kinds, cells=cells))
    return tuple(result)


def in_order(modules: Sequence[ModuleRecord]) -> list[ModuleRecord]:
    """Modules by stack, layer and kind, so that layer 10 follows layer 9 whatever order the record has."""
    return [
        grid.cells[kind, layer] for grid in grids(modules) for layer in grid.layers for kind in grid.kinds if (kind, layer) in grid.cells
    ]
