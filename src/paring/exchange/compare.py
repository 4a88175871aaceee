r"""How far two updates are apart, measured on random inputs, without forming either of the dense matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from paring.core.adapter import Adapter
from paring.core.entries import Entries
from paring.core.errors import AdapterError, ExportError
from paring.core.factors import Factors

PROBES = 4

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Largest relative difference that rounding to a type may leave between the live update and the exported one."""


def probes(width: int, generator: torch.Generator) -> Tensor:
    """Standard normal inputs, shape ``(PROBES, width)``, float64, on the CPU."""
    return torch.randn(PROBES, width, generator=generator, dtype=torch.float64, device="cpu")


def response(update: Factors | Entries, x: Tensor) -> Tensor:
    """The update applied to ``x`` of shape ``(n, in)``: ``(n, out)``, computed in float64."""
    return update.to(device="cpu", dtype=torch.float64).apply(x)


def difference(a: Factors | Entries, b: Factors | Entries, generator: torch.Generator) -> float:
    r"""How far two updates of one module are apart, relative to the larger of the two.

    .. math:: \frac{\lVert (\Delta_a - \Delta_b) X \rVert_F}{\max(\lVert \Delta_a X \rVert_F, \lVert \Delta_b X \rVert_F)}

    with a few standard normal columns :math:`X`. 0 means the same update (two that are both zero included), 1 that one of the
    two is zero, 2 that they are opposite. Computed in float64 whatever the factors are stored in.

    Raises:
        AdapterError: the two belong to modules of different shapes.
    """
    if (a.in_features, a.out_features) != (b.in_features, b.out_features):
        raise AdapterError(
            f"Cannot compare an update {a.in_features} -> {a.out_features} with one {b.in_features} -> {b.out_features}: "
            "they are of different modules."
        )
    x = probes(a.in_features, generator)
    left, right = response(a, x), response(b, x)
    size = max(float(left.norm()), float(right.norm()))
    return 0.0 if size == 0.0 else float((left - right).norm()) / size


def differences(a: Adapter, b: Adapter, generator: torch.Generator) -> dict[str, float]:
    """:func:`difference` of every module of two adapters; a module that only one of them has counts as zero in the other.

    Raises:
        AdapterError: a module has different shapes in the two.
    """
    result: dict[str, float] = {}
    ours, theirs = a.updates, b.updates
    for path in sorted({*ours, *theirs}):
        left, right = ours.get(path), theirs.get(path)
        one = left if left is not None else right
        assert one is not None
        result[path] = difference(left or _zero(one), right or _zero(one), generator)
    return result


def _zero(like: Factors | Entries) -> Factors:
    return Factors(a=torch.zeros(0, like.in_features), b=torch.zeros(like.out_features, 0))


def check_written(written: Adapter, live: Adapter, dtype: torch.dtype | None) -> None:
    """Compare what was written with the adapter that was meant: every module's update on random inputs, every tensor of the heads.

    Raises:
        ExportError: something differs by more than rounding to the type it was written in.
    """
    advice = "nothing was written. If dtype is float16, its range may be too small for this adapter: use bfloat16 or float32."
    updates = live.updates
    for path, distance in differences(written, live, torch.Generator().manual_seed(0)).items():
        # Without a dtype each tensor keeps its own, and TRL trains the factors of a quantised model in bfloat16.
        update = updates[path]
        kinds = {update.values.dtype} if isinstance(update, Entries) else {update.a.dtype, update.b.dtype}
        allowed = max(TOLERANCE.get(dtype or kind, 1e-5) for kind in kinds)
        if not distance <= allowed:
            raise ExportError(f"The export of {path!r} differs from the live model by {distance:.1e} (allowed {allowed:.0e}); {advice}")
    for path, magnitude in live.magnitudes.items():
        kept = written.magnitudes.get(path)
        allowed = TOLERANCE.get(dtype or magnitude.dtype, 1e-5)
        if kept is None or not float((kept.double() - magnitude.double()).norm()) <= allowed * float(magnitude.double().norm()):
            raise ExportError(f"The export lacks the magnitudes of {path!r}, or has others; {advice}")
    for name, tensor in live.heads.items():
        kept = written.heads.get(name)
        if kept is None or kept.shape != tensor.shape:
            raise ExportError(f"The export lacks the trained head {name!r}, or has it in another shape; nothing was written.")
        exact = tensor.double()
        distance = float((kept.double() - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float64).tiny))
        allowed = TOLERANCE.get(kept.dtype, 0.0) if kept.dtype != tensor.dtype else 0.0
        if not distance <= allowed:
            raise ExportError(f"The exported head {name!r} differs from the live one by {distance:.1e} (allowed {allowed:.0e}); {advice}")
