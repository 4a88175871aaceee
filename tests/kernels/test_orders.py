"""The order of products: FLOPs are those that torch counts, the choice turns where they cross, nothing merges in low precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paring.kernels import orders
from paring.kernels.adapted import adapted_linear
from paring.kernels.orders import Cost, Order, backward_flops, choose, forward_flops


def in_place(y: Any, a: Any, b: Any, **_: Any) -> int:
    """FLOPs of ``addmm_``, from shapes: torch counts ``addmm``, but not its in-place form."""
    return 2 * int(a[0]) * int(a[1]) * int(b[1])


IN_PLACE = {torch.ops.aten.addmm_: in_place}
SHAPES = [(12, 8, 6, 2), (5, 4, 16, 3), (64, 16, 8, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_flops_are_those_that_torch_counts(shape: tuple[int, int, int, int], merge: bool, gated: bool) -> None:
    n, i, o, r = shape
    x, a, b = torch.randn(n, i, requires_grad=True), torch.randn(r, i, requires_grad=True), torch.randn(o, r, requires_grad=True)
    gate = torch.randn(r, requires_grad=True) if gated else None
    order = Order(merge_forward=merge, merge_backward=merge)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        y = adapted_linear(x, torch.randn(o, i), torch.randn(o), a, b, gate, 2.0, order)
    assert counter.get_total_flops() == forward_flops(n, i, o, r, merge=merge)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        y.backward(torch.randn(n, o))
    assert counter.get_total_flops() == backward_flops(n, i, o, r, merge=merge, kept=not merge)


def test_by_flops_alone_the_forward_turns_at_io_over_i_plus_o(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "COSTS", {})
    for i, o, r in [(384, 384, 8), (384, 1536, 64), (1536, 384, 2)]:
        # X A^T is needed for dB in any case, so what is compared is the second product: N o r against i o r.
        turn = i
        assert not choose(turn, i, o, r, dtype=torch.float32).merge_forward
        assert choose(turn + 1, i, o, r, dtype=torch.float32).merge_forward
        assert not choose(o, i, o, r, dtype=torch.float32).merge_backward
        assert choose(o + 1, i, o, r, dtype=torch.float32).merge_backward


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nothing_merges_below_float32(dtype: torch.dtype) -> None:
    assert choose(10**6, 384, 384, 64, dtype=dtype) == Order(merge_forward=False, merge_backward=False)


def test_a_single_row_merges_nothing() -> None:
    assert choose(1, 384, 1536, 8, dtype=torch.float32) == Order(merge_forward=False, merge_backward=False)


def test_memory_traffic_delays_the_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "COSTS", {"cpu": Cost(weight=100.0, output=0.0)})
    assert not choose(400, 384, 384, 8, dtype=torch.float32).merge_forward
    assert choose(400, 384, 384, 8, dtype=torch.float32, device="cuda").merge_forward
