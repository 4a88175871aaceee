r"""Which ranks of all modules together to keep: those whose singular values explain most for what they cost.

With :math:`\sigma_{m,i}` the singular values of module m's update and :math:`c_m = \mathrm{in}_m + \mathrm{out}_m` the parameters of one of
its ranks, keep the set of ranks of at most ``budget`` parameters with the largest :math:`\sum \sigma_{m,i}^2`, the part of the updates'
squared Frobenius norm that is left. Filled greedily by

.. math:: \sigma_{m,i}^2 / c_m

which is best but for what does not fit at the end. The score is a property of the update alone: :math:`(A_i, g_i) \to (c A_i, g_i / c)`
changes a gate and no singular value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paring.core.errors import SettingError


def allocate(spectra: Sequence[Tensor], costs: Sequence[int], budget: int) -> list[int]:
    """How many leading ranks each module keeps.

    Args:
        spectra: singular values of each module's update, descending.
        costs: parameters of one rank of each.
        budget: the most parameters in all.

    Returns:
        A number of ranks for each module. What is left of the budget is less than the cheapest rank that was not taken, unless that
        rank's singular value is zero: such a rank is worth nothing and never taken.

    Raises:
        SettingError: the budget is negative.
    """
    if budget < 0:
        raise SettingError(f"budget={budget}: give at least 0.")
    if not spectra:
        return []
    owner = torch.cat([torch.full((len(s),), module) for module, s in enumerate(spectra)]).tolist()
    squares = torch.cat([s.detach().double().cpu().square() / cost for s, cost in zip(spectra, costs, strict=True)])
    kept = [0] * len(spectra)
    closed = [False] * len(spectra)
    left = budget
    # Stable, so that of equal ranks the first module's comes first, on every machine.
    for place in torch.argsort(squares, descending=True, stable=True).tolist():
        module = owner[place]
        if closed[module]:
            continue
        if squares[place] == 0.0 or costs[module] > left:
            # A module keeps its leading ranks: none behind one that was passed over.
            closed[module] = True
            continue
        kept[module] += 1
        left -= costs[module]
    return kept
