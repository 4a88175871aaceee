"""Draw the figures of the docs from the code that they are about; the same code gives the same bytes.

python tools/figures.py            write docs/figures/*.svg
python tools/figures.py --check    change nothing; exit 1 and say what is stale
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from paring.core.prox import released_threshold, soft_threshold

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "figures"


def operators() -> Figure:
    """What the two operators make of a gate, in units of the threshold."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    # Multiples of 1/64 and a threshold of 1 are exact in float32, so that the points at t and 2t are hit, not missed by rounding.
    v = torch.arange(-4 * 64, 4 * 64 + 1) / 64.0
    soft, released = soft_threshold(v, 1.0), released_threshold(v, 1.0)
    axes.axline((0.0, 0.0), slope=1.0, color="0.75", linewidth=1.0)
    axes.plot(v.numpy(), soft.numpy(), color="#00695c", linewidth=2.2, label='operator="exact": soft-thresholding')
    alone = isolated(released)
    line = torch.where(alone, torch.nan, released)
    breaks = (line[1:] - line[:-1]).abs() > 0.5
    where = [int(index) + 1 for index in torch.nonzero(breaks)]
    for start, stop in zip([0, *where], [*where, len(v)], strict=True):
        label = 'operator="released": what the authors\' optimizer does' if start == 0 else None
        axes.plot(v[start:stop].numpy(), line[start:stop].numpy(), color="#c2410c", linewidth=2.2, linestyle=(0, (5, 2)), label=label)
    axes.plot(v[alone].numpy(), released[alone].numpy(), "o", color="#c2410c", markersize=6.0)
    axes.set_xlabel("gate after the optimizer's step")
    axes.set_ylabel("gate after the operator")
    ticks = [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    names = ["0" if tick == 0 else f"{'-' if tick < 0 else ''}{'' if abs(tick) == 1 else abs(tick)}t" for tick in ticks]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks[1:-1], names[1:-1])
    axes.set_ylim(-3.3, 3.3)
    axes.grid(color="0.9")
    axes.legend(loc="upper left", frameon=False)
    return figure


def isolated(values: Tensor) -> Tensor:
    """Entries that jump away from both neighbours: the operator's fixed points inside its dead zone."""
    jumps = (values[1:] - values[:-1]).abs() > 0.5
    edge = torch.zeros(1, dtype=torch.bool)
    return torch.cat([edge, jumps]) & torch.cat([jumps, edge])


FIGURES: Mapping[str, Callable[[], Figure]] = {"operators": operators}


def svg(draw: Callable[[], Figure]) -> str:
    """The figure as SVG, without the date and the version that would change its bytes."""
    # Text stays text, so that bytes hang on no font; ids come from the salt, not from chance.
    with mpl.rc_context({"svg.hashsalt": "paring", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10.0}):
        file = io.StringIO()
        draw().savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw the figures of the docs.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if anything is stale")
    options = parser.parse_args(argv)
    stale = 0
    for name, draw in FIGURES.items():
        path, text = FOLDER / f"{name}.svg", svg(draw)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        print(f"{'stale' if options.check else 'written'}: {path.name}")
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return int(options.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
