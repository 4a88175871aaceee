r"""A frozen linear and its low-rank update as one function: :math:`y = x W^\top + \beta + ((x A^\top) \odot w) B^\top`.

What it does otherwise than the same products left to autograd:

- The r-wide factor of every product lies with its long side contiguous, which a BLAS wants (up to five times quicker on a CPU).
- The update is added inside a product, never written out on its own; so is its share of :math:`dX`.
- Gate and scale are folded into ``B``, never multiplied onto activations. The gate's gradient is
  :math:`dw_k = \langle A_k, (Z^\top X)_k\rangle` with :math:`Z = dY B`, a sum over ``in`` entries and not over rows.
- The order of the products is chosen from the shapes (:mod:`paring.kernels.orders`).
- For the backward it keeps ``x`` and, where the forward has formed it, :math:`X A^\top`; nothing as wide as the output.
- Dropout on the update's input is a mask of one byte an entry; the input with holes is formed again in the backward.
- Ranks whose gate is exactly zero are left out of every product but, where asked for, those of their own gates' gradients.

Source of the orders: RunLoRA (arXiv 2312.03415). The plain twin is :func:`paring.kernels.low_rank.add_low_rank` on top of a linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from paring.kernels.orders import Order, choose

ALIGNMENT = 64
"""Bytes, as torch allocates on a CPU."""

SEPARATE = Order(merge_forward=False, merge_backward=False)


@dataclass(frozen=True, eq=False)
class Live:
    """Which ranks to compute with; those left out have gates of exactly zero.

    Attributes:
        index: ranks whose gates get a gradient, those that are computed with first, int64.
        count: how many of them are computed with.
    """

    index: Tensor
    count: int


def adapted_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, out] | None,
    a: Float[Tensor, "r in"],
    b: Float[Tensor, "out r"],
    gate: Float[Tensor, r] | None,
    scale: float,
    order: Order | None = None,
    live: Live | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "*batch out"]:
    r""":math:`x W^\top + \beta + s\,((\mathrm{drop}(x) A^\top) \odot g) B^\top`, differentiable in ``x``, ``a``, ``b`` and ``gate``.

    Under autocast all products are formed in its type, as ``F.linear`` does, and gradients return in the types of what they belong to.

    Args:
        x: inputs, of ``weight``'s type outside autocast.
        weight: frozen; any strides, so the transpose of a Conv1D's weight will do.
        bias: frozen, or ``None``.
        a: down-projection.
        b: up-projection.
        gate: ``g``; ``None`` means all ones.
        scale: ``s``.
        order: in place of the choice by shapes; for tests and measurements.
        live: the ranks to compute with, where a gate is given; ``None`` means all.
        dropout: probability of dropping an entry of the update's input, drawn from torch's own generator of the device. Base and update
            then see different inputs, so nothing is merged.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    if order is None:
        rows = x.numel() // max(1, x.shape[-1])
        rank = a.shape[0] if live is None else live.count
        order = SEPARATE if dropout else choose(rows, weight.shape[1], weight.shape[0], rank, dtype=dtype, device=kind)
    # The casts that autocast would make; what is saved is then what was given, so that second derivatives are right too.
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    mask = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1.0 - dropout) if dropout else None
    # What is left is scaled up, which the r-wide factors carry.
    scale = scale / (1.0 - dropout)
    result: Tensor = _Adapted.apply(x, weight, bias, a, b, gate, mask, scale, order, live)  # type: ignore[no-untyped-call]
    return result


def _narrow(wide: Tensor, narrow: Tensor) -> Tensor:
    """``narrow @ wide.T``, (r, N), for ``narrow`` (r, k) with contiguous rows."""
    return narrow @ wide.t()


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        gate: Tensor | None,
        mask: Tensor | None,
        scale: float,
        order: Order,
        live: Live | None,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.reshape(-1, x.shape[-1])
            index = None if live is None else live.index[: live.count]
            inner = None
            if live is not None and not live.count:
                y = F.linear(rows, weight, bias)
            else:
                down = _aligned(_taken(a, index).to(x.dtype))
                up = _weighted(_taken(b.t(), index), None if gate is None else _taken(gate, index), scale).to(x.dtype)
                if order.merge_forward:
                    y = F.linear(rows, torch.addmm(weight, up.t(), down), bias)
                else:
                    y = F.linear(rows, weight, bias)
                    inner = _narrow(_seen(rows, mask), down)
                    y.addmm_(inner.t(), up)
        ctx.save_for_backward(x, weight, a, b, gate, inner, mask, None if live is None else live.index)
        ctx.scale, ctx.order, ctx.count = scale, order, None if live is None else live.count
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, gate, inner, mask, index = ctx.saved_tensors
        need_x, _, _, need_a, need_b, need_gate = ctx.needs_input_grad[:6]
        if torch.is_grad_enabled():
            # A second derivative goes through X A^T, which is formed again from what it depends on; and through the zeros of ranks
            # that are left out, which are then left in, but for those whose gates are to have no gradient.
            inner, index = None, None if index is not None and len(index) == len(a) else index
        count = len(a) if index is None else ctx.count
        with torch.autocast(grad.device.type, enabled=False):
            dy, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
            part_a, part_b, part_gate = _taken(a, index), _taken(b.t(), index), None if gate is None else _taken(gate, index)
            # Live ranks come first; those after them have no part in anything but their gates' gradients.
            live_a, live_b, live_gate = part_a[:count], part_b[:count], None if part_gate is None else part_gate[:count]
            dx = da = db = dgate = z = None
            merge = ctx.order.merge_backward and count > 0
            if need_a or need_gate or (need_x and not merge):
                wanted = part_b if need_gate else live_b
                z = _narrow(dy, _aligned(wanted.to(x.dtype).contiguous()))
            if need_x and merge:
                dx = dy @ torch.addmm(weight, _weighted(live_b, live_gate, ctx.scale).to(x.dtype).t(), _aligned(live_a.to(x.dtype)))
            elif need_x:
                assert z is not None
                dx = dy @ weight
                back = _weighted(live_a, live_gate, ctx.scale).to(x.dtype)
                if count and mask is None:
                    dx.addmm_(z[:count].t(), back)
                elif count:
                    dx.add_(_seen(z[:count].t() @ back, mask))
            seen = _seen(rows, mask) if need_a or need_gate or (need_b and inner is None) else rows
            if need_a or need_gate:
                assert z is not None
                product = z @ seen
                if need_a:
                    da = _spread(_weighted(product[:count], live_gate, ctx.scale).to(a.dtype), index, len(a))
                if need_gate:
                    dgate = _spread(ctx.scale * (product.to(gate.dtype) * part_a.to(gate.dtype)).sum(1), index, len(a))
            if need_b:
                inner = _narrow(seen, _aligned(live_a.to(x.dtype))) if inner is None else inner
                db = _spread(_weighted(inner @ dy, live_gate, ctx.scale).to(b.dtype), index, len(a)).t()
        return None if dx is None else dx.view(x.shape), None, None, da, db, dgate, None, None, None, None


def _seen(rows: Tensor, mask: Tensor | None) -> Tensor:
    """The rows with holes where entries were dropped."""
    return rows if mask is None else rows * mask.view(rows.shape)


def _taken(ranks: Tensor, index: Tensor | None) -> Tensor:
    """The ranks at ``index`` along the first dimension, or all."""
    return ranks if index is None else ranks.index_select(0, index)


def _spread(rows: Tensor, index: Tensor | None, rank: int) -> Tensor:
    """Undo :func:`_taken`: each row at its rank, zeros for those that were not taken."""
    if index is None:
        return rows
    return rows.new_zeros(rank, *rows.shape[1:]).index_copy(0, index[: len(rows)], rows)


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor where a BLAS takes the same path as with any fresh one: a factor that lies in a mapped file would round otherwise."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _weighted(rows: Tensor, gate: Tensor | None, scale: float) -> Tensor:
    """Each row times its gate and the scale, with contiguous rows."""
    weighted = rows * scale if gate is None else rows * (gate * scale)[:, None]
    return weighted.contiguous()
