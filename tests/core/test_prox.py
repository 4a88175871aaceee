"""Proximal operators, tested by what they are defined to be and not only on examples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paring.core.prox import Threshold, group_soft_threshold, released_threshold, shrinkage, soft_threshold

INTEGERS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
ALL: list[Callable[..., Tensor]] = [soft_threshold, group_soft_threshold, released_threshold]


def bits(v: Tensor) -> list[int]:
    """Bit patterns: tells -0.0 from 0.0, and finds NaN equal to itself."""
    return v.view(INTEGERS[v.dtype]).flatten().tolist()


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- the definition: prox(v) is the one minimiser of 1/2 |u - v|^2 + t h(u) ---------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 2.0])
def test_no_point_of_a_fine_grid_does_better_than_soft_threshold(t: float) -> None:
    v = torch.cat([torch.linspace(-3, 3, 61, dtype=torch.float64), double(t, -t, 2 * t, -2 * t, 0.0)])
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)[:, None]

    def objective(u: Tensor) -> Tensor:
        return 0.5 * (u - v) ** 2 + t * u.abs()

    u = soft_threshold(v, t)
    # The objective is strongly convex, so it grows at least as 1/2 |w - u|^2 away from its minimiser: this pins u down, whatever the grid.
    assert (objective(grid) - objective(u) >= 0.5 * (grid - u) ** 2 - 1e-12).all()


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 2.0])
def test_no_point_of_a_fine_grid_does_better_than_group_soft_threshold(t: float) -> None:
    torch.manual_seed(0)
    v = torch.cat([torch.randn(12, 2, dtype=torch.float64), double(0.3, 0.4, 0.0, 0.0, 0.0, -1.5, 0.06, 0.08).view(4, 2)])
    axis = torch.linspace(-3, 3, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)[:, None, :]

    def objective(u: Tensor) -> Tensor:
        return 0.5 * (u - v).square().sum(-1) + t * u.norm(dim=-1)

    u = group_soft_threshold(v, t, dim=1)
    assert (objective(grid) - objective(u) >= 0.5 * (grid - u).square().sum(-1) - 1e-12).all()


def test_the_released_operator_is_not_a_minimiser() -> None:
    v, t = double(0.15), 0.1
    u, better = released_threshold(v, t), double(0.05)
    assert 0.5 * (better - v) ** 2 + t * better.abs() < 0.5 * (u - v) ** 2 + t * u.abs()


# --- values ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "released", "exact"),
    [(0.15, 0.0, 0.05), (0.19, 0.0, 0.09), (0.2, 0.1, 0.1), (0.21, 0.11, 0.11), (0.1, 0.1, 0.0), (0.05, 0.0, 0.0), (0.0, 0.0, 0.0)],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_table_of_the_released_operator(value: float, released: float, exact: float, sign: float, dtype: torch.dtype) -> None:
    v = torch.tensor([sign * value], dtype=dtype)
    torch.testing.assert_close(released_threshold(v, 0.1), torch.tensor([sign * released], dtype=dtype), atol=1e-7, rtol=0)
    torch.testing.assert_close(soft_threshold(v, 0.1), torch.tensor([sign * exact], dtype=dtype), atol=1e-7, rtol=0)


def test_exact_and_released_differ_between_t_and_2t_and_agree_beyond() -> None:
    t = 0.1
    between, beyond = double(0.11, 0.15, 0.19, -0.15), double(0.2001, 0.5, -3.0, 0.05, -0.0999, 0.0)
    assert (soft_threshold(between, t) != 0).all()
    assert (released_threshold(between, t) == 0).all()
    assert torch.equal(soft_threshold(beyond, t), released_threshold(beyond, t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("t", [3e-4, 0.1, 1.0])
def test_released_has_the_bits_of_three_masks_in_a_row(dtype: torch.dtype, t: float, generator: torch.Generator) -> None:
    edge = torch.tensor([t, 2 * t, 3 * t], dtype=dtype)
    around = torch.cat([edge, torch.nextafter(edge, edge * 2), torch.nextafter(edge, edge * 0)])
    v = torch.cat(
        [torch.randn(500, generator=generator).to(dtype) * 3 * t, around, -around, torch.tensor([0.0, -0.0, torch.inf], dtype=dtype)]
    )
    masked = v.clone()
    masked[masked > t] -= t
    masked[masked < -t] += t
    masked[masked.abs() < t] = 0.0
    assert bits(released_threshold(v, t)) == bits(masked)


def test_released_keeps_plus_and_minus_t_for_ever() -> None:
    v = torch.tensor([0.1, -0.1])
    for _ in range(10):
        assert bits(released_threshold(v, 0.1)) == bits(v)
        v = released_threshold(v, 0.1)


def test_soft_threshold_moves_by_t_with_one_rounding(generator: torch.Generator) -> None:
    v, t = torch.randn(1000, generator=generator), torch.tensor(0.3)
    alive = v.abs() > t
    assert bits(soft_threshold(v, t)[alive]) == bits((v - torch.copysign(t, v))[alive])


def test_group_keeps_the_direction_and_shortens_the_norm(generator: torch.Generator) -> None:
    v = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    for dim in (0, 1, 2, -1):
        u = group_soft_threshold(v, 0.7, dim=dim)
        torch.testing.assert_close(u.norm(dim=dim), (v.norm(dim=dim) - 0.7).clamp_min(0.0))
        torch.testing.assert_close(u * v.norm(dim=dim, keepdim=True), v * u.norm(dim=dim, keepdim=True))
    torch.testing.assert_close(group_soft_threshold(v, 0.7).norm(), v.norm() - 0.7)


def test_a_group_at_its_threshold_or_at_zero_is_exactly_zero() -> None:
    v = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-0.3, 0.4]])
    u = group_soft_threshold(v, 5.0, dim=1)
    assert bits(u) == [0] * 6
    assert bits(group_soft_threshold(torch.zeros(3), 0.0)) == [0] * 3


def test_groups_of_one_are_single_entries(generator: torch.Generator) -> None:
    v = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(group_soft_threshold(v, 0.4, dim=1), soft_threshold(v, 0.4))


# --- laws -----------------------------------------------------------------------------------------------------------------

VECTOR = st.integers(1, 6).flatmap(lambda n: st.tuples(*[st.lists(st.floats(-1e3, 1e3), min_size=n, max_size=n)] * 2))


@settings(deadline=None, max_examples=150)
@given(VECTOR, st.floats(0.0, 1e3))
@pytest.mark.parametrize("prox", [soft_threshold, group_soft_threshold])
def test_firmly_non_expansive(prox: Callable[..., Tensor], pair: tuple[list[float], list[float]], t: float) -> None:
    u, v = double(*pair[0]), double(*pair[1])
    moved = prox(u, t) - prox(v, t)
    # <p(u) - p(v), u - v> >= |p(u) - p(v)|^2, from which |p(u) - p(v)| <= |u - v| follows.
    assert moved @ (u - v) >= moved @ moved - 1e-7
    assert moved.norm() <= (u - v).norm() + 1e-9


def test_the_released_operator_is_expansive() -> None:
    apart = released_threshold(double(0.21), 0.1) - released_threshold(double(0.19), 0.1)
    assert apart.abs().item() > 5 * 0.02


@pytest.mark.parametrize("prox", ALL)
@pytest.mark.parametrize("dtype", list(INTEGERS))
def test_threshold_zero_is_the_identity(prox: Callable[..., Tensor], dtype: torch.dtype, generator: torch.Generator) -> None:
    v = torch.cat([torch.randn(200, generator=generator), torch.tensor([0.0, 1e-3, -1e-3, 100.0])]).to(dtype)
    assert bits(prox(v, 0.0)) == bits(v)
    assert bits(prox(v, torch.tensor(0.0))) == bits(v)


@pytest.mark.parametrize("prox", ALL)
@pytest.mark.parametrize("t", [0.0, 0.1, 5.0])
def test_nan_stays_nan(prox: Callable[..., Tensor], t: float) -> None:
    assert prox(torch.tensor([torch.nan, torch.nan]), t).isnan().all()
    assert prox(torch.tensor([torch.nan, 1.0]), t)[0].isnan()


def test_nan_stays_in_its_group() -> None:
    u = group_soft_threshold(torch.tensor([[torch.nan, 1.0], [3.0, 4.0], [0.1, 0.1]]), 1.0, dim=1)
    assert u[0].isnan().all()
    assert torch.equal(u[1:], torch.tensor([[2.4, 3.2], [0.0, 0.0]]))


@pytest.mark.parametrize("prox", ALL)
@pytest.mark.parametrize("dtype", list(INTEGERS))
def test_dead_entries_are_plus_zero(prox: Callable[..., Tensor], dtype: torch.dtype) -> None:
    t = 0.5
    v = torch.tensor([-0.3, 0.3, -0.0, 0.0, -1e-3], dtype=dtype)
    assert bits(prox(v, t)) == [0] * 5
    if prox is soft_threshold:
        assert bits(prox(torch.tensor([t, -t], dtype=dtype), t)) == [0, 0]


@pytest.mark.parametrize("prox", ALL)
@pytest.mark.parametrize("dtype", list(INTEGERS))
def test_tensor_thresholds_give_the_bits_of_numbers(prox: Callable[..., Tensor], dtype: torch.dtype, generator: torch.Generator) -> None:
    v = (torch.randn(300, generator=generator) * 0.5).to(dtype)
    expected = prox(v, 0.25)
    assert bits(prox(v, torch.tensor(0.25, dtype=dtype))) == bits(expected)
    for other in (torch.float32, torch.float64):
        # A rate is often of higher precision than what it steps; it must not lift the result to its own.
        torch.testing.assert_close(prox(v, torch.tensor(0.25, dtype=other)), expected)


@pytest.mark.parametrize("prox", [soft_threshold, released_threshold])
def test_thresholds_may_differ_by_entry(prox: Callable[..., Tensor]) -> None:
    v, t = double(1.0, 1.0, -1.0, 0.1), double(0.0, 0.3, 0.4, 0.2)
    assert torch.equal(prox(v, t), torch.cat([prox(v[i : i + 1], t[i].item()) for i in range(4)]))


def test_thresholds_may_differ_by_group(generator: torch.Generator) -> None:
    v, t = torch.randn(3, 4, generator=generator), torch.tensor([[0.1], [0.5], [9.0]])
    assert torch.equal(group_soft_threshold(v, t, dim=1), torch.stack([group_soft_threshold(v[i], t[i].item()) for i in range(3)]))


@pytest.mark.parametrize("prox", ALL)
def test_a_tensor_threshold_is_never_read_on_the_host(prox: Callable[..., Tensor]) -> None:
    # A meta tensor has no values: reading one raises.
    assert prox(torch.empty(4, device="meta"), torch.empty((), device="meta")).shape == (4,)


@pytest.mark.parametrize("prox", ALL)
def test_the_input_is_left_alone(prox: Callable[..., Tensor], generator: torch.Generator) -> None:
    v = torch.randn(20, generator=generator)
    before = v.clone()
    u = prox(v, 0.3)
    assert torch.equal(v, before)
    assert u.data_ptr() != v.data_ptr()


def test_a_gate_without_gradient_dies_after_ceil_of_its_size_by_t_steps() -> None:
    for start, t in ((1.0, 0.3), (-1.0, 0.25), (0.7, 1.0)):
        v, steps = double(start), 0
        while v.item() != 0.0:
            v, steps = soft_threshold(v, t), steps + 1
        assert steps == -(-abs(start) // t)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0, 2.5, torch.tensor(1.0)])
def test_shrinkage_of_a_norm_is_that_of_its_group(t: Threshold) -> None:
    v = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0], [-1.5, 2.0], [float("nan"), 1.0]])
    factor = shrinkage(torch.linalg.vector_norm(v, dim=1), t)
    torch.testing.assert_close(factor[:, None] * v, group_soft_threshold(v, t, dim=1), rtol=1e-6, atol=0, equal_nan=True)
    assert bool(((factor >= 0) & (factor <= 1))[:4].all())
    assert factor[2] == 0.0, "a group at zero stays there"
