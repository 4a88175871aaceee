"""Rules by their definitions, on dense updates: sums, cuts, trims, elections, drops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paring.merge import DARE, SVD, TIES, Concatenation, Linear, Magnitude, merge, weighted_sum
from paring.merge.elementwise import disjoint_mean, largest_entries
from tests.merge.adapters import adapter, dense, far

WEIGHTS = (0.5, -0.25, 2.0)


def summed() -> tuple[list, dict[str, Tensor]]:  # type: ignore[type-arg]
    """Three adapters of different ranks and modules, and the weighted sum of their updates."""
    adapters = [adapter(0, 2, scale=2.0), adapter(1, 4, paths=["down", "layers.2.up"]), adapter(2, 3, scale=-0.5)]
    zero = {path: torch.zeros_like(update) for path, update in dense(adapters[0]).items()}
    total = {
        path: sum((weight * dense(one).get(path, zero[path]) for weight, one in zip(WEIGHTS, adapters, strict=True)), zero[path])
        for path in zero
    }
    return adapters, total


def test_concatenation_is_the_sum_and_its_ranks_add_up() -> None:
    adapters, total = summed()
    merged = merge(adapters, Concatenation(weights=WEIGHTS))
    for path, update in dense(merged).items():
        torch.testing.assert_close(update, total[path], rtol=0, atol=1e-13)
    assert merged.ranks == {"layers.2.up": 9, "layers.10.up": 5, "down": 9}
    assert far(weighted_sum(adapters, SVD(weights=WEIGHTS, rank=1)), merged) == 0.0


@pytest.mark.parametrize("rank", [1, 3, 5, None])
def test_svd_is_the_nearest_of_its_rank(rank: int | None) -> None:
    adapters, total = summed()
    merged = merge(adapters, SVD(weights=WEIGHTS, rank=rank))
    for path, update in dense(merged).items():
        kept = rank or {"layers.10.up": 3}.get(path, 4)
        assert merged.modules[path].rank == kept
        tail = torch.linalg.svdvals(total[path])[kept:].square().sum().sqrt()
        torch.testing.assert_close((update - total[path]).norm(), tail, rtol=1e-9, atol=1e-9)


def test_ranks_that_are_the_rounding_of_others_are_not_kept() -> None:
    one = adapter(0, 3)
    assert set(merge([one, one], SVD(rank=6)).ranks.values()) == {3}
    assert set(merge([one, adapter(1, 3)], SVD(rank=60)).ranks.values()) == {6}


def test_linear_is_the_product_of_the_means_of_the_factors() -> None:
    one, two = adapter(0, 4), adapter(1, 4)
    for path, factors in merge([one, two], Linear()).modules.items():
        torch.testing.assert_close(factors.a, (one.modules[path].a + two.modules[path].a) / 2)
        torch.testing.assert_close(factors.b, (one.modules[path].b + two.modules[path].b) / 2)
    # With PEFT's usual weights copies are doubled, as PEFT doubles them.
    doubled = merge([one, one], Linear(weights=(0.5, 0.5)))
    assert far(doubled, merge([one, one], Concatenation(weights=(1.0, 1.0)))) < 1e-12


def test_linear_of_different_ranks_is_that_of_padded_ones() -> None:
    one, two = adapter(0, 4), adapter(1, 2)
    padded = type(two)(modules={path: factors.pad(4) for path, factors in two.modules.items()}, metadata=two.metadata)
    assert far(merge([one, two], Linear()), merge([one, padded], Linear())) == 0.0


def test_the_largest_entries() -> None:
    given = torch.tensor([[0.1, -3.0, 0.2], [2.0, 0.0, -1.0]])
    assert torch.equal(largest_entries(given, 0.5), torch.tensor([[0.0, -3.0, 0.0], [2.0, 0.0, -1.0]]))
    assert torch.equal(largest_entries(given, 0.6), largest_entries(given, 0.5)), "rounded down"
    assert torch.equal(largest_entries(given, 1.0), given)


def test_an_election_by_hand() -> None:
    votes = [torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 2.0, -1.0]), torch.tensor([-3.0, 4.0, 0.0, 0.0])]
    ones = (1.0, 1.0, 1.0)
    assert torch.equal(disjoint_mean(votes, ones, "total"), torch.tensor([-3.0, 2.0, 2.0, 1.0]))
    assert torch.equal(disjoint_mean(votes, ones, "frequency"), torch.tensor([1.0, 2.0, 2.0, 1.0]))
    assert torch.equal(disjoint_mean(votes, (1.0, 3.0, 1.0), "frequency"), torch.tensor([2.0, 8 / 3, 6.0, 1.0]))


def test_ties_and_magnitude_on_dense_updates() -> None:
    adapters = [adapter(seed) for seed in range(3)]
    updates = [dense(one) for one in adapters]
    full = 12
    for path in updates[0]:
        trimmed = [largest_entries(update[path], 0.3) for update in updates]
        torch.testing.assert_close(dense(merge(adapters, TIES(density=0.3, rank=full)))[path], disjoint_mean(trimmed, (1.0,) * 3, "total"))
        torch.testing.assert_close(dense(merge(adapters, Magnitude(density=0.3, rank=full)))[path], sum(trimmed) / 3)
    assert set(merge(adapters, TIES(density=0.3, rank=5)).ranks.values()) == {5}


def test_dare_keeps_a_share_rescales_it_and_means_the_whole() -> None:
    one, two = adapter(0), adapter(1)
    exact = dense(merge([one, two], Concatenation()))
    first, again, other = (dense(merge([one, two], DARE(density=0.5, rank=12, seed=seed))) for seed in (0, 0, 1))
    assert all(torch.equal(first[path], again[path]) for path in first)
    assert all(not torch.equal(first[path], other[path]) for path in first)
    mean = {path: torch.zeros_like(update) for path, update in exact.items()}
    for seed in range(200):
        for path, update in dense(merge([one, two], DARE(density=0.5, rank=12, seed=seed))).items():
            mean[path] += update / 200
    for path, update in exact.items():
        assert float((mean[path] - update).norm() / update.norm()) < 0.15
        assert float((first[path] - update).norm() / update.norm()) > 0.3
    # Without rescaling it is half of that.
    halved = dense(merge([one, two], DARE(density=0.5, rank=12, rescale=False)))
    for path, update in first.items():
        torch.testing.assert_close(halved[path], update / 2)


def test_dare_draws_for_each_module_and_each_adapter_anew() -> None:
    one = adapter(0, 4, paths=["layers.2.up"])
    twin = type(one)(modules={"layers.2.up": one.modules["layers.2.up"], "layers.10.up": one.modules["layers.2.up"]})
    merged = dense(merge([twin, twin], DARE(density=0.5, rank=12)))
    assert not torch.allclose(merged["layers.2.up"], merged["layers.10.up"])
    kept = (merged["layers.2.up"].abs() > 1e-9).double().mean()
    assert 0.6 < float(kept) < 0.9, "of two independent draws three quarters of the entries are in one or the other"
