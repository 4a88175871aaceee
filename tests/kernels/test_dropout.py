"""Dropout on the update's input inside the adapted linear: one mask for values and gradients, on nothing but the update."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from paring.kernels.adapted import Live, adapted_linear
from paring.kernels.low_rank import add_low_rank

N, IN, OUT, R, SCALE, P = 6, 5, 4, 3, 2.0, 0.4
SEED = 5
gates = pytest.mark.parametrize("values", [None, [1.5, -0.5, 2.0], [0.0, 1.5, 0.0], [0.0, 0.0, 0.0]], ids=["none", "all", "some", "dead"])


def given(
    generator: torch.Generator, values: list[float] | None, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor, Tensor]:
    sizes = [(2, 3, IN), (R, IN), (OUT, R)]
    leaves = [torch.randn(size, generator=generator, dtype=dtype).requires_grad_(True) for size in sizes]
    if values is not None:
        leaves.append(torch.tensor(values, dtype=torch.float64).to(dtype).requires_grad_(True))
    return leaves, torch.randn(OUT, IN, generator=generator, dtype=dtype), torch.randn(OUT, generator=generator, dtype=dtype)


def live(values: list[float] | None) -> Live | None:
    if values is None or all(values):
        return None
    alive = [rank for rank, value in enumerate(values) if value]
    dead = [rank for rank, value in enumerate(values) if not value]
    return Live(torch.tensor([*alive, *dead]), len(alive))


def ours(x: Tensor, a: Tensor, b: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, values: list[float] | None) -> Tensor:
    torch.manual_seed(SEED)
    return adapted_linear(x, weight, bias, a, b, gate, SCALE, live=live(values), dropout=P)


def mask() -> Tensor:
    """The entries that are kept, as drawn after the seed."""
    torch.manual_seed(SEED)
    return torch.empty(2, 3, IN, dtype=torch.bool).bernoulli_(1 - P)


def plain(x: Tensor, a: Tensor, b: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    dropped = x * mask() / (1 - P)
    return add_low_rank(F.linear(x, weight, bias), dropped, a, b, SCALE if gate is None else SCALE * gate)


@gates
def test_values_and_gradients_with_the_same_mask(values: list[float] | None, generator: torch.Generator) -> None:
    leaves, weight, bias = given(generator, values)
    x, a, b, *rest = leaves
    gate = rest[0] if rest else None
    kept = mask()
    assert kept.any()
    assert not kept.all()
    y, wanted = ours(x, a, b, gate, weight, bias, values), plain(x, a, b, gate, weight, bias)
    torch.testing.assert_close(y, wanted)
    pull = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    torch.testing.assert_close(torch.autograd.grad(y, leaves, pull), torch.autograd.grad(wanted, leaves, pull))


def test_second_derivatives(generator: torch.Generator) -> None:
    (x, a, b, gate), weight, bias = given(generator, [1.5, -0.5, 2.0])

    def function(*leaves: Tensor) -> Tensor:
        return ours(*leaves, weight, bias, None)

    assert torch.autograd.gradcheck(function, [x, a, b, gate])
    assert torch.autograd.gradgradcheck(function, [x, a, b, gate])


def test_the_base_sees_all_of_the_input(generator: torch.Generator) -> None:
    (x, a, b, gate), weight, bias = given(generator, [1.5, -0.5, 2.0], torch.float32)
    torch.manual_seed(SEED)
    y = adapted_linear(x, weight, bias, a, b * 0, gate, SCALE, dropout=0.99)
    assert torch.equal(y, F.linear(x, weight, bias))


def test_in_the_mean_nothing_is_lost(generator: torch.Generator) -> None:
    """With 1 / (1 - p) on what is kept, the update's mean over masks is the update."""
    (x, a, b, gate), weight, bias = given(generator, [1.5, -0.5, 2.0])
    with torch.no_grad():
        many = x[:1, :1].expand(40_000, 1, IN)
        torch.manual_seed(SEED)
        mean = adapted_linear(many, weight, bias, a, b, gate, SCALE, dropout=P).mean(0)
        wanted = adapted_linear(x[:1, :1], weight, bias, a, b, gate, SCALE)[0]
    assert float((mean - wanted).norm() / wanted.norm()) < 0.03


def test_under_autocast(generator: torch.Generator) -> None:
    (x, a, b, gate), weight, bias = given(generator, [1.5, -0.5, 2.0], torch.float32)
    leaves = [x, a, b, gate]
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = ours(x, a, b, gate, weight, bias, None), plain(x, a, b, gate, weight, bias)
    assert y.dtype == wanted.dtype == torch.bfloat16
    for one, other in zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(wanted.sum(), leaves), strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).norm() / other.norm()) < 3e-2


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_draws_the_same_mask(reentrant: bool, generator: torch.Generator) -> None:
    leaves, weight, bias = given(generator, [1.5, -0.5, 2.0], torch.float32)

    def function(*tensors: Tensor) -> Tensor:
        return adapted_linear(tensors[0], weight, bias, *tensors[1:], SCALE, dropout=P)  # type: ignore[arg-type, misc]

    torch.manual_seed(SEED)
    once = torch.autograd.grad(function(*leaves).square().sum(), leaves)
    torch.manual_seed(SEED)
    checkpoint(function, *leaves, use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(leaf.grad, kept) for leaf, kept in zip(leaves, once, strict=True) if leaf.grad is not None)
    assert all(leaf.grad is not None for leaf in leaves)


def test_kept_are_the_input_the_factors_and_a_mask_of_bytes(generator: torch.Generator) -> None:
    (x, a, b, gate), weight, bias = given(generator, [1.5, -0.5, 2.0], torch.float32)
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted_linear(x, weight, bias, a, b, gate, SCALE, dropout=P)
    own = {tensor.untyped_storage().data_ptr() for tensor in (weight, bias, a, b, gate)}
    assert sum(size for place, size in held.items() if place not in own) == 4 * (N * IN + N * R) + N * IN
