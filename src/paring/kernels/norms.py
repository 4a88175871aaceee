r"""The lengths of the rows of an adapted weight, without forming the weight.

.. math::
    \lVert W_o + s\,B_o A \rVert^2 = \lVert W_o \rVert^2 + 2 s\,\langle (W A^\top)_o, B_o \rangle + s^2\,B_o\,(A A^\top)\,B_o^\top
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from paring.core.entries import Entries
from paring.core.factors import Factors


def directed(total: Float[Tensor, "out in"], magnitude: Float[Tensor, " out"]) -> Float[Tensor, "out in"]:
    r"""The adapted weight with rows of given lengths, :math:`m_o\,(W + \Delta W)_o / \lVert (W + \Delta W)_o \rVert`."""
    result: Tensor = total * (magnitude.to(total) / total.norm(dim=1))[:, None]
    return result


@torch.no_grad()
def row_norms(weight: Float[Tensor, "out in"], update: Factors | Entries | None) -> Float[Tensor, " out"]:
    """The length of each row, in float32 or better.

    Args:
        weight: W, any strides.
        update: Delta W; ``None`` is zero.
    """
    with torch.autocast(weight.device.type, enabled=False):
        dtype = torch.promote_types(weight.dtype, torch.float32)
        # A copy, which is squared in place: rounding must not depend on where a loader has put the weight.
        full = weight.to(dtype, copy=True, memory_format=torch.contiguous_format)
        change = torch.zeros(full.shape[0], dtype=dtype, device=full.device)
        if isinstance(update, Entries):
            rows, columns = update.index // update.in_features, update.index % update.in_features
            values, there = update.values.to(dtype), full[rows, columns]
            change.index_add_(0, rows, values * (2.0 * there + values))
        elif update is not None:
            factors = update.fold(dtype)
            change = (factors.b * torch.addmm(2.0 * (full @ factors.a.T), factors.b, factors.a @ factors.a.T)).sum(1)
        return (full.square_().sum(1) + change).clamp_min_(0.0).sqrt_()
