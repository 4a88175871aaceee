r"""Values over the course of a run: the lists of penalties that SoRA's sparsifying scheduler walks through."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from paring.core.errors import SettingError

Spacing: TypeAlias = Literal["linear", "log_linear", "exp_linear"]


def _warped(low: float, high: float, count: int, warp: Callable[[float], float], back: Callable[[float], float]) -> tuple[float, ...]:
    start, stop = warp(low), warp(high)
    inner = tuple(back(start + (stop - start) * i / (count - 1)) for i in range(1, count - 1))
    # The ends are given, not computed, so that they are exact whatever the warp rounds to.
    return (low, *inner, high)


def penalty_list(low: float, high: float, count: int, spacing: Spacing = "linear") -> tuple[float, ...]:
    r"""Ascending penalties :math:`\xi_1 < \dots < \xi_N` for the sparsifying scheduler (SoRA, Algorithm 1).

    ========== ===============================================================
    spacing    i-th value, with :math:`\ell` an even grid between two ends
    ========== ===============================================================
    linear     :math:`\ell(\text{low}, \text{high})`
    log_linear :math:`\log \ell(e^{\text{low}}, e^{\text{high}})`
    exp_linear :math:`\exp \ell(\log \text{low}, \log \text{high})` (geometric)
    ========== ===============================================================

    Args:
        low: first penalty, >= 0; > 0 for ``exp_linear``.
        high: last penalty, > low.
        count: number of penalties, >= 2.
        spacing: how the values between are laid out.

    Raises:
        SettingError: the ends are not ascending and finite, ``count < 2``, ``exp_linear`` starts at 0, or ``log_linear`` ends above 700.
    """
    if count < 2:
        raise SettingError(f"count={count}: a list of penalties has a first and a last value; give count >= 2.")
    if not (math.isfinite(low) and math.isfinite(high) and 0.0 <= low < high):
        raise SettingError(f"low={low}, high={high}: penalties must be finite and ascend from low >= 0 to high > low.")
    if spacing == "linear":
        return _warped(low, high, count, float, float)
    if spacing == "log_linear":
        if high > 700.0:
            raise SettingError(f"high={high} with spacing 'log_linear': e to that power overflows; give high <= 700 or use 'linear'.")
        # expm1/log1p keep the small penalties (1e-4 and below) that exp/log would round away.
        return _warped(low, high, count, math.expm1, math.log1p)
    if spacing == "exp_linear":
        if low == 0.0:
            raise SettingError("low=0 with spacing 'exp_linear': a geometric list has no zero; give low > 0 or use 'linear'.")
        return _warped(low, high, count, math.log, math.exp)
    raise SettingError(f"spacing={spacing!r}: choose 'linear', 'log_linear' or 'exp_linear'.")
