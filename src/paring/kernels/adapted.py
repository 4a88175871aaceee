r"""A frozen linear and its low-rank update as one function: :math:`y = x W^\top + \beta + ((x A^\top) \odot w) B^\top`.

What it does otherwise than the same products left to autograd:

- The r-wide factor of every product lies with its long side contiguous, which a BLAS wants (up to five times quicker on a CPU).
- The update is added inside a product, never written out on its own; so is its share of :math:`dX`.
- Gate and scale are folded into ``B``, never multiplied onto activations. The gate's gradient is
  :math:`dw_k = \langle A_k, (Z^\top X)_k\rangle` with :math:`Z = dY B`, a sum over ``in`` entries and not over rows.
- The order of the products is chosen from the shapes (:mod:`paring.kernels.orders`).
- For the backward it keeps ``x`` and, where the forward has formed it, :math:`X A^\top`; nothing as wide as the output.

Source of the orders: RunLoRA (arXiv 2312.03415). The plain twin is :func:`paring.kernels.low_rank.add_low_rank` on top of a linear.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from paring.kernels.orders import Order, choose

ALIGNMENT = 64
"""Bytes, as torch allocates on a CPU."""


def adapted_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, out] | None,
    a: Float[Tensor, "r in"],
    b: Float[Tensor, "out r"],
    gate: Float[Tensor, r] | None,
    scale: float,
    order: Order | None = None,
) -> Float[Tensor, "*batch out"]:
    r""":math:`x W^\top + \beta + s\,((x A^\top) \odot g) B^\top`, differentiable in ``x``, ``a``, ``b`` and ``gate``.

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
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    if order is None:
        rows = x.numel() // max(1, x.shape[-1])
        order = choose(rows, weight.shape[1], weight.shape[0], a.shape[0], dtype=dtype, device=kind)
    # The casts that autocast would make; what is saved is then what was given, so that second derivatives are right too.
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    result: Tensor = _Adapted.apply(x, weight, bias, a, b, gate, scale, order)  # type: ignore[no-untyped-call]
    return result


def _narrow(wide: Tensor, narrow: Tensor) -> Tensor:
    """``narrow @ wide.T``, (r, N), for ``narrow`` (r, k) with contiguous rows."""
    return narrow @ wide.t()


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Tensor | None, scale: float, order: Order
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.reshape(-1, x.shape[-1])
            down, up = _aligned(a.to(x.dtype)), _weighted(b.t(), gate, scale).to(x.dtype)
            inner = None
            if order.merge_forward:
                y = F.linear(rows, torch.addmm(weight, up.t(), down), bias)
            else:
                y = F.linear(rows, weight, bias)
                inner = _narrow(rows, down)
                y.addmm_(inner.t(), up)
        ctx.save_for_backward(x, weight, a, b, gate, inner)
        ctx.scale, ctx.order = scale, order
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, gate, inner = ctx.saved_tensors
        need_x, _, _, need_a, need_b, need_gate = ctx.needs_input_grad[:6]
        with torch.autocast(grad.device.type, enabled=False):
            dy, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
            down, up = _aligned(a.to(x.dtype)), _aligned(b.t().to(x.dtype).contiguous())
            if torch.is_grad_enabled():
                inner = None  # A second derivative goes through it: it is formed again, from what it depends on.
            dx = da = db = dgate = None
            merge = ctx.order.merge_backward
            z = _narrow(dy, up) if need_a or need_gate or (need_x and not merge) else None
            if need_x and merge:
                dx = dy @ torch.addmm(weight, _weighted(b.t(), gate, ctx.scale).to(x.dtype).t(), down)
            elif need_x:
                assert z is not None
                dx = (dy @ weight).addmm_(z.t(), _weighted(a, gate, ctx.scale).to(x.dtype))
            if need_a or need_gate:
                assert z is not None
                product = z @ rows
                if need_a:
                    da = _weighted(product, gate, ctx.scale).to(a.dtype)
                if need_gate:
                    dgate = ctx.scale * (product.to(gate.dtype) * a.to(gate.dtype)).sum(1)
            if need_b:
                inner = _narrow(rows, down) if inner is None else inner
                db = _weighted(inner @ dy, gate, ctx.scale).to(b.dtype).t()
        return None if dx is None else dx.view(x.shape), None, None, da, db, dgate, None, None


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor where a BLAS takes the same path as with any fresh one: a factor that lies in a mapped file would round otherwise."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _weighted(rows: Tensor, gate: Tensor | None, scale: float) -> Tensor:
    """Each row times its gate and the scale, with contiguous rows."""
    weighted = rows * scale if gate is None else rows * (gate * scale)[:, None]
    return weighted.contiguous()
