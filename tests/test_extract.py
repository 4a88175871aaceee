"""Extracting a LoRA out of weights that were trained in full: the best one of its size, and what it lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paring.compress import Target, ToBudget, ToEnergy, ToRank
from paring.core.adapter import Metadata
from paring.core.errors import AdapterError, SettingError
from paring.extract import OVERSAMPLE, SKETCHED, extract
from paring.parts.allocate.budget import Knee, Parameters, Share

SHAPES = {"a": (12, 20), "b": (20, 12), "c": (7, 40), "d": (16, 16)}

Weights = dict[str, Tensor]


def weights(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Weights, Weights]:
    """Four weights before and after a training that has changed every entry."""
    generator = torch.Generator().manual_seed(seed)
    before = {path: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for path, shape in SHAPES.items()}
    after = {path: (w + 0.1 * torch.randn(w.shape, generator=generator, dtype=torch.float64)).to(dtype) for path, w in before.items()}
    return before, after


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_error_is_the_tail_of_the_updates_singular_values(rank: int) -> None:
    before, after = weights()
    adapter, losses = extract(before, after, ToRank(rank=rank))
    assert list(adapter.modules) == list(SHAPES)
    for path, factors in adapter.modules.items():
        update = after[path] - before[path]
        tail = torch.linalg.svdvals(update)[rank:].norm()
        assert float((update - factors.materialise(torch.float64)).norm()) == pytest.approx(float(tail))
        assert losses[path].error == pytest.approx(float(tail))
        assert losses[path].norm == pytest.approx(float(update.norm()))
        assert losses[path].relative == pytest.approx(float(tail / update.norm()))
        assert (losses[path].rank, losses[path].before) == (rank, min(SHAPES[path]))
        assert factors.scale == 1.0
        torch.testing.assert_close(factors.a @ factors.a.T, factors.b.T @ factors.b)


@pytest.mark.parametrize(
    "target", [ToRank(rank=99), ToEnergy(share=1.0), ToBudget(budget=Share(share=1.0))], ids=lambda target: target.name
)
def test_full_rank_is_the_update(target: Target) -> None:
    before, after = weights()
    adapter, losses = extract(before, after, target)
    for path, factors in adapter.modules.items():
        torch.testing.assert_close(before[path] + factors.materialise(torch.float64), after[path])
        assert losses[path].relative < 1e-12
        assert factors.rank == min(SHAPES[path])


def test_an_energy_is_held_with_the_fewest_ranks() -> None:
    before, after = weights()
    adapter, losses = extract(before, after, ToEnergy(share=0.8))
    for path, rank in adapter.ranks.items():
        squares = torch.linalg.svdvals(after[path] - before[path]).square()
        held = squares.cumsum(0) / squares.sum()
        assert held[rank - 1] >= 0.8 > held[rank - 2]
        assert losses[path].relative ** 2 == pytest.approx(1 - float(held[rank - 1]))


def test_a_budget_is_shared_by_all() -> None:
    before, after = weights()
    after["d"] = before["d"] + 10 * (after["d"] - before["d"])
    adapter, losses = extract(before, after, ToBudget(budget=Parameters(count=300)))
    assert 300 - 52 < adapter.parameters <= 300
    assert adapter.ranks["d"] == max(adapter.ranks.values())
    assert losses.keys() == SHAPES.keys(), "a module that gets no rank has lost all, and is told"
    assert all(losses[path].relative == pytest.approx(1.0) for path, rank in adapter.ranks.items() if not rank)
    assert extract(before, after, ToBudget(budget=Knee()))[0].parameters > 0


def test_an_update_of_low_rank_is_found_whole_and_rounding_is_no_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(40, 3, generator=generator) @ torch.randn(3, 30, generator=generator)
    for target in (ToRank(rank=16), ToEnergy(share=1.0)):
        adapter, losses = extract({"a": torch.zeros(40, 30)}, {"a": update}, target)
        assert adapter.ranks == {"a": 3}
        assert losses["a"].relative < 1e-6


def test_modules_that_are_the_same_to_the_bit_are_left_out() -> None:
    before, after = weights()
    after["b"] = before["b"].clone()
    for target in (ToRank(rank=2), ToEnergy(share=0.5), ToBudget(budget=Share(share=0.5))):
        adapter, losses = extract(before, after, target)
        assert "b" not in adapter.modules
        assert adapter.modules.keys() == losses.keys() == SHAPES.keys() - {"b"}
    adapter, losses = extract(before, dict(before), ToRank(rank=2))
    assert not adapter.modules
    assert not losses


@pytest.mark.parametrize("falling", [True, False], ids=["falling", "flat"])
def test_a_sketch_comes_near_the_best_and_repeats(falling: bool) -> None:
    rank, size = 8, SKETCHED * (8 + OVERSAMPLE)
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(size, size + 60, generator=generator)
    if falling:
        u, s, vt = torch.linalg.svd(update, full_matrices=False)
        update = (u * torch.arange(1, len(s) + 1).rsqrt()) @ vt
    before, after = {"a": torch.zeros_like(update)}, {"a": update}
    adapter, losses = extract(before, after, ToRank(rank=rank))
    best = float(torch.linalg.svdvals(update)[rank:].norm())
    assert best * (1 - 1e-5) <= losses["a"].error <= best * (1.00001 if falling else 1.002)
    assert losses["a"].error == pytest.approx(float((update - adapter.modules["a"].materialise()).norm()), rel=1e-5)
    same, other = extract(before, after, ToRank(rank=rank))[0], extract(before, after, ToRank(rank=rank), seed=1)[0]
    assert torch.equal(adapter.modules["a"].a, same.modules["a"].a)
    assert not torch.equal(adapter.modules["a"].a, other.modules["a"].a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_weights_are_subtracted_in_float32(dtype: torch.dtype) -> None:
    before, after = weights(dtype)
    adapter, losses = extract(before, after, ToRank(rank=99))
    for path, factors in adapter.modules.items():
        assert factors.a.dtype == factors.b.dtype == torch.float32
        exact = after[path].double() - before[path].double()
        assert float((factors.materialise(torch.float64) - exact).norm() / exact.norm()) < 1e-5
        assert losses[path].relative < 1e-5


def test_heads_and_origin_travel_along() -> None:
    before, after = weights()
    metadata = Metadata(base_model="base", task_type="SEQ_CLS")
    adapter, _ = extract(before, after, ToRank(rank=1), heads={"classifier.weight": torch.ones(2, 3)}, metadata=metadata)
    assert adapter.metadata is metadata
    assert torch.equal(adapter.heads["classifier.weight"], torch.ones(2, 3))


def test_what_is_refused() -> None:
    before, after = weights()
    with pytest.raises(SettingError, match="target"):
        extract(before, after, 8)  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match=r"'b' has no weight after.*same modules"):
        extract(before, {path: w for path, w in after.items() if path != "b"}, ToRank(rank=1))
    with pytest.raises(AdapterError, match="'e' has no weight before"):
        extract(before, {**after, "e": after["a"]}, ToRank(rank=1))
    with pytest.raises(AdapterError, match=r"\(12, 20\) before training and \(20, 12\) after"):
        extract(before, {**after, "a": after["b"]}, ToRank(rank=1))
    with pytest.raises(AdapterError, match="matrix"):
        extract({"a": torch.ones(3)}, {"a": torch.zeros(3)}, ToRank(rank=1))
    with pytest.raises(AdapterError, match="'c' holds NaN"):
        extract(before, {**after, "c": after["c"] * float("nan")}, ToRank(rank=1))
