r"""How many parameters an adapter needs, told from its own spectrum: the knee of what ranks explain against what they cost.

Put the ranks of all modules in the order of :math:`\sigma_i^2 / c_i` and draw the share of :math:`\sum \sigma^2` that the first k of them
hold against the share of the parameters that they take. The knee is the point farthest above the straight line from nothing to all. It is
passed where a rank holds less per parameter than the adapter does on average, so

.. math:: \text{size} = \sum_{i:\ \sigma_i^2 / c_i > \bar e} c_i, \qquad \bar e = \frac{\sum_j \sigma_j^2}{\sum_j c_j},

over all ranks that the adapter was given, those of no size too. There is no knob. Noise is spread thin over many ranks, so it lies below
the average as soon as anything stands out. The average falls as more ranks are given, and the knee with it rises.

Source: ours; the point farthest from the chord is the knee of Satopaa et al. (2011), here in closed form since the curve is concave.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def knee(spectra: Sequence[Tensor], costs: Sequence[int]) -> int:
    """Parameters of the ranks that hold more per parameter than the average.

    Args:
        spectra: singular values of each module's update, of every rank that it was given; in any order.
        costs: parameters of one rank of each.

    Returns:
        A number of parameters; 0 where nothing stands out, since all ranks hold alike or nothing.
    """
    squares = [s.detach().double().cpu().square() for s in spectra]
    total = sum(float(values.sum()) for values in squares)
    whole = sum(len(values) * cost for values, cost in zip(squares, costs, strict=True))
    if not total:
        return 0
    # A hair above the average, which rounding must not decide about where all ranks are alike.
    average = total / whole * (1 + 1e-9)
    return sum(int((values / cost > average).sum()) * cost for values, cost in zip(squares, costs, strict=True))
