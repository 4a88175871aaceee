"""The adapted linear in every order: values, first and second derivatives, types, layouts, and what it keeps for the backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from paring.kernels.adapted import adapted_linear
from paring.kernels.low_rank import add_low_rank
from paring.kernels.orders import Order

ORDERS = [Order(merge_forward=f, merge_backward=b) for f, b in itertools.product([False, True], repeat=2)]
N, IN, OUT, R, SCALE = 6, 5, 4, 2, 2.0

orders = pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"F{1 + order.merge_forward}B{5 if order.merge_backward else 1}")


def tensors(
    generator: torch.Generator, dtype: torch.dtype = torch.float64, gated: bool = True, shape: tuple[int, ...] = (2, 3)
) -> list[Tensor]:
    """x, A, B and perhaps a gate, all of which want gradients."""
    sizes = [(*shape, IN), (R, IN), (OUT, R), *([(R,)] if gated else [])]
    return [torch.randn(size, generator=generator, dtype=dtype).requires_grad_(True) for size in sizes]


def base(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(OUT, IN, generator=generator, dtype=dtype), torch.randn(OUT, generator=generator, dtype=dtype)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Tensor | None = None) -> Tensor:
    return add_low_rank(F.linear(x, weight, bias), x, a, b, SCALE if gate is None else SCALE * gate)


def fused(weight: Tensor, bias: Tensor | None, order: Order | None = None) -> Callable[..., Tensor]:
    return lambda x, a, b, gate=None: adapted_linear(x, weight, bias, a, b, gate, SCALE, order)


@orders
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_first_and_second_derivatives(order: Order, gated: bool, with_bias: bool, transposed: bool, generator: torch.Generator) -> None:
    given, (weight, bias) = tensors(generator, gated=gated, shape=(2,)), base(generator)
    weight = weight.t().contiguous().t() if transposed else weight
    function = fused(weight, bias if with_bias else None, order)
    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


@orders
@pytest.mark.parametrize("shape", [(), (1,), (N,), (2, 3), (2, 1, 3), (0,)])
def test_any_leading_dimensions(order: Order, shape: tuple[int, ...], generator: torch.Generator) -> None:
    (x, a, b, gate), (weight, bias) = tensors(generator, shape=shape), base(generator)
    y = fused(weight, bias, order)(x, a, b, gate)
    torch.testing.assert_close(y, plain(x, weight, bias, a, b, gate))
    got = torch.autograd.grad(y.square().sum(), [x, a, b, gate])
    wanted = torch.autograd.grad(plain(x, weight, bias, a, b, gate).square().sum(), [x, a, b, gate])
    torch.testing.assert_close(got, wanted)


@orders
def test_input_that_is_not_contiguous(order: Order, generator: torch.Generator) -> None:
    (_, a, b, gate), (weight, bias) = tensors(generator), base(generator)
    x = torch.randn(3, IN, 2, generator=generator, dtype=torch.float64).requires_grad_(True)
    turned = x.permute(2, 0, 1)
    got = torch.autograd.grad(fused(weight, bias, order)(turned, a, b, gate).square().sum(), [x, a, b, gate])
    wanted = torch.autograd.grad(plain(turned, weight, bias, a, b, gate).square().sum(), [x, a, b, gate])
    torch.testing.assert_close(got, wanted)


@orders
@pytest.mark.parametrize("wanted", [c for k in range(1, 4) for c in itertools.combinations(range(4), k)])
def test_each_gradient_alone(order: Order, wanted: tuple[int, ...], generator: torch.Generator) -> None:
    given, (weight, bias) = tensors(generator), base(generator)
    for index, tensor in enumerate(given):
        tensor.requires_grad_(index in wanted)
    chosen = [given[index] for index in wanted]
    x, a, b, gate = given
    got = torch.autograd.grad(fused(weight, bias, order)(x, a, b, gate).square().sum(), chosen)
    torch.testing.assert_close(got, torch.autograd.grad(plain(x, weight, bias, a, b, gate).square().sum(), chosen))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_gradients_in_each_type_are_those_of_float64(dtype: torch.dtype, tolerance: float, generator: torch.Generator) -> None:
    exact, (weight, bias) = tensors(generator, shape=(16,)), base(generator)
    rounded = [tensor.detach().to(dtype).requires_grad_(True) for tensor in exact[:3]] + [exact[3].detach().float().requires_grad_(True)]
    reference = [tensor.detach().double().requires_grad_(True) for tensor in rounded]
    y = fused(weight.to(dtype), bias.to(dtype))(*rounded)
    truth = plain(reference[0], weight.to(dtype).double(), bias.to(dtype).double(), *reference[1:])
    assert y.dtype == dtype
    for got, wanted in zip(
        [y.detach(), *torch.autograd.grad(y.sum(), rounded)], [truth.detach(), *torch.autograd.grad(truth.sum(), reference)], strict=True
    ):
        assert float((got.double() - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_under_autocast(given: torch.dtype, generator: torch.Generator) -> None:
    (x, a, b, gate), (weight, bias) = tensors(generator, torch.float32, shape=(16,)), base(generator, torch.float32)
    x = x.detach().to(given).requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = fused(weight, bias)(x, a, b, gate), plain(x, weight, bias, a, b, gate)
    assert y.dtype == wanted.dtype == torch.bfloat16
    got, expected = torch.autograd.grad(y.sum(), [x, a, b, gate]), torch.autograd.grad(wanted.sum(), [x, a, b, gate])
    assert [tensor.dtype for tensor in got] == [tensor.dtype for tensor in (x, a, b, gate)]
    for one, other in zip([y, *got], [wanted, *expected], strict=True):
        one, other = one.detach().float(), other.detach().float()
        assert float((one - other).norm() / other.norm()) < 3e-2


def test_in_low_precision_an_update_below_the_weights_resolution_is_not_lost() -> None:
    """The reason why F2 is not used there: 1 + 2^-10 is 1 in bfloat16."""
    weight, x = torch.ones(1, 1, dtype=torch.bfloat16), torch.ones(1, 1, dtype=torch.bfloat16)
    a, b = torch.ones(1, 1, dtype=torch.bfloat16), torch.full((1, 1), 2.0**-10, dtype=torch.bfloat16)
    zero = torch.full((1,), -1.0, dtype=torch.bfloat16)
    assert adapted_linear(x, weight, zero, a, b, None, 1.0, Order(merge_forward=True, merge_backward=True)).item() == 0.0
    assert adapted_linear(x, weight, zero, a, b, None, 1.0).item() == 2.0**-10


@orders
def test_a_zero_update_leaves_the_bits_of_the_base(order: Order, generator: torch.Generator) -> None:
    (x, a, b, gate), (weight, bias) = tensors(generator, torch.float32), base(generator, torch.float32)
    assert torch.equal(fused(weight, bias, order)(x, a, b * 0, gate), F.linear(x, weight, bias))


@orders
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_bits(order: Order, reentrant: bool, generator: torch.Generator) -> None:
    given, (weight, bias) = tensors(generator, torch.float32), base(generator, torch.float32)
    function = fused(weight, bias, order)
    once = torch.autograd.grad(function(*given).square().sum(), given)
    for tensor in given:
        tensor.grad = None
    checkpoint(function, *given, use_reentrant=reentrant).square().sum().backward()
    assert all(tensor.grad is not None and torch.equal(tensor.grad, kept) for tensor, kept in zip(given, once, strict=True))


@orders
def test_a_function_that_is_used_twice_adds_its_gradients(order: Order, generator: torch.Generator) -> None:
    _, a, b, gate = tensors(generator)
    weight = torch.randn(IN, IN, generator=generator, dtype=torch.float64)
    wide = torch.randn(IN, R, generator=generator, dtype=torch.float64).requires_grad_(True)
    x = torch.randn(3, IN, generator=generator, dtype=torch.float64).requires_grad_(True)
    function = fused(weight, None, order)
    got = torch.autograd.grad(function(function(x, a, wide, gate), a, wide, gate).square().sum(), [x, a, wide, gate])
    once = plain(x, weight, None, a, wide, gate)
    torch.testing.assert_close(got, torch.autograd.grad(plain(once, weight, None, a, wide, gate).square().sum(), [x, a, wide, gate]))
    assert b.grad is None


@orders
@pytest.mark.parametrize("cast", [False, True], ids=["as_they_are", "cast"])
def test_kept_for_the_backward_are_the_input_one_narrow_product_and_factors_that_were_cast(
    order: Order, cast: bool, generator: torch.Generator
) -> None:
    (x, a, b, gate), (weight, bias) = tensors(generator, torch.float32, shape=(N,)), base(generator, torch.float32)
    if cast:
        x, weight, bias = x.detach().double().requires_grad_(True), weight.double(), bias.double()
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = fused(weight, bias, order)(x, a, b, gate)
    own = {tensor.untyped_storage().data_ptr() for tensor in (weight, bias, a, b, gate)}
    narrow = 0 if order.merge_forward else N * R
    wide = 8 * (N * IN + narrow + R * (IN + OUT)) if cast else 4 * (N * IN + narrow)
    assert sum(size for place, size in held.items() if place not in own) == wide
    assert y.requires_grad


def test_without_gradients_nothing_is_kept(generator: torch.Generator) -> None:
    (x, a, b, gate), (weight, bias) = tensors(generator, torch.float32), base(generator, torch.float32)
    with torch.no_grad():
        assert fused(weight, bias)(x, a, b, gate).grad_fn is None
