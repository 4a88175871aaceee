r"""In which order the products of an adapted linear are formed, chosen from shapes alone.

With ``N`` rows of input, ``W`` (out x in), ``A`` (r x in), ``B`` (out x r), and what is already folded into ``B``:

========  ===================================================  =========================
order     what is formed                                       beyond the frozen linear
========  ===================================================  =========================
forward
  F1      :math:`XW^\top + (XA^\top)B^\top`                    :math:`2Nr(i + o)`
  F2      :math:`X(W + BA)^\top`                               :math:`2ior`
backward
  B1      :math:`dY\,W + (dY\,B)A`                             :math:`2Nri`
  B5      :math:`dY(W + BA)`                                   :math:`2ior`
========  ===================================================  =========================

The gradients of the factors, :math:`dA = (dY B)^\top X` and :math:`dB = dY^\top (X A^\top)`, are the same in all of them.

F2 and B5 write a matrix of W's size and read the activations once less; they win where there are many rows. They are used in full
precision only: in bfloat16 the sum ``W + BA`` would round to ``W`` wherever the update is below the resolution of the weight, and
the model that trains would not be the one that is exported. Names as in RunLoRA (arXiv 2312.03415).

The choice depends on nothing but shapes and types. It is never timed at run time: the same seed must give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

EXACT = (torch.float32, torch.float64)
"""Types in which the weight and its update may be added before they meet the input."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an entry of a matrix costs that is read and written once more, in the time of so many FLOPs of a large product.

    Attributes:
        weight: an entry of ``W + BA``, once, beside its ``2 r`` FLOPs.
        output: an entry of ``Y`` or ``dX``, where an update is added to it.
    """

    weight: float
    output: float


COSTS = {"cpu": Cost(weight=50.0, output=32.0)}
"""Medians that ``benchmarks/orderings.py`` measured on one processor, rounded. Other devices go by FLOPs alone."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One choice for one layer and one number of rows.

    Attributes:
        merge_forward: F2 in place of F1.
        merge_backward: B5 in place of B1.
    """

    merge_forward: bool
    merge_backward: bool


def forward_flops(rows: int, in_features: int, out_features: int, rank: int, *, merge: bool) -> int:
    """FLOPs of the forward (a multiply-add counts 2): F2 if ``merge``, else F1."""
    dense = 2 * rows * in_features * out_features
    return dense + 2 * rank * (in_features * out_features if merge else rows * (in_features + out_features))


def backward_flops(rows: int, in_features: int, out_features: int, rank: int, *, merge: bool, kept: bool) -> int:
    """FLOPs of the backward to x, A and B: B5 if ``merge``, else B1; ``kept`` if the forward has left ``X A^T``."""
    dense = 2 * rows * in_features * out_features
    factors = 2 * rows * rank * (2 * out_features + in_features + (0 if kept else in_features))
    return dense + factors + 2 * rank * (in_features * out_features if merge else rows * in_features)


def choose(rows: int, in_features: int, out_features: int, rank: int, *, dtype: torch.dtype, device: str = "cpu") -> Order:
    """The quicker order for these shapes.

    Args:
        rows: rows of the input, all leading dimensions together.
        in_features: width of the input.
        out_features: width of the output.
        rank: ranks that are computed with.
        dtype: type of the products; below float32 nothing is merged.
        device: type of the device.
    """
    if dtype not in EXACT:
        return Order(merge_forward=False, merge_backward=False)
    cost = COSTS.get(device, Cost(weight=0.0, output=0.0))
    merged = in_features * out_features * (cost.weight + 2 * rank)
    return Order(
        # X A^T is needed in any case, for dB, so only the second product counts.
        merge_forward=merged < rows * out_features * (cost.output + 2 * rank),
        merge_backward=merged < rows * in_features * (cost.output + 2 * rank),
    )
