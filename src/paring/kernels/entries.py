r"""Adding a sparse update to a base output: :math:`y + x\,\Delta W^\top` where :math:`\Delta W` has a few entries only.

A dense matrix with the entries in it is formed for each product and dropped after it: for the backward only ``x``, the values and their
places are kept, where autograd would keep one dense matrix for every module of the model. The gradient of the values is that of the
weight at their places, :math:`\partial\mathcal L/\partial v_k = (dY^\top X)_{oi}`, formed in pieces of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from paring.kernels.casts import cast_once

PIECE = 2**24
"""Entries of a weight's gradient that are formed at a time."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where the entries of a module are.

    Attributes:
        index: flat places, int64, ascending, ``(n,)``.
        in_features, out_features: the module's widths.
        pieces: rows from and to, and which of the entries lie in them.
    """

    index: Tensor
    in_features: int
    out_features: int
    pieces: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def of(cls, index: Tensor, in_features: int, out_features: int, piece: int = PIECE) -> Places:
        """Cut into pieces; read on the host once."""
        step = max(1, piece // in_features)
        starts = list(range(0, out_features, step))
        cuts = torch.searchsorted(index, torch.tensor([row * in_features for row in starts[1:]], device=index.device)).tolist()
        ends = [*starts[1:], out_features]
        return cls(index, in_features, out_features, tuple(zip(starts, ends, [0, *cuts], [*cuts, index.shape[0]], strict=True)))


def add_entries(y: Float[Tensor, "*batch out"], x: Float[Tensor, "*batch in"], values: Float[Tensor, n], places: Places) -> Tensor:
    """Base output plus update, in the type of ``y``; under autocast the product is formed in its type, else in that of the values."""
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind)
    seen = x.to(torch.get_autocast_dtype(kind) if autocast else values.dtype)
    with torch.autocast(kind, enabled=False):
        update: Tensor = _Entries.apply(seen, None, None, values, places)  # type: ignore[no-untyped-call]
        return y + update.to(y.dtype)


def entries_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, out] | None,
    values: Float[Tensor, n],
    places: Places,
) -> Tensor:
    """A frozen linear with the entries added into its weight: one product in place of two.

    Under autocast the sum is formed in the weight's own type and then cast, as a trained weight would be.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x = x if x.dtype == dtype else cast_once(x, dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(kind, enabled=False):
        result: Tensor = _Entries.apply(x, weight, bias, values, places)  # type: ignore[no-untyped-call]
    return result


def _dense(weight: Tensor | None, values: Tensor, places: Places, dtype: torch.dtype) -> Tensor:
    """The weight, or zero, plus the entries, then cast; differentiable in the values."""
    if weight is None:
        flat = torch.zeros(places.out_features * places.in_features, dtype=dtype, device=values.device)
    else:
        flat = weight.reshape(-1)
    return flat.index_add(0, places.index, values.to(flat.dtype)).view(places.out_features, places.in_features).to(dtype)


class _Entries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, values: Tensor, places: Places) -> Tensor:
        ctx.save_for_backward(x, weight, values)
        ctx.places = places
        return F.linear(x, _dense(weight, values, places, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, values = ctx.saved_tensors
        places: Places = ctx.places
        with torch.autocast(x.device.type, enabled=False):
            dx = torch.matmul(grad, _dense(weight, values, places, x.dtype)) if ctx.needs_input_grad[0] else None
            dv = None
            if ctx.needs_input_grad[3]:
                rows, dy = x.reshape(-1, places.in_features), grad.reshape(-1, places.out_features)
                parts = [
                    (dy[:, top:bottom].t() @ rows).view(-1)[places.index[start:stop] - top * places.in_features]
                    for top, bottom, start, stop in places.pieces
                    if stop > start
                ]
                dv = torch.cat(parts).to(values.dtype) if parts else torch.zeros_like(values)
        return dx, None, None, dv, None
