"""Compressing a trained adapter: the best approximation of its size, whoever has trained it, in whatever type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paring.compress import Target, ToBudget, ToEnergy, ToRank, compress
from paring.core.adapter import Adapter, Metadata
from paring.core.errors import SettingError
from paring.core.factors import Factors
from paring.parts.allocate.budget import Knee, Parameters, Share

SHAPES = {"a": (12, 20), "b": (20, 12), "c": (7, 40), "d": (16, 16)}


def adapter(rank: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0, gated: bool = True) -> Adapter:
    """Modules of four shapes, with scales of both signs, and gates of which one is dead."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for index, (path, (height, width)) in enumerate(SHAPES.items()):
        gate = torch.randn(rank, generator=generator, dtype=torch.float64)
        gate[index % rank] = 0.0
        modules[path] = Factors(
            a=torch.randn(rank, width, generator=generator, dtype=torch.float64).to(dtype),
            b=torch.randn(height, rank, generator=generator, dtype=torch.float64).to(dtype),
            gate=gate.to(dtype) if gated else None,
            scale=(2.0, -0.5, 0.125, 1.0)[index],
        )
    return Adapter(modules=modules, heads={"head.weight": torch.ones(2, 3)}, metadata=Metadata(base_model="base", task_type="SEQ_CLS"))


def dense(of: Adapter) -> dict[str, Tensor]:
    return {path: factors.materialise(torch.float64) for path, factors in of.modules.items()}


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_the_error_is_the_tail_of_the_dense_updates_singular_values(rank: int) -> None:
    before = adapter()
    smaller, losses = compress(before, ToRank(rank=rank))
    for path, update in dense(before).items():
        s = torch.linalg.svdvals(update)
        tail = float(s[rank:].square().sum().sqrt())
        assert float((update - dense(smaller)[path]).norm()) == pytest.approx(tail, abs=1e-6)
        assert (losses[path].rank, losses[path].before) == (rank, 5)
        assert losses[path].error == pytest.approx(tail, abs=1e-6)
        assert losses[path].norm == pytest.approx(float(update.norm()))
        assert smaller.modules[path].scale == before.modules[path].scale, "the scale stays what it was"
    assert smaller.heads.keys() == before.heads.keys()
    assert smaller.metadata == before.metadata


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 5))
def test_no_other_update_of_that_rank_is_nearer(seed: int, rank: int) -> None:
    before = adapter(seed=seed)
    smaller, _ = compress(before, ToRank(rank=rank))
    generator = torch.Generator().manual_seed(seed)
    for path, update in dense(before).items():
        best = float((update - dense(smaller)[path]).norm())
        factors = smaller.modules[path]
        near = replace(
            factors,
            a=factors.a + 0.05 * torch.randn(factors.a.shape, generator=generator),
            b=factors.b + 0.05 * torch.randn(factors.b.shape, generator=generator),
        )
        assert best <= float((update - near.materialise(torch.float64)).norm()) + 1e-9


def test_enough_ranks_lose_nothing() -> None:
    before = adapter()
    for target in (
        ToRank(rank=5),
        ToRank(rank=64),
        ToEnergy(share=1.0),
        ToBudget(budget=Share(share=1.0)),
        ToBudget(budget=Parameters(count=10**9)),
    ):
        smaller, losses = compress(before, target)
        assert all(torch.allclose(dense(before)[path], value, atol=1e-6) for path, value in dense(smaller).items())
        # The dead ranks are gone, whatever was asked for.
        assert all(loss.rank == 5 for loss in losses.values())
    assert smaller.parameters < sum(6 * (h + w) for h, w in SHAPES.values())


def test_both_factors_get_the_root_of_the_singular_values() -> None:
    smaller, _ = compress(adapter(), ToRank(rank=3))
    for factors in smaller.modules.values():
        torch.testing.assert_close(factors.a @ factors.a.T, factors.b.T @ factors.b)
        norms = factors.a.norm(dim=1)
        assert torch.equal(norms, norms.sort(descending=True).values)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95, 0.999])
def test_an_energy_is_held_with_the_fewest_ranks(share: float) -> None:
    before = adapter()
    losses = compress(before, ToEnergy(share=share))[1]
    for path, update in dense(before).items():
        squares = torch.linalg.svdvals(update).square()
        held = squares.cumsum(0) / squares.sum()
        rank = losses[path].rank
        assert held[rank - 1] >= share * (1 - 1e-9)
        assert rank == 1 or held[rank - 2] < share
    assert any(loss.rank < 5 for loss in losses.values()) or share > 0.99


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_a_budget_is_shared_by_all_modules_by_what_their_ranks_explain(share: float) -> None:
    before = adapter()
    start = sum(5 * (h + w) for h, w in SHAPES.values())
    smaller, losses = compress(before, ToBudget(budget=Share(share=share)))
    assert share * start - max(sum(shape) for shape in SHAPES.values()) < smaller.parameters <= share * start
    # Every rank that is kept explains more for what it costs than every one that was left out, but for what did not fit.
    kept, left = [], []
    for path, update in dense(before).items():
        scores = torch.linalg.svdvals(update).square() / sum(update.shape)
        kept += scores[: losses[path].rank].tolist()
        left += scores[losses[path].rank : 5].tolist()
    fits = [score for score in left if score > min(kept)]
    assert len(fits) <= len(SHAPES)
    assert sorted(kept)[len(fits)] >= min(max(left), sorted(kept)[len(fits)])
    lone, _ = compress(before, ToBudget(budget=Knee()))
    assert 0 < lone.parameters < before.parameters


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_stay_and_what_they_cannot_hold_is_rounding(dtype: torch.dtype) -> None:
    before = adapter(dtype=dtype)
    smaller, _ = compress(before, ToRank(rank=5))
    eps = torch.finfo(dtype).eps
    for path, factors in smaller.modules.items():
        assert factors.a.dtype == factors.b.dtype == dtype
        assert float((dense(smaller)[path] - dense(before)[path]).norm() / dense(before)[path].norm()) < 8 * eps


def test_an_update_of_zero_keeps_no_rank_and_an_empty_module_stays_so() -> None:
    zero = Factors(a=torch.ones(3, 5), b=torch.zeros(4, 3))
    empty = Factors(a=torch.zeros(0, 5), b=torch.zeros(4, 0))
    dead = Factors(a=torch.ones(2, 5), b=torch.ones(4, 2), gate=torch.zeros(2))
    full = Factors(a=torch.eye(5)[:2], b=torch.eye(4)[:, :2])
    before = Adapter(modules={"zero": zero, "empty": empty, "dead": dead, "full": full})
    for target in (ToRank(rank=2), ToEnergy(share=0.9), ToBudget(budget=Share(share=1.0))):
        smaller, losses = compress(before, target)
        assert {path: loss.rank for path, loss in losses.items()} == {"zero": 0, "empty": 0, "dead": 0, "full": 2}
        assert losses["zero"].relative == losses["dead"].relative == 0.0
        assert smaller.ranks == {"zero": 0, "empty": 0, "dead": 0, "full": 2}


def test_more_ranks_than_the_module_has_room_for() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = Factors(a=torch.randn(9, 4, generator=generator), b=torch.randn(5, 9, generator=generator), scale=0.5)
    smaller, losses = compress(Adapter(modules={"m": wide}), ToRank(rank=9))
    assert losses["m"].rank == 4
    assert torch.allclose(smaller.modules["m"].materialise(), wide.materialise(), atol=1e-5)


def test_no_update_is_ever_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    matmul = Tensor.__matmul__

    def watched(self: Tensor, other: Tensor) -> Tensor:
        result = matmul(self, other)
        shapes.append(tuple(result.shape))
        return result

    monkeypatch.setattr(Tensor, "__matmul__", watched)
    compress(adapter(gated=False), ToRank(rank=2))
    assert shapes
    assert not set(shapes) & set(SHAPES.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ToRank(rank=0),
        lambda: ToEnergy(share=0.0),
        lambda: ToEnergy(share=1.5),
        lambda: ToBudget(budget=Parameters(count=0)),
    ],
)
def test_targets_that_are_none(make: Any) -> None:
    with pytest.raises(SettingError):
        make()


def test_targets_travel_as_plain_data() -> None:
    for target in (ToRank(rank=3), ToEnergy(share=0.5), ToBudget(budget=Parameters(count=9)), ToBudget(budget=Knee())):
        assert Target.decode(target.encode()) == target
