"""Singular value decompositions: compared as matrices, since vectors are unique only up to sign and rotation."""

from __future__ import annotations

from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from paring.core.errors import AdapterError, SettingError
from paring.core.linalg import (
    SVD,
    finite,
    orthonormal_defect,
    product_svd,
    randomised_svd,
    truncated_svd,
    truncation_errors,
    weighted_split,
)

SHAPES = [(9, 7, 3), (7, 9, 3), (8, 8, 8), (5, 12, 7), (12, 5, 7), (4, 3, 9), (6, 6, 1)]
"""(out, in, r); in some r is above one or both of the widths."""


def draw(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def decaying(out: int, width: int, generator: torch.Generator, rate: float = 0.6) -> Tensor:
    """A matrix with the singular values 1, rate, rate^2, ..."""
    k = min(out, width)
    u, v = torch.linalg.qr(draw(out, k, generator=generator)).Q, torch.linalg.qr(draw(width, k, generator=generator)).Q
    return (u * rate ** torch.arange(k, dtype=torch.float64)) @ v.T


def well_formed(svd: SVD, tolerance: float = 1e-10) -> bool:
    orthonormal = orthonormal_defect(svd.u) < tolerance and orthonormal_defect(svd.vt.T) < tolerance
    return bool(orthonormal and (svd.s >= 0).all() and (svd.s.diff() <= 0).all())


# --- finiteness --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_finite_is_what_isfinite_says_of_every_entry(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    # The first sum overflows.
    for values in ([largest] * 9, [largest, -largest, 1.0], []):
        assert finite(torch.tensor(values, dtype=dtype))
    for value in (torch.inf, -torch.inf, torch.nan):
        for row in (0, 2):
            m = torch.ones(3, 4, dtype=dtype)
            m[row, 1] = value
            assert not finite(m)
            assert not finite(m.T)
    assert not finite(torch.tensor([torch.inf, -torch.inf], dtype=dtype))


def test_integers_are_finite() -> None:
    assert finite(torch.tensor([2**62, 2**62]))
    assert finite(torch.tensor([True]))


# --- through the factors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "width", "r"), SHAPES)
def test_product_svd_is_the_decomposition_of_the_product(out: int, width: int, r: int, generator: torch.Generator) -> None:
    b, a = draw(out, r, generator=generator), draw(r, width, generator=generator)
    svd = product_svd(b, a)
    assert svd.u.shape == (out, min(out, width, r))
    assert svd.vt.shape == (min(out, width, r), width)
    assert well_formed(svd)
    torch.testing.assert_close(svd.materialise(), b @ a, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(svd.s, torch.linalg.svdvals(b @ a)[: len(svd.s)], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("out", "width", "r"), SHAPES)
def test_truncated_product_is_the_best_and_its_error_is_the_tail(out: int, width: int, r: int, generator: torch.Generator) -> None:
    b, a = draw(out, r, generator=generator), draw(r, width, generator=generator)
    full = product_svd(b, a)
    errors = truncation_errors(full.s)
    for rank in range(min(out, width, r) + 1):
        cut = product_svd(b, a, rank)
        error = torch.linalg.matrix_norm(b @ a - cut.materialise())
        assert len(cut.s) == rank
        torch.testing.assert_close(error, errors[rank], atol=1e-12, rtol=1e-10)
        # Eckart and Young: no other matrix of that rank does better; here the best fit inside random subspaces, and a nudged optimum.
        q = torch.linalg.qr(draw(out, rank, generator=generator)).Q
        assert torch.linalg.matrix_norm(b @ a - q @ (q.T @ b @ a)) >= error - 1e-12
        if rank:
            nudged = (cut.u + 1e-3 * draw(out, rank, generator=generator)) * cut.s @ cut.vt
            assert torch.linalg.matrix_norm(b @ a - nudged) >= error


class Largest(TorchFunctionMode):
    """Notes the largest tensor that any operation returns."""

    numel = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple) else (result,):
            if isinstance(item, Tensor):
                self.numel = max(self.numel, item.numel())
        return result


def test_the_dense_product_is_never_formed(generator: torch.Generator) -> None:
    b, a = draw(60, 3, generator=generator), draw(3, 50, generator=generator)
    with Largest() as seen:
        product_svd(b, a, 2)
    assert 0 < seen.numel <= b.numel()
    with Largest() as seen:
        _ = b @ a
    assert seen.numel == 60 * 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("zero", ["b", "a", "both"])
def test_a_zero_product_gives_zeros(zero: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    b, a = draw(6, 3, generator=generator).to(dtype), draw(3, 5, generator=generator).to(dtype)
    b, a = (b * 0 if zero != "a" else b), (a * 0 if zero != "b" else a)
    svd = product_svd(b, a)
    assert (svd.s == 0).all()
    assert (svd.materialise() == 0).all()
    assert well_formed(svd, 1e-5)
    assert not any(part.isnan().any() for part in svd)
    assert not any(half.isnan().any() for half in svd.halves())
    assert (truncation_errors(svd.s) == 0).all()


def test_more_ranks_than_the_product_has_change_nothing(generator: torch.Generator) -> None:
    b, a = draw(9, 2, generator=generator), draw(2, 8, generator=generator)
    doubled = torch.cat([b, b], dim=1), torch.cat([a, 2 * a])
    svd = product_svd(*doubled)
    torch.testing.assert_close(svd.truncate(2).materialise(), 3 * b @ a)
    assert (svd.s[2:] < 1e-12).all()


def test_product_is_invariant_to_the_gauge_and_scales(generator: torch.Generator) -> None:
    b, a, mix = draw(7, 4, generator=generator), draw(4, 6, generator=generator), draw(4, 4, generator=generator)
    svd = product_svd(b, a, 2)
    torch.testing.assert_close(product_svd(b @ mix, torch.linalg.solve(mix, a), 2).materialise(), svd.materialise())
    torch.testing.assert_close(product_svd(5 * b, a, 2).s, 5 * svd.s)
    torch.testing.assert_close(product_svd(a.T, b.T, 2).materialise(), svd.materialise().T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_and_returned_in_float32(dtype: torch.dtype, generator: torch.Generator) -> None:
    b, a = draw(9, 4, generator=generator).to(dtype), draw(4, 8, generator=generator).to(dtype)
    for low, high in zip(product_svd(b, a, 3), product_svd(b.float(), a.float(), 3), strict=True):
        assert low.dtype == torch.float32
        assert torch.equal(low, high)
    assert all(torch.equal(low, high) for low, high in zip(truncated_svd(b, 3), truncated_svd(b.float(), 3), strict=True))
    assert truncated_svd(b.double(), 3).s.dtype == torch.float64


def test_halves_multiply_to_the_matrix_and_share_the_singular_values(generator: torch.Generator) -> None:
    svd = product_svd(draw(7, 3, generator=generator), draw(3, 6, generator=generator))
    b, a = svd.halves()
    torch.testing.assert_close(b @ a, svd.materialise())
    torch.testing.assert_close(b.norm(dim=0), svd.s.sqrt())
    torch.testing.assert_close(a.norm(dim=1), svd.s.sqrt())


# --- of dense matrices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "width"), [(9, 7), (7, 9), (6, 6), (1, 4)])
def test_truncated_svd(out: int, width: int, generator: torch.Generator) -> None:
    m = draw(out, width, generator=generator)
    full = truncated_svd(m, 100)
    assert well_formed(full)
    torch.testing.assert_close(full.materialise(), m)
    cut = truncated_svd(m, 1)
    assert cut.u.shape == (out, 1)
    torch.testing.assert_close(torch.linalg.matrix_norm(m - cut.materialise()), truncation_errors(full.s)[1])


@pytest.mark.parametrize(("out", "width"), [(60, 40), (40, 60), (50, 50)])
@pytest.mark.parametrize("rank", [1, 4, 10])
def test_randomised_svd_is_nearly_the_best_on_decaying_spectra(out: int, width: int, rank: int, generator: torch.Generator) -> None:
    m = decaying(out, width, generator, rate=0.8)
    svd = randomised_svd(m, rank, generator=generator)
    best = truncation_errors(truncated_svd(m, 100).s)[rank]
    assert svd.u.shape == (out, rank)
    assert svd.vt.shape == (rank, width)
    assert well_formed(svd)
    assert best <= torch.linalg.matrix_norm(m - svd.materialise()) * (1 + 1e-12) <= 1.001 * best


def test_randomised_svd_needs_its_iterations(generator: torch.Generator) -> None:
    m = decaying(80, 80, generator, rate=0.95)
    best = truncation_errors(truncated_svd(m, 80).s)[5]

    def excess(iterations: int) -> float:
        svd = randomised_svd(m, 5, oversample=2, iterations=iterations, generator=torch.Generator().manual_seed(1))
        return (torch.linalg.matrix_norm(m - svd.materialise()) / best - 1).item()

    assert excess(6) < 0.2 * excess(0)


@pytest.mark.parametrize(("out", "width"), [(9, 30), (30, 9)])
def test_randomised_svd_is_exact_once_the_sketch_is_as_wide_as_the_matrix(out: int, width: int, generator: torch.Generator) -> None:
    m = draw(out, width, generator=generator)
    torch.testing.assert_close(randomised_svd(m, 9, generator=generator).materialise(), m)
    expected, found = truncated_svd(m, 2), randomised_svd(m, 2, iterations=0, generator=generator)
    torch.testing.assert_close(found.materialise(), expected.materialise())


def test_randomised_svd_takes_all_randomness_from_its_generator() -> None:
    m = torch.randn(40, 30, generator=torch.Generator().manual_seed(5))
    state = torch.get_rng_state()
    first, again, other = (randomised_svd(m, 3, iterations=0, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not torch.equal(first.s, other.s)


def test_randomised_svd_of_zero(generator: torch.Generator) -> None:
    svd = randomised_svd(torch.zeros(20, 10), 3, generator=generator)
    assert (svd.materialise() == 0).all()
    assert not any(part.isnan().any() for part in svd)


# --- helpers and refusals ----------------------------------------------------------------------------------------------------


def test_truncation_errors() -> None:
    torch.testing.assert_close(truncation_errors(torch.tensor([4.0, 3.0, 0.0])), torch.tensor([5.0, 3.0, 0.0, 0.0]))
    assert truncation_errors(torch.zeros(0)).tolist() == [0.0]
    # Neither the squares of the largest nor those of the smallest singular values are lost.
    for unit in (1e30, 1e-30):
        torch.testing.assert_close(truncation_errors(torch.tensor([4.0, 3.0]) * unit) / unit, torch.tensor([5.0, 3.0, 0.0]))


def test_orthonormal_defect(generator: torch.Generator) -> None:
    q = torch.linalg.qr(draw(8, 3, generator=generator)).Q
    assert orthonormal_defect(q).item() < 1e-14
    assert orthonormal_defect(2 * torch.eye(4)[:, :3]).item() == pytest.approx(3 * 3**0.5)
    assert orthonormal_defect(q.T).item() > 1.0
    assert orthonormal_defect(torch.eye(4, dtype=torch.bfloat16)).item() == 0.0


def test_rank_zero_is_an_empty_decomposition(generator: torch.Generator) -> None:
    m = draw(4, 3, generator=generator)
    for svd in (truncated_svd(m, 0), randomised_svd(m, 0, generator=generator), product_svd(m, m.T, 0)):
        assert svd.s.shape == (0,)
        assert (svd.materialise() == 0).all()
    empty = product_svd(torch.zeros(4, 0), torch.zeros(0, 3))
    assert empty.u.shape == (4, 0)
    assert torch.equal(empty.materialise(), torch.zeros(4, 3))


def test_refusals(generator: torch.Generator) -> None:
    m = draw(4, 3, generator=generator)
    with pytest.raises(SettingError, match="rank=-1"):
        truncated_svd(m, -1)
    with pytest.raises(SettingError, match="rank=-1"):
        randomised_svd(m, -1, generator=generator)
    with pytest.raises(SettingError, match="rank=-2"):
        product_svd(m, m.T, -2)
    with pytest.raises(SettingError, match="oversample=-1"):
        randomised_svd(m, 1, oversample=-1, generator=generator)
    for bad in (torch.nan, torch.inf):
        spoilt = m.clone()
        spoilt[1, 1] = bad
        for call in (lambda x: truncated_svd(x, 1), lambda x: randomised_svd(x, 1, generator=generator), lambda x: product_svd(m.T, x)):
            with pytest.raises(AdapterError, match="NaN or infinity"):
                call(spoilt)


def test_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        product_svd(torch.zeros(4, 2), torch.zeros(3, 4))


# --- weighted -----------------------------------------------------------------------------------------------------------------


def _gram(count: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A positive semidefinite matrix and a root of it."""
    rows = draw(count, width, generator=generator)
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    return rows.T @ rows, (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T


@pytest.mark.parametrize(("out", "width", "r"), SHAPES)
@pytest.mark.parametrize("few", [False, True], ids=["full", "degenerate"])
def test_weighted_split_is_the_best_in_its_norm(out: int, width: int, r: int, few: bool, generator: torch.Generator) -> None:
    b, a = draw(out, r, generator=generator), draw(r, width, generator=generator)
    outer, left = _gram(max(1, out // 2) if few else 40, out, generator)
    inner, right = _gram(max(1, width // 2) if few else 40, width, generator)
    split = weighted_split(b.T @ outer @ b, a @ inner @ a.T)
    whole = left @ b @ a @ right
    values = torch.linalg.svdvals(whole)
    padded = torch.cat([values, values.new_zeros(r)])[:r]
    torch.testing.assert_close(split.s, padded, atol=1e-6 * float(values[0]), rtol=1e-6)
    for rank in range(r + 1):
        cut = left @ (b @ split.q[:, :rank]) @ (split.p[:rank] @ a) @ right
        torch.testing.assert_close(torch.linalg.matrix_norm(cut - whole), padded[rank:].norm(), atol=1e-5 * float(values[0]), rtol=1e-5)


def test_weighted_split_of_nothing() -> None:
    split = weighted_split(torch.zeros(3, 3), torch.zeros(3, 3))
    assert not split.s.any()
    assert torch.isfinite(split.p).all()
    assert torch.isfinite(split.q).all()
    assert weighted_split(torch.zeros(0, 0), torch.zeros(0, 0)).s.numel() == 0
