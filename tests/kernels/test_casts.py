"""What several modules see is cast once under autocast."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from paring.kernels.adapted import adapted_linear
from paring.kernels.casts import cast_once

LOW = torch.bfloat16


def activation(generator: torch.Generator, *size: int) -> Tensor:
    """Not a leaf, as what one module hands to the next."""
    return torch.randn(*size, generator=generator).requires_grad_(True) * 1.0


def test_the_same_tensor_is_cast_once_as_long_as_someone_keeps_the_cast(generator: torch.Generator) -> None:
    x = activation(generator, 3, 4)
    first = cast_once(x, LOW)
    assert cast_once(x, LOW) is first
    torch.testing.assert_close(first, x.to(LOW), rtol=0, atol=0)
    place = first.data_ptr()
    kept = first.square().sum()  # keeps the cast for its backward, and nobody else does
    del first
    gc.collect()
    assert cast_once(x, LOW).data_ptr() == place
    del kept


def test_what_was_written_to_since_is_cast_again(generator: torch.Generator) -> None:
    x = activation(generator, 3, 4)
    first = cast_once(x, LOW)
    with torch.no_grad():
        x.add_(1.0)
    second = cast_once(x, LOW)
    assert second is not first
    torch.testing.assert_close(second, x.to(LOW), rtol=0, atol=0)
    with torch.no_grad():
        second.zero_()
    torch.testing.assert_close(cast_once(x, LOW), x.to(LOW), rtol=0, atol=0)


def test_another_tensor_another_type_and_another_mode_are_cast_again(generator: torch.Generator) -> None:
    x, other = activation(generator, 3, 4), activation(generator, 3, 4)
    first = cast_once(x, LOW)
    assert cast_once(x, torch.float16).dtype == torch.float16
    first = cast_once(x, LOW)
    with torch.no_grad():
        plain = cast_once(x, LOW)
    assert not plain.requires_grad
    with torch.no_grad():
        plain = cast_once(other, LOW)
    followed = cast_once(other, LOW)
    assert followed is not plain
    assert followed.requires_grad
    torch.testing.assert_close(followed, other.to(LOW), rtol=0, atol=0)
    assert cast_once(x, LOW) is not followed
    del first
    with torch.inference_mode():
        assert cast_once(torch.ones(2), LOW).dtype == LOW


def three(x: Tensor, factors: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Query, key and value of one input, under autocast."""
    with torch.autocast("cpu", LOW):
        return sum(adapted_linear(x, weight, None, a, b, None, 2.0).float().square().sum() for weight, a, b in factors)  # type: ignore[return-value]


@pytest.fixture
def factors(generator: torch.Generator) -> list[tuple[Tensor, Tensor, Tensor]]:
    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return [(drawn(6, 5), drawn(2, 5).requires_grad_(True), drawn(6, 2).requires_grad_(True)) for _ in range(3)]


def test_three_modules_keep_one_copy_and_give_the_gradients_of_three(
    factors: list[tuple[Tensor, Tensor, Tensor]], generator: torch.Generator
) -> None:
    source = torch.randn(4, 7, 5, generator=generator).requires_grad_(True)
    leaves = [source, *(leaf for _, a, b in factors for leaf in (a, b))]
    kept: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape == source.shape and tensor.dtype == LOW:
            kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x = source * 1.0
        together = three(x, factors)
    assert len(kept) == 1
    got = torch.autograd.grad(together, leaves)
    separate = sum(three(source * 1.0, [one]) for one in factors)
    wanted = torch.autograd.grad(separate, leaves)  # type: ignore[arg-type]
    torch.testing.assert_close(together, separate)
    for one, other in zip(got[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    # The sum over the modules is formed in bfloat16, so it differs by that type's rounding and no more.
    assert float((got[0] - wanted[0]).norm() / wanted[0].norm()) < 2.0**-7


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same(factors: list[tuple[Tensor, Tensor, Tensor]], reentrant: bool, generator: torch.Generator) -> None:
    source = torch.randn(4, 7, 5, generator=generator).requires_grad_(True)
    leaves = [source, *(leaf for _, a, b in factors for leaf in (a, b))]
    three(source * 1.0, factors).backward()
    wanted = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    checkpoint(lambda x: three(x, factors), source * 1.0, use_reentrant=reentrant).backward()
    for leaf, grad in zip(leaves[1:], wanted[1:], strict=True):
        torch.testing.assert_close(leaf.grad, grad, rtol=0, atol=0)
    # What is not reentrant keeps no cast in the forward, so each module has its own, and the sum over them is formed in float32.
    assert source.grad is not None
    assert wanted[0] is not None
    assert float((source.grad - wanted[0]).norm() / wanted[0].norm()) < (1e-6 if reentrant else 2.0**-7)


def test_the_cast_is_freed_with_the_graph(generator: torch.Generator) -> None:
    x = activation(generator, 64, 64)

    def casts() -> int:
        gc.collect()
        return sum(isinstance(found, Tensor) and found.shape == x.shape and found.dtype == LOW for found in gc.get_objects())

    cast = cast_once(x, LOW)
    loss = cast.square().sum()
    assert casts() == 1
    del cast
    loss.backward()
    del loss
    assert casts() == 0
