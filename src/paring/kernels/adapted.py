r"""A frozen linear and its low-rank update as one function: :math:`y = x W^\top + \beta + ((x A^\top) \odot w) B^\top`.

What it does otherwise than the same products left to autograd:

- The factors lie with their long sides contiguous, also B, which is stored the other way: a BLAS is up to five times quicker with them.
- The update is added inside a product, never written out on its own; so is its share of :math:`dX`.
- Gate and scale are folded into ``A``, once a step, never multiplied onto activations: with :math:`\bar A = \mathrm{diag}(w) A`,
  :math:`Z = dY B` and :math:`P = Z^\top X`, the gradients are :math:`dX = dY W + Z \bar A`, :math:`dA = \mathrm{diag}(w) P`,
  :math:`dB = dY^\top (X \bar A^\top)` and :math:`dg_k = s\,\langle A_k, P_k\rangle`, a sum over ``in`` entries and not over rows.
- The order of the products is chosen from the shapes (:mod:`paring.kernels.orders`).
- For the backward it keeps ``x`` and, where the forward has formed it, :math:`X \bar A^\top`; nothing as wide as the output. The two
  factors as the products take them are kept where they were cast, else formed again: they would be second copies of parameters.
- Dropout on the update's input is a mask of one byte an entry; the input with holes is formed again in the backward.
- Ranks whose gate is exactly zero are left out of every product but, where asked for, those of their own gates' gradients. An empty
  module is the frozen linear and keeps no input.

Source of the orders: RunLoRA (arXiv 2312.03415). The plain twin is :func:`paring.kernels.low_rank.add_low_rank` on top of a linear.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from paring.kernels.casts import cast_once
from paring.kernels.orders import EXACT, Order, choose

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
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else weight.dtype
    count = a.shape[0] if live is None else live.count
    if order is None:
        if dropout or dtype not in EXACT:
            order = SEPARATE
        else:
            order = choose(x.numel() // max(1, x.shape[-1]), weight.shape[1], weight.shape[0], count, dtype=dtype, device=kind)
    if autocast:
        # The casts that autocast would make; what is saved is then what was given, so that second derivatives are right too.
        if x.dtype != dtype:
            x = cast_once(x, dtype)
        if weight.dtype != dtype:
            weight = weight.to(dtype)
        if bias is not None and bias.dtype != dtype:
            bias = bias.to(dtype)
    if live is not None and not live.index.shape[0]:
        unchanged: Tensor = _Empty.apply(x, weight, bias, a, b, gate)  # type: ignore[no-untyped-call]
        return unchanged
    mask = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1.0 - dropout) if dropout else None
    # What is left after dropout is scaled up, which the r-wide factors carry.
    plan = _Plan(scale / (1.0 - dropout), order, None if live is None else live.index, count)
    result: Tensor = _Adapted.apply(x, weight, bias, a, b, gate, mask, plan)  # type: ignore[no-untyped-call]
    return result


class _Plan(NamedTuple):
    """What a call is not differentiated by.

    Attributes:
        scale: ``s``, with what dropout asks for.
        order: of the products.
        ranks: those whose gates get a gradient, the live ones first; ``None`` means all, as they lie.
        live: how many of them are computed with.
    """

    scale: float
    order: Order
    ranks: Tensor | None
    live: int


class _Empty(torch.autograd.Function):
    """No rank is computed with, and no gate asked about: the frozen linear, which keeps no input.

    The gate has a gradient of zeros, by which it is known to be in training; the factors have none, so that optimizers pass them over.
    They are in the graph all the same: DDP waits until it has heard of every parameter.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(weight, gate)
        with _products(x):
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, gate = ctx.saved_tensors
        with _products(weight):
            dx = torch.matmul(grad, weight) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None, torch.zeros_like(gate)


def idle(y: Tensor, *parameters: Tensor) -> Tensor:
    """``y`` itself, with parameters in its graph that get no gradient: DDP waits until it has heard of every parameter."""
    result: Tensor = _Idle.apply(y, *parameters)  # type: ignore[no-untyped-call]
    return result


class _Idle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *(None for _ in range(ctx.count))


class _Adapted(torch.autograd.Function):
    # One product follows another in these two, and every step of every module goes through them, so what they cost on the host counts:
    # no cast, copy or context where there is nothing to do.

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
        plan: _Plan,
    ) -> Tensor:
        with _products(x):
            rows = _rows(x)
            inner = down = up = None
            if plan.live:
                down, up = _folded(a, b, gate, plan, x.dtype)
                live = _first(up, plan.live)
                if plan.order.merge_forward:
                    y = F.linear(rows, torch.addmm(weight, live.t(), down), bias)
                else:
                    y = F.linear(rows, weight, bias)
                    inner = torch.mm(_seen(rows, mask), down.t())
                    y.addmm_(inner, live)
            else:
                y = F.linear(rows, weight, bias)
        if x.dtype == a.dtype:
            down = up = None
        ctx.save_for_backward(x, weight, a, b, gate, mask, plan.ranks, inner, down, up)
        ctx.plan = plan
        return y if x.ndim == 2 else y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, gate, mask, index, inner, down, up = ctx.saved_tensors
        plan: _Plan = ctx.plan
        need_x, _, _, need_a, need_b, need_gate = ctx.needs_input_grad[:6]
        if torch.is_grad_enabled():
            # A second derivative goes through all that was formed from what it depends on, so it is formed again; and through the
            # zeros of ranks that are left out, which are then left in, but for those whose gates are to have no gradient.
            inner = down = up = None
            if index is not None and index.shape[0] == a.shape[0]:
                index, plan = None, plan._replace(ranks=None, live=a.shape[0])
        count = plan.live
        with _products(x):
            dy, rows = _rows(grad), _rows(x)
            if up is None:
                down, up = _folded(a, b, gate, plan, x.dtype)
            dx = da = db = dgate = z = None
            merge = plan.order.merge_backward and count > 0
            if need_a or need_gate or (need_x and not merge):
                # Of the dead, nothing but their gates' gradients is wanted.
                z = torch.mm(dy, (up if need_gate else _first(up, count)).t())
            if need_x and merge:
                dx = torch.mm(dy, torch.addmm(weight, _first(up, count).t(), down))
            elif need_x:
                assert z is not None
                dx = torch.mm(dy, weight)
                if count:
                    live = z if z.shape[1] == count else z[:, :count]
                    if mask is None:
                        dx.addmm_(live, down)
                    else:
                        dx.add_(_seen(torch.mm(live, down), mask))
            seen = _seen(rows, mask) if need_a or need_gate or (need_b and inner is None) else rows
            if need_a or need_gate:
                assert z is not None
                # With beta 0 the first argument is not read: so the scale is part of the product.
                product = torch.addmm(weight[:1], z.t(), seen, beta=0.0, alpha=plan.scale)
                if need_a:
                    da = _spread(_gated(_first(product, count), gate, plan, a.dtype), index, a.shape[0])
                if need_gate:
                    dgate = _spread((product * _taken(a, index).to(gate.dtype)).sum(1), index, a.shape[0])
            if need_b:
                inner = torch.mm(seen, down.t()) if inner is None else inner
                db = _spread(torch.mm(inner.t(), dy).to(b.dtype), index, a.shape[0]).t()
        return None if dx is None else dx.view(x.shape), None, None, da, db, dgate, None, None


def _products(x: Tensor) -> AbstractContextManager[Any]:
    """Without autocast, where it would form products of another type than ``x``'s."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != x.dtype:
        return torch.autocast(kind, enabled=False)
    return _NOTHING


_NOTHING = nullcontext()


def _rows(x: Tensor) -> Tensor:
    """All leading dimensions together."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _first(ranks: Tensor, count: int) -> Tensor:
    """The first ``count`` along the first dimension."""
    return ranks if ranks.shape[0] == count else ranks[:count]


def _folded(a: Tensor, b: Tensor, gate: Tensor | None, plan: _Plan, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The live rows of A times gate and scale, and all rows of the transpose of B that are asked for, dead ones last.

    Both are fresh tensors with contiguous rows: a BLAS may round otherwise with a factor that lies in a mapped file.
    """
    index, turned = plan.ranks, b.t()
    factor = plan.scale if gate is None else (_living(gate, plan) * plan.scale).unsqueeze(1)
    down = _times(_living(a, plan), factor, dtype)
    if index is not None:
        return down, turned.index_select(0, index).to(dtype)
    return down, turned.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _gated(rows: Tensor, gate: Tensor | None, plan: _Plan, dtype: torch.dtype) -> Tensor:
    """The live rows, each times its gate."""
    return rows.to(dtype) if gate is None else _times(rows, _living(gate, plan).unsqueeze(1), dtype)


def _living(ranks: Tensor, plan: _Plan) -> Tensor:
    """Of all ranks along the first dimension those that are computed with."""
    return ranks if plan.ranks is None else ranks.index_select(0, _first(plan.ranks, plan.live))


def _times(rows: Tensor, factor: Tensor | float, dtype: torch.dtype) -> Tensor:
    """A product in the type that is asked for, rounded once and written once."""
    if rows.dtype == dtype or torch.is_grad_enabled():
        return (rows * factor).to(dtype)
    return torch.mul(rows, factor, out=torch.empty(rows.shape, dtype=dtype, device=rows.device))


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
    return rows.new_zeros(rank, *rows.shape[1:]).index_copy_(0, _first(index, rows.shape[0]), rows)
