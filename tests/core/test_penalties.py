"""Penalties: their value by hand, their prox and their minimisers through the optimality condition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paring.core.errors import SettingError
from paring.core.penalties import L1, GroupL1, Penalty

PENALTIES: list[Penalty] = [L1(weight=0.3), GroupL1(weight=0.3), GroupL1(weight=0.3, dim=0), GroupL1(weight=0.3, dim=1), L1(weight=0)]


@pytest.fixture
def v(generator: torch.Generator) -> Tensor:
    return torch.randn(6, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("step", [0.01, 0.5, 2.0, 50.0])
def test_the_prox_fulfils_its_optimality_condition(penalty: Penalty, step: float, v: Tensor) -> None:
    u = penalty.prox(v, step)
    # u minimises 1/(2 step) |u - v|^2 + h(u), whose smooth part has the gradient (u - v) / step.
    assert penalty.subdifferential_distance(u, (u - v) / step).item() < 1e-12
    torch.testing.assert_close(penalty.prox(v, torch.tensor(step, dtype=torch.float64)), u)


@pytest.mark.parametrize("penalty", PENALTIES[:4], ids=repr)
def test_the_condition_fails_anywhere_else(penalty: Penalty, v: Tensor) -> None:
    u = penalty.prox(v, 0.5)
    for other in (v, u * 1.01 + 1e-3, torch.zeros_like(u)):
        assert penalty.subdifferential_distance(other, (other - v) / 0.5).item() > 1e-3


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_proximal_gradient_ends_where_the_distance_is_zero(penalty: Penalty, v: Tensor, generator: torch.Generator) -> None:
    design = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    target = design @ v + torch.randn(12, 3, generator=generator, dtype=torch.float64)
    step = 1.0 / torch.linalg.matrix_norm(design, ord=2).item() ** 2
    u = torch.zeros_like(v)

    def gradient(u: Tensor) -> Tensor:
        return design.T @ (design @ u - target)

    start = penalty.subdifferential_distance(u, gradient(u)).item()
    for _ in range(500):
        u = penalty.prox(u - step * gradient(u), step)
    assert penalty.subdifferential_distance(u, gradient(u)).item() < 1e-6 < 0.1 < start


def test_values_by_hand() -> None:
    v = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    assert L1(weight=0.5).value(v).item() == pytest.approx(4.5)
    assert GroupL1(weight=0.5, dim=1).value(v).item() == pytest.approx(0.5 * (5 + 2))
    assert GroupL1(weight=0.5, dim=0).value(v).item() == pytest.approx(0.5 * (3 + 20**0.5))
    assert GroupL1(weight=0.5).value(v).item() == pytest.approx(0.5 * 29**0.5)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_the_value_is_convex_and_the_subgradient_supports_it(penalty: Penalty, v: Tensor, generator: torch.Generator) -> None:
    v.requires_grad_(True)
    (gradient,) = torch.autograd.grad(penalty.value(v), v)
    # A gradient of h is minus the gradient of f where -grad f lies in the subdifferential.
    assert penalty.subdifferential_distance(v.detach(), -gradient).item() < 1e-12
    for _ in range(20):
        w = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        assert penalty.value(w) >= penalty.value(v) + ((w - v) * gradient).sum() - 1e-12


def test_distances_by_hand() -> None:
    v, gradient = torch.tensor([0.0, 2.0, 0.0]), torch.tensor([0.5, -1.0, -4.0])
    # At 0 the interval [-1, 1] takes up the first and leaves 3 of the last; -(-1) = sign(2).
    assert L1(weight=1.0).subdifferential_distance(v, gradient).item() == pytest.approx(3.0)
    rows = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    slopes = torch.tensor([[3.0, 4.0], [0.0, -1.0]])
    assert GroupL1(weight=1.0, dim=1).subdifferential_distance(rows, slopes).item() == pytest.approx(4.0)


def test_support() -> None:
    v = torch.tensor([[0.0, -0.0, 1e-30], [0.0, 0.0, 0.0]])
    assert L1(weight=1.0).support(v).tolist() == [[False, False, True], [False, False, False]]
    assert GroupL1(weight=1.0, dim=1).support(v).tolist() == [True, False]
    assert GroupL1(weight=1.0, dim=0).support(v).tolist() == [False, False, True]
    assert GroupL1(weight=1.0).support(v).item() is True


@pytest.mark.parametrize("kind", [L1, GroupL1])
@pytest.mark.parametrize("weight", [-1e-9, float("nan"), float("inf")])
def test_a_weight_below_zero_is_refused(kind: type[L1 | GroupL1], weight: float) -> None:
    with pytest.raises(SettingError, match="weight="):
        kind(weight=weight)
