"""The heat map of live ranks: a row for each kind of module, a column for each layer, the number in every cell."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from unicodedata import east_asian_width

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from paring.core.records import RunRecord
from paring.report.drawing import HEAT, canvas, ink, themed
from paring.report.places import Grid, grids
from paring.report.words import count, share, shorten

_WIDEST = 1104  # width of the page's text; layers that do not fit go on below
_LABEL = 36
_ROW = 28
_GAP = 2
_HEAD = 24


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """The heat map as it goes on the page.

    Attributes:
        svg: the drawing.
        legend: (shade, the ranks that have it), shade 0 for no live rank.
        description: the map in words.
    """

    svg: Markup
    legend: tuple[tuple[int, str], ...]
    description: str


def shade(rank: int, top: int) -> int:
    """The shade of a live rank on a scale that ends at ``top``: 0 for 0, else 1 to :data:`HEAT`.

    >>> [shade(rank, 8) for rank in (0, 1, 4, 8)], [shade(rank, 3) for rank in (1, 2, 3)], [shade(rank, 64) for rank in (1, 8, 9, 64)]
    ([0, 1, 4, 8], [1, 5, 8], [1, 1, 2, 8])
    """
    if rank <= 0:
        return 0
    if rank >= top:
        return HEAT
    if top <= HEAT:
        return 1 + math.ceil((rank - 1) * (HEAT - 1) / (top - 1))
    return math.ceil(rank * HEAT / top)


def legend(top: int) -> tuple[tuple[int, str], ...]:
    """Shades with the ranks that they stand for."""
    spans: dict[int, list[int]] = {}
    for rank in range(top + 1):
        spans.setdefault(shade(rank, top), []).append(rank)
    return tuple((index, str(span[0]) if len(span) == 1 else f"{span[0]}\N{EN DASH}{span[-1]}") for index, span in spans.items())


def describe(record: RunRecord) -> str:
    """What the map shows, in words."""
    empty = sum(module.live_rank == 0 for module in record.modules)
    text = f"{count(record.live_ranks)} of {count(record.start_ranks)} ranks are live ({share(record.live_ranks, record.start_ranks)})"
    text += f" in {count(len(record.modules))} module{'s' if len(record.modules) != 1 else ''}."
    if empty:
        text += f" {count(empty)} of them {'has' if empty == 1 else 'have'} none left."
    return text


def heat_map(record: RunRecord, key: str) -> HeatMap | None:
    """Draw the live ranks; ``None`` if the run adapted no module, or none with ranks.

    Args:
        record: the run.
        key: unique on the page.
    """
    if not record.modules or record.entries:
        return None
    top = max(1, *(max(module.start_rank, module.live_rank) for module in record.modules))
    panels = grids(record.modules)
    left = 14 + max(_extent(shorten(kind, _LABEL)) for grid in panels for kind in (*grid.kinds, "all kinds"))
    column = _column(panels, left)
    pieces = [(grid, piece) for grid in panels for piece in _pieces(grid, most=max(8, int((_WIDEST - left) // column)))]
    titled = len(panels) > 1
    heights = [(_HEAD if titled else 0) + _head(piece) + _ROW * (len(grid.kinds) + (len(grid.kinds) > 1)) + 14 for grid, piece in pieces]
    width = left + column * max(len(piece) for _, piece in pieces)
    if titled:
        width = max(width, *(_extent(_stack_name(grid)) for grid in panels))
    height = float(sum(heights))
    title, description = f"Live ranks by layer and kind of module: {shorten(record.title, 80)}", describe(record)
    with canvas(width, height) as figure:
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        y = 0.0
        for (grid, piece), used in zip(pieces, heights, strict=True):
            if titled:
                _write(axes, 0, y + _HEAD / 2, _stack_name(grid), "ink", align="left")
            _panel(axes, grid, piece, x=left, y=y + (_HEAD if titled else 0), column=column, top=top)
            y += used
        svg = themed(figure, key=key, title=title, description=description + " The table of modules holds every number.")
    return HeatMap(svg=svg, legend=legend(top), description=description)


def _column(panels: tuple[Grid, ...], left: float) -> float:
    """Width of a column: roomy if all layers fit side by side, and never too narrow for the largest sum."""
    layers = max(len(grid.layers) for grid in panels)
    largest = max(sum(cell.live_rank for (_, at), cell in grid.cells.items() if at == layer) for grid in panels for layer in grid.layers)
    return max(34.0 if left + 34 * layers <= _WIDEST else 30.0, 8 + 7.7 * len(str(largest)))


def _pieces(grid: Grid, *, most: int) -> Iterator[tuple[int | None, ...]]:
    rows = math.ceil(len(grid.layers) / most)
    width = math.ceil(len(grid.layers) / rows)
    for start in range(0, len(grid.layers), width):
        yield grid.layers[start : start + width]


def _stack_name(grid: Grid) -> str:
    return "Outside the layers" if grid.layers == (None,) else shorten(grid.stack, 60) or "Layers"


def _head(layers: tuple[int | None, ...]) -> int:
    return 0 if layers == (None,) else _HEAD


def _extent(text: str) -> float:
    """Room for a text at 12 pixels, in the widest of the fonts that a page is likely to get."""
    return sum(12.0 if east_asian_width(letter) in "WFA" else 7.0 for letter in text)


def _panel(axes: Axes, grid: Grid, layers: tuple[int | None, ...], *, x: float, y: float, column: float, top: int) -> None:
    top_row, sums_row = y + _head(layers), y + _head(layers) + (len(grid.kinds) + 0.5) * _ROW
    if layers != (None,):
        _write(axes, x - 10, y + _HEAD / 2, "layer", "muted", align="right")
    for index, layer in enumerate(layers):
        middle = x + (index + 0.5) * column
        if layer is not None:
            _write(axes, middle, y + _HEAD / 2, str(layer), "muted")
        live = [grid.cells[kind, layer].live_rank for kind in grid.kinds if (kind, layer) in grid.cells]
        if len(grid.kinds) > 1:
            _write(axes, middle, sums_row, str(sum(live)), "ink")
    for row, kind in enumerate(grid.kinds):
        above = top_row + row * _ROW
        _write(axes, x - 10, above + _ROW / 2, shorten(kind, _LABEL), "ink", align="right")
        for index, layer in enumerate(layers):
            module = grid.cells.get((kind, layer))
            middle = x + (index + 0.5) * column
            if module is None:
                _write(axes, middle, above + _ROW / 2, "·", "muted")
                continue
            colour = shade(module.live_rank, top)
            corner, extent = (x + index * column + _GAP / 2, above + _GAP / 2), (column - _GAP, _ROW - _GAP)
            if colour == 0:  # an outline: an empty module must not look like a faint one
                corner, extent = (corner[0] + 0.5, corner[1] + 0.5), (extent[0] - 1, extent[1] - 1)
            axes.add_patch(
                Rectangle(corner, *extent, facecolor=ink(f"heat-{colour}"), edgecolor=ink("rule"), linewidth=1.0 if colour == 0 else 0.0)
            )
            _write(axes, middle, above + _ROW / 2, str(module.live_rank), f"on-heat-{colour}")
    if len(grid.kinds) > 1:
        _write(axes, x - 10, sums_row, "all kinds", "muted", align="right")


def _write(axes: Axes, x: float, y: float, text: str, role: str, *, align: str = "center") -> None:
    axes.text(x, y, text, color=ink(role), fontsize=12, ha=align, va="center_baseline")
