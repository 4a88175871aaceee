"""Factors that are to be stepped at different rates: an optimizer that steps them alike is told of it, one that does not is left alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from paring import rates
from paring.core.factors import Factors
from paring.parts.parameterise.low_rank import LowRank


@pytest.fixture
def slot() -> Iterator[LowRank]:
    generator = torch.Generator().manual_seed(0)
    made = LowRank(Factors(a=torch.randn(2, 5, generator=generator), b=torch.randn(4, 2, generator=generator)))
    rates.expect(made, 16.0)
    yield made
    rates._asked.pop(made, None)


def step(slot: LowRank, optimizer: Optimizer, times: int = 1) -> list[str]:
    """The warnings of so many steps."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(times):
            y: Tensor = slot.add(torch.zeros(3, 4), torch.ones(3, 5))
            y.sum().backward()
            optimizer.step()
    return [str(one.message) for one in found]


def groups(slot: LowRank, a: float, b: float) -> list[dict[str, object]]:
    return [{"params": [slot.A], "lr": a}, {"params": [slot.B], "lr": b}]


def test_one_group_for_both_is_told_once(slot: LowRank) -> None:
    said = step(slot, Adam(slot.parameters(), lr=1e-3), times=3)
    assert len(said) == 1
    assert "16 times the rate of A" in said[0]
    assert "it is 1 times" in said[0]
    assert "create_optimizer" in said[0]


def test_the_wrong_ratio_is_told_and_the_right_one_is_not(slot: LowRank) -> None:
    assert step(slot, SGD(groups(slot, 1e-3, 16e-3))) == []
    assert "it is 4 times" in step(slot, SGD(groups(slot, 1e-3, 4e-3)))[0]


def test_a_rate_of_zero_says_nothing_yet(slot: LowRank) -> None:
    optimizer = SGD(groups(slot, 0.0, 0.0))
    assert step(slot, optimizer) == []
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-3
    assert len(step(slot, optimizer)) == 1


def test_optimizers_of_something_else_are_left_alone(slot: LowRank) -> None:
    other = nn.Parameter(torch.ones(1))
    other.grad = torch.ones(1)
    assert step(slot, SGD([other], lr=1.0)) == []
    # One factor alone has nothing to be compared with.
    assert step(slot, SGD([slot.B], lr=1.0)) == []


def test_a_rate_that_is_a_tensor(slot: LowRank) -> None:
    made = groups(slot, 1e-3, 16e-3)
    for group in made:
        group["lr"] = torch.tensor(group["lr"])
    assert step(slot, SGD(made)) == []
