r"""Proximal operators, as pure functions of a tensor and a threshold.

The proximal operator of a penalty :math:`h` with step size :math:`\eta` is

.. math:: \operatorname{prox}_{\eta h}(v) = \arg\min_u \tfrac12 \lVert u - v\rVert^2 + \eta\, h(u).

The threshold is always given by the caller, as step size times penalty weight. It may be a number or a tensor; a tensor
is never read on the host, so a rate that lives on the device costs no synchronisation.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Threshold: TypeAlias = float | Tensor


def soft_threshold(v: Float[Tensor, "*shape"], t: Threshold) -> Float[Tensor, "*shape"]:
    r"""Soft-thresholding, the proximal operator of :math:`t\,\lVert\cdot\rVert_1`.

    .. math:: \operatorname{prox}(v)_i = \operatorname{sign}(v_i)\,\max(|v_i| - t,\, 0)

    Args:
        v: any shape; NaN stays NaN.
        t: threshold, step size x penalty weight, in the units of ``v``; ``t = 0`` is the identity.

    Returns:
        A new tensor of the same shape. Entries with ``|v_i| <= t`` are exactly ``+0.0``.

    Source: Parikh and Boyd, Proximal Algorithms (2014), section 6.5.2; SoRA (arXiv 2311.11696) applies it to its gates.
    """
    # v - clamp(v, -t, t): one rounding, and a dead entry is +0.0, where sign(v) * 0 would leave -0.0 behind.
    return v - (v.clamp(-t, t) if not isinstance(t, Tensor) else torch.clamp(v, min=-t, max=t))


def group_soft_threshold(v: Float[Tensor, "*shape"], t: Threshold, dim: int | None = None) -> Float[Tensor, "*shape"]:
    r"""Block soft-thresholding, the proximal operator of :math:`t \sum_g \lVert v_g\rVert_2`.

    .. math:: \operatorname{prox}(v)_g = \max\bigl(0,\, 1 - t / \lVert v_g\rVert_2\bigr)\, v_g

    Args:
        v: any shape. The direction of a group is kept; its norm becomes ``max(norm - t, 0)``.
        t: threshold, step size x penalty weight.
        dim: the dimension along which a group lies, so that each slice is a group; ``None`` makes all of ``v`` one group.

    Returns:
        A new tensor; a group of norm ``<= t`` is exactly zero, also where it was zero before (no division by zero). A group that
        holds NaN stays NaN.
    """
    norm = torch.linalg.vector_norm(v, dim=dim, keepdim=dim is not None)
    return torch.where(norm <= t, torch.zeros_like(v), v * shrinkage(norm, t))


def shrinkage(norm: Float[Tensor, "*shape"], t: Threshold) -> Float[Tensor, "*shape"]:
    r"""What block soft-thresholding multiplies a group of norm ``norm`` by, where the group lies in several tensors.

    .. math:: \max\bigl(0,\, 1 - t / \lVert v_g\rVert_2\bigr)

    Args:
        norm: of each group.
        t: threshold, step size x penalty weight.

    Returns:
        Of the same shape, in [0, 1]; exactly zero where ``norm <= t``, also for a norm of zero (no division by zero). NaN stays NaN.
    """
    dead = norm <= t
    shrunk = (norm - t) / torch.where(dead, torch.ones_like(norm), norm)
    return torch.where(dead, torch.zeros_like(norm), shrunk)


def released_threshold(v: Float[Tensor, "*shape"], t: Threshold) -> Float[Tensor, "*shape"]:
    r"""The operator that SoRA's released optimizer applies in place of soft-thresholding.

    Three in-place masks are applied one after another there, the last one to values that the first ones have already
    shrunk. Written out, the result is

    .. math::
        v \mapsto \begin{cases} v & |v| = t \\ v - \operatorname{sign}(v)\,t & |v| \ge 2t \\ 0 & \text{otherwise}\end{cases}

    so the dead zone reaches to ``2 t``, the output jumps from ``0`` to ``t`` there, and ``+-t`` are fixed points. It is
    not the proximal operator of any penalty on all of the line. Offered under its own name, for comparison; the exact
    :func:`soft_threshold` is paring's default.

    Args:
        v: any shape.
        t: threshold. The released code uses a constant here, not step size x weight.
    """
    # Computed as the released code does, mask after mask, so that values at +-t and 2t round as they do there.
    first = torch.where(v.abs() > t, v - torch.sign(v) * t, v)
    return torch.where(first.abs() < t, torch.zeros_like(v), first)
