"""Factors: every operation that claims to leave the update unchanged is compared with s B diag(g) A, written out."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import Tensor

from paring.core.errors import AdapterError
from paring.core.factors import Factors

IN, OUT, RANK = 7, 5, 4


def dense(factors: Factors) -> Tensor:
    gate = torch.ones(factors.rank) if factors.gate is None else factors.gate
    return factors.scale * factors.b.double() @ torch.diag(gate.double()) @ factors.a.double()


@pytest.fixture
def gated(generator: torch.Generator) -> Factors:
    """Rank 4 with two dead ranks, one of them a negative zero."""
    a, b = torch.randn(RANK, IN, generator=generator), torch.randn(OUT, RANK, generator=generator)
    return Factors(a=a, b=b, gate=torch.tensor([0.5, 0.0, -1.5, -0.0]), scale=2.0)


@pytest.fixture
def plain(gated: Factors) -> Factors:
    return replace(gated, gate=None)


def close(left: Factors | Tensor, right: Factors | Tensor) -> None:
    left, right = (dense(item) if isinstance(item, Factors) else item.double() for item in (left, right))
    torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("which", ["gated", "plain"])
def test_materialise_and_apply(which: str, request: pytest.FixtureRequest, generator: torch.Generator) -> None:
    factors: Factors = request.getfixturevalue(which)
    close(factors.materialise(), dense(factors))
    assert factors.materialise().shape == (OUT, IN)
    assert factors.materialise(torch.float64).dtype == torch.float64
    for batch in ((), (3,), (2, 3)):
        x = torch.randn(*batch, IN, generator=generator)
        close(factors.apply(x), x.double() @ dense(factors).T)


def test_fold_leaves_the_update_with_no_gate_and_scale_one(gated: Factors) -> None:
    folded = gated.fold()
    assert folded.gate is None
    assert folded.scale == 1.0
    assert folded.rank == RANK
    assert torch.equal(folded.a, gated.a)
    close(folded, gated)


def test_fold_computes_in_the_dtype_asked_for(gated: Factors) -> None:
    assert gated.fold().b.dtype == torch.float32
    low = gated.to(dtype=torch.bfloat16)
    # Low-precision factors are lifted first and multiplied then.
    expected = low.b.float() * torch.tensor([0.5, 0.0, -1.5, -0.0]) * 2.0
    assert torch.equal(low.fold().b, expected)
    assert low.fold(torch.bfloat16).b.dtype == torch.bfloat16


def test_prune_drops_exact_zeros_only(gated: Factors, plain: Factors) -> None:
    pruned = gated.prune()
    assert pruned.rank == 2
    assert pruned.gate is not None
    assert pruned.gate.tolist() == [0.5, -1.5]
    assert pruned.scale == gated.scale
    close(pruned, gated)
    tiny = replace(gated, gate=torch.tensor([1e-38, 0.0, 1.0, 1e-45]))
    assert tiny.prune().rank == tiny.live_rank == 3
    assert plain.prune() is plain


def test_prune_of_a_dead_module_is_rank_zero(gated: Factors) -> None:
    dead = replace(gated, gate=torch.zeros(RANK)).prune()
    assert dead.rank == dead.live_rank == dead.parameters == 0
    assert dead.a.shape == (0, IN)
    assert dead.b.shape == (OUT, 0)
    assert torch.equal(dead.materialise(), torch.zeros(OUT, IN))
    close(dead.fold().pad(3), torch.zeros(OUT, IN))


@pytest.mark.parametrize("which", ["gated", "plain"])
def test_pad_leaves_the_update(which: str, request: pytest.FixtureRequest) -> None:
    factors: Factors = request.getfixturevalue(which)
    padded = factors.pad(9)
    assert padded.a.shape == (9, IN)
    assert padded.b.shape == (OUT, 9)
    assert (padded.a[RANK:] == 0).all()
    assert (padded.b[:, RANK:] == 0).all()
    close(padded, factors)
    assert padded.live_rank == (2 if factors.gate is not None else 9)
    close(factors.pad(RANK), factors)


def test_concatenate_adds_updates(gated: Factors, generator: torch.Generator) -> None:
    other = Factors(a=torch.randn(2, IN, generator=generator), b=torch.randn(OUT, 2, generator=generator), scale=-0.3)
    total = Factors.concatenate([gated, other, gated.prune()])
    assert total.rank == RANK + 2 + 2
    assert total.gate is None
    assert total.scale == 1.0
    close(total, 2 * dense(gated) + dense(other))
    close(Factors.concatenate([gated]), gated)


def test_ranks_may_be_permuted_together(gated: Factors) -> None:
    assert gated.gate is not None
    order = torch.tensor([2, 0, 3, 1])
    close(Factors(a=gated.a[order], b=gated.b[:, order], gate=gated.gate[order], scale=gated.scale), gated)
    # ... and only together.
    with pytest.raises(AssertionError):
        close(replace(gated, gate=gated.gate[order]), gated)


def test_a_row_and_its_gate_share_a_gauge(gated: Factors) -> None:
    assert gated.gate is not None
    c = torch.tensor([3.0, 0.2, -4.0, 10.0])
    close(replace(gated, a=gated.a * c[:, None], gate=gated.gate / c), gated)


def test_counts(gated: Factors, plain: Factors) -> None:
    assert (gated.rank, gated.live_rank, gated.in_features, gated.out_features) == (RANK, 2, IN, OUT)
    assert gated.parameters == 2 * (IN + OUT)
    assert plain.parameters == RANK * (IN + OUT)
    # What is counted is what is left: entries of the pruned and folded tensors.
    left = gated.prune().fold()
    assert left.a.numel() + left.b.numel() == gated.parameters == left.parameters


def test_to_casts_all_tensors(gated: Factors) -> None:
    cast = gated.to(dtype=torch.float64)
    assert cast.gate is not None
    assert {cast.a.dtype, cast.b.dtype, cast.gate.dtype} == {torch.float64}
    assert cast.scale == gated.scale
    assert gated.to(device="meta").a.device.type == "meta"


def test_factors_are_frozen(gated: Factors) -> None:
    with pytest.raises(FrozenInstanceError):
        gated.scale = 3.0  # type: ignore[misc]


def test_shapes_that_do_not_fit_are_refused() -> None:
    a, b = torch.zeros(3, IN), torch.zeros(OUT, 3)
    with pytest.raises(AdapterError, match=r"matrices, got A \(3,\)"):
        Factors(a=torch.zeros(3), b=b)
    with pytest.raises(AdapterError, match=r"rows \(3\) must equal B's columns \(2\)"):
        Factors(a=a, b=torch.zeros(OUT, 2))
    for gate in (torch.zeros(2), torch.zeros(1, 3), torch.zeros(())):
        with pytest.raises(AdapterError, match=r"needs \(3,\)"):
            Factors(a=a, b=b, gate=gate)
    with pytest.raises(AdapterError, match="pad rank 3 down to 2"):
        Factors(a=a, b=b).pad(2)
    with pytest.raises(AdapterError, match="at least one"):
        Factors.concatenate([])
    with pytest.raises(AdapterError, match="differently shaped"):
        Factors.concatenate([Factors(a=a, b=b), Factors(a=torch.zeros(3, IN + 1), b=b)])
