r"""Adding a low-rank update to a base output: :math:`y + s\,((x A^\top) \odot g) B^\top`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def low_rank(
    x: Float[Tensor, "*batch in"], a: Float[Tensor, "r in"], b: Float[Tensor, "out r"], weight: Tensor | float
) -> Float[Tensor, "*batch out"]:
    r"""The update alone, :math:`((x A^\top) \odot w) B^\top`; the plain twin of :func:`add_low_rank`.

    Args:
        x: inputs, in the dtype of the factors, or any dtype under autocast.
        a: down-projection.
        b: up-projection.
        weight: ``s * g`` of shape ``(r,)``, or the number ``s``: scaling the r-wide product costs out/r times less than
            scaling the output.
    """
    inner = F.linear(x, a)
    # Under autocast the product is bf16 and the gate float32; without the cast the product would be promoted and copied.
    inner = inner * (weight.to(inner.dtype) if isinstance(weight, Tensor) else weight)
    return F.linear(inner, b)


def add_low_rank(
    y: Float[Tensor, "*batch out"],
    x: Float[Tensor, "*batch in"],
    a: Float[Tensor, "r in"],
    b: Float[Tensor, "out r"],
    weight: Tensor | float,
) -> Float[Tensor, "*batch out"]:
    r"""Base output plus update, :math:`y + ((x A^\top) \odot w) B^\top`, in the dtype of ``y``.

    The sum is formed by the second product itself where dtypes allow it, so the update is never written out on its own.
    ``y`` is not changed.
    """
    if not torch.is_autocast_enabled(y.device.type):
        x = x.to(a.dtype)
    inner = F.linear(x, a)
    inner = inner * (weight.to(inner.dtype) if isinstance(weight, Tensor) else weight)
    if inner.dtype != y.dtype:
        return y + F.linear(inner, b).to(y.dtype)
    total = torch.addmm(y.reshape(-1, y.shape[-1]), inner.reshape(-1, inner.shape[-1]), b.t())
    return total.view(y.shape)
