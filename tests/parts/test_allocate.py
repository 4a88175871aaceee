"""Budgets, and which ranks of all modules they pay for."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from paring.core.errors import SettingError
from paring.parts.allocate.budget import Budget, Bytes, Parameters, Share
from paring.parts.allocate.knee import knee
from paring.parts.allocate.spectral import allocate


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        (Parameters(count=300), 300),
        (Parameters(count=5000), 1000),
        (Share(share=0.25), 250),
        (Share(share=1.0), 1000),
        (Share(share=0.3333), 333),
        (Bytes(count=2000), 500),
        (Bytes(count=2001, each=2), 1000),
        (Bytes(count=999, each=2), 499),
    ],
)
def test_budgets_are_numbers_of_parameters(budget: Budget, wanted: int) -> None:
    assert budget.parameters(1000) == wanted
    assert Budget.decode(budget.encode()) == budget


def test_budgets_that_are_none() -> None:
    for make in (lambda: Parameters(count=0), lambda: Share(share=0.0), lambda: Share(share=1.5), lambda: Bytes(count=-1)):
        with pytest.raises(SettingError, match="give a"):
            make()


def spectra(generator: torch.Generator, ranks: int = 3, modules: int = 3) -> list[Tensor]:
    return [torch.rand(ranks, generator=generator).sort(descending=True).values for _ in range(modules)]


def kept_energy(found: list[Tensor], counts: list[int] | tuple[int, ...]) -> float:
    return float(sum(s[:count].double().square().sum() for s, count in zip(found, counts, strict=True)))


@pytest.mark.parametrize("budget", range(10))
def test_with_equal_costs_it_is_the_best_of_all(budget: int, generator: torch.Generator) -> None:
    found = spectra(generator)
    counts = allocate(found, [1, 1, 1], budget)
    every = [kept for kept in itertools.product(range(4), repeat=3) if sum(kept) <= budget]
    assert sum(counts) == budget
    assert kept_energy(found, counts) == pytest.approx(max(kept_energy(found, kept) for kept in every))


@pytest.mark.parametrize("budget", [0, 3, 7, 11, 20, 33, 100])
def test_with_different_costs_the_budget_is_kept_and_nothing_that_fits_is_left_out(budget: int, generator: torch.Generator) -> None:
    costs = [7, 3, 11]
    for _ in range(20):
        found = spectra(generator)
        counts = allocate(found, costs, budget)
        spent = sum(count * cost for count, cost in zip(counts, costs, strict=True))
        assert spent <= budget
        # Another rank of a module that was never passed over would not fit: the loss to the best is less than the dearest rank is worth.
        every = [kept for kept in itertools.product(range(4), repeat=3) if sum(k * c for k, c in zip(kept, costs, strict=True)) <= budget]
        best = max(kept_energy(found, kept) for kept in every)
        assert kept_energy(found, counts) >= best - max(float(s[0]) ** 2 for s in found)
        assert all(budget - spent < cost or count == 3 for count, cost in zip(counts, costs, strict=True))


def test_a_rank_of_half_the_worth_at_a_third_of_the_cost_comes_first() -> None:
    assert allocate([torch.tensor([1.0]), torch.tensor([0.5**0.5])], [30, 10], 30) == [0, 1]


def test_ranks_of_no_worth_are_not_bought() -> None:
    assert allocate([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])], [1, 1], 4) == [1, 0]


def test_of_equal_ranks_the_first_modules_are_kept() -> None:
    assert allocate([torch.ones(2)] * 3, [1, 1, 1], 3) == [2, 1, 0]


def test_none_at_all() -> None:
    assert allocate([], [], 5) == []
    with pytest.raises(SettingError, match="at least 0"):
        allocate([torch.ones(1)], [1], -1)


@pytest.mark.parametrize("seed", range(5))
def test_the_knee_is_the_point_farthest_above_the_chord(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    given, costs = spectra(generator, ranks=6, modules=5), [3, 5, 8, 8, 13]
    ranks = sorted(((float(s) ** 2 / cost, cost) for values, cost in zip(given, costs, strict=True) for s in values), reverse=True)
    whole, energy = sum(cost for _, cost in ranks), sum(score * cost for score, cost in ranks)
    above, size, held = {0: 0.0}, 0, 0.0
    for score, cost in ranks:
        size, held = size + cost, held + score * cost
        above[size] = held / energy - size / whole
    assert knee(given, costs) == max(above, key=lambda size: above[size])


@pytest.mark.parametrize("rank", [6, 8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_the_knee_finds_what_stands_out_of_noise(rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    planted = [0, 0, 1, 2, 4, 1, 2, 0]
    costs = [2 * 96, 96 + 384, 384 + 96] * 3
    given = []
    for count, cost in zip(planted, costs, strict=False):
        signal = 1.0 + 0.5 * torch.rand(count, generator=generator)
        noise = 0.3 * torch.rand(rank - count, generator=generator)
        # Shuffled: the order says nothing.
        given.append(torch.cat([signal, noise])[torch.randperm(rank, generator=generator)] * cost**0.5)
    wanted = sum(count * cost for count, cost in zip(planted, costs, strict=False))
    assert knee(given, costs[:8]) == wanted


def test_nothing_stands_out_of_what_is_alike() -> None:
    assert knee([torch.ones(4), torch.ones(2)], [3, 3]) == 0
    assert knee([torch.full((5,), 0.1), torch.full((3,), 0.1)], [7, 7]) == 0
    assert knee([torch.zeros(4)], [3]) == 0
    assert knee([], []) == 0
    assert knee([torch.tensor([5.0, 0.0, 0.0])], [3]) == 3
