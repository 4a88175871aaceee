"""Computing with the live ranks only: the same values and gradients as with all, fewer products, nothing kept for the dead."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from paring.kernels.adapted import Live, adapted_linear
from paring.kernels.low_rank import add_low_rank
from paring.kernels.orders import Order, backward_flops, forward_flops
from tests.kernels.test_orders import IN_PLACE

ORDERS = [Order(merge_forward=f, merge_backward=b) for f, b in itertools.product([False, True], repeat=2)]
N, IN, OUT, R, SCALE = 6, 5, 4, 4, 2.0
GATES = {"some": [0.0, 1.5, 0.0, -0.7], "one": [0.0, 0.0, 2.0, 0.0], "none": [0.0] * 4, "all": [1.0, -2.0, 0.5, 3.0]}

orders = pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"F{1 + order.merge_forward}B{5 if order.merge_backward else 1}")
gates = pytest.mark.parametrize("values", GATES.values(), ids=GATES)
revives = pytest.mark.parametrize("revive", [True, False], ids=["revive", "hold"])


def given(values: list[float], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    x, a, b, gate = drawn(2, 3, IN), drawn(R, IN), drawn(OUT, R), torch.tensor(values, dtype=torch.float64)
    for tensor in (x, a, b, gate):
        tensor.requires_grad_(True)
    return x, a, b, gate, drawn(OUT, IN), drawn(OUT)


def live(gate: Tensor, revive: bool) -> Live:
    """Live ranks first, in an order of their own, so that no test passes by the order alone."""
    alive, dead = gate.detach().nonzero().squeeze(1).flip(0), (gate.detach() == 0).nonzero().squeeze(1)
    return Live(torch.cat([alive, dead]) if revive else alive, len(alive))


@orders
@gates
@revives
def test_values_and_gradients_are_those_of_all_ranks(order: Order, values: list[float], revive: bool, generator: torch.Generator) -> None:
    x, a, b, gate, weight, bias = given(values, generator)
    y = adapted_linear(x, weight, bias, a, b, gate, SCALE, order, live(gate, revive))
    plain = add_low_rank(F.linear(x, weight, bias), x, a, b, SCALE * gate)
    torch.testing.assert_close(y, plain)
    leaves = [x, a, b, gate]
    pull = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    got = torch.autograd.grad(y, leaves, pull, allow_unused=True)
    wanted = list(torch.autograd.grad(plain, leaves, pull))
    if not revive and not any(values):
        # Nothing trains in an empty module, so the optimizer is not to touch it: what would be zeros is not there.
        assert got[1] is None
        assert got[2] is None
        assert not wanted[1].any()
        assert not wanted[2].any()
        torch.testing.assert_close(got[0], wanted[0])
        assert not got[3].any()
        return
    if not revive:
        # The only gradients that all ranks would have had and these do not: those of gates that are held at zero.
        wanted[3] = torch.where(gate == 0, 0.0, wanted[3])
    torch.testing.assert_close(list(got), wanted)
    dead = gate == 0
    assert not got[1][dead].any()
    assert not got[2][:, dead].any()


@orders
@gates
@pytest.mark.parametrize("wanted", [c for k in range(1, 4) for c in itertools.combinations(range(4), k)])
def test_each_gradient_alone(order: Order, values: list[float], wanted: tuple[int, ...], generator: torch.Generator) -> None:
    x, a, b, gate, weight, bias = given(values, generator)
    leaves = [x, a, b, gate]
    for index, tensor in enumerate(leaves):
        tensor.requires_grad_(index in wanted)
    chosen = [leaves[index] for index in wanted]
    y = adapted_linear(x, weight, bias, a, b, gate, SCALE, order, live(gate, True))
    plain = add_low_rank(F.linear(x, weight, bias), x, a, b, SCALE * gate)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), chosen), torch.autograd.grad(plain.square().sum(), chosen))


@orders
@gates
@revives
def test_second_derivatives(order: Order, values: list[float], revive: bool, generator: torch.Generator) -> None:
    x, a, b, gate, weight, bias = given(values, generator)
    taken = live(gate, revive)
    # Around dead gates only what the function says of itself can be tested: gradcheck moves every entry of what it is given.
    moved = [x, a, b, gate] if revive and taken.count == R else [x, a, b]

    def function(*tensors: Tensor) -> Tensor:
        moving = tensors[3] if len(tensors) > 3 else gate
        return adapted_linear(tensors[0], weight, bias, tensors[1], tensors[2], moving, SCALE, order, taken)

    assert torch.autograd.gradcheck(function, moved)
    assert torch.autograd.gradgradcheck(function, moved)


@gates
def test_second_derivatives_through_dead_gates_are_those_of_all_ranks(values: list[float], generator: torch.Generator) -> None:
    x, a, b, gate, weight, bias = given(values, generator)
    leaves = [x, a, b, gate]

    def twice(y: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        total = torch.stack([part.square().sum() for part in first]).sum()
        return torch.autograd.grad(total, leaves)

    got = twice(adapted_linear(x, weight, bias, a, b, gate, SCALE, live=live(gate, True)))
    torch.testing.assert_close(got, twice(add_low_rank(F.linear(x, weight, bias), x, a, b, SCALE * gate)))


@pytest.mark.parametrize("merge", [False, True])
@revives
def test_flops_are_those_of_the_live_ranks(merge: bool, revive: bool) -> None:
    n, i, o, r, alive = 12, 8, 6, 5, 2
    x, a, b = torch.randn(n, i, requires_grad=True), torch.randn(r, i, requires_grad=True), torch.randn(o, r, requires_grad=True)
    gate = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0], requires_grad=True)
    order = Order(merge_forward=merge, merge_backward=merge)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        y = adapted_linear(x, torch.randn(o, i), None, a, b, gate, 2.0, order, live(gate, revive))
    assert counter.get_total_flops() == forward_flops(n, i, o, alive, merge=merge)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        y.backward(torch.randn(n, o))
    # A dead gate's own gradient takes Z and Z^T X.
    asked = 2 * n * (r - alive) * (i + o) if revive else 0
    assert counter.get_total_flops() == backward_flops(n, i, o, alive, merge=merge, kept=not merge) + asked


def test_an_empty_module_costs_what_the_base_costs(generator: torch.Generator) -> None:
    x, a, b, gate, weight, bias = given(GATES["none"], generator)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        y = adapted_linear(x, weight, bias, a, b, gate, SCALE, live=live(gate, False))
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * N * IN * OUT
    assert torch.equal(y, F.linear(x, weight, bias))
    assert gate.grad is not None
    assert not gate.grad.any()


def test_an_empty_module_keeps_no_input(generator: torch.Generator) -> None:
    x, a, b, gate, weight, bias = given(GATES["none"], generator)
    held: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        held.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted_linear(x, weight, bias, a, b, gate, SCALE, live=live(gate, False), dropout=0.5)
    assert held == {weight.data_ptr(), gate.data_ptr()}


@revives
def test_what_is_kept_shrinks_with_the_live_ranks(revive: bool, generator: torch.Generator) -> None:
    x, a, b, gate, weight, bias = given(GATES["one"], generator)
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    taken = live(gate, revive)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted_linear(x, weight, bias, a, b, gate, SCALE, Order(merge_forward=False, merge_backward=False), taken)
    own = {tensor.untyped_storage().data_ptr() for tensor in (weight, bias, a, b, gate, taken.index)}
    assert sum(size for place, size in held.items() if place not in own) == 8 * (N * IN + N * 1)
