"""One cast of an input that several modules see: query, key and value, or gate and up."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef


class _Cast(NamedTuple):
    """The last cast that autograd follows, held weakly: it lives as long as a backward needs it, not longer."""

    source: TensorWeakRef
    version: int
    result: TensorWeakRef


_last: _Cast | None = None


def cast_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``; the same tensor again, if the call before was given the same ``x`` and nobody has written to it since.

    Autocast does so for parameters that it casts, not for activations, of which it keeps a copy for each module that sees them. With one
    cast the copy is kept once, and the gradients of the modules are added in ``dtype`` before the way back through the cast.

    Args:
        x: an activation.
        dtype: another type than its own.
    """
    global _last  # noqa: PLW0603 - one place in the whole process, replaced as a whole
    if not (x.requires_grad and torch.is_grad_enabled()) or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        # Nothing would keep it alive; and what a graph of CUDA replays is to cast each time.
        return x.to(dtype)
    last = _last
    if last is not None and last.source() is x and last.version == x._version:
        result: Tensor | None = last.result()
        if result is not None and result.dtype == dtype and not result._version:
            return result
    result = x.to(dtype)
    _last = _Cast(TensorWeakRef(x), x._version, TensorWeakRef(result))
    return result
