"""k-means of few points: groups that are there, ends where nothing moves, no group empty."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paring.core.errors import SettingError
from paring.merge.kmeans import kmeans, ordered


def clouds(spread: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points around five far-apart places, and which place each is of."""
    places = 10 * torch.eye(5, 7, dtype=torch.float64)
    owner = torch.arange(20) % 5
    return places[owner] + spread * torch.randn(20, 7, generator=generator, dtype=torch.float64), owner


def test_kmeans_finds_groups_that_are_there(generator: torch.Generator) -> None:
    points, _ = clouds(0.1, generator)
    for either_sign in (False, True):
        signs = torch.where(torch.arange(20) % 3 == 0, -1.0, 1.0).double()[:, None] if either_sign else 1.0
        found = kmeans(points * signs, 5, generator=generator, either_sign=either_sign)
        assert found.sizes.tolist() == [4] * 5
        assert found.inertia < 20 * 7 * 0.1**2 * 2
        assert sorted(found.centres.abs().argmax(1).tolist()) == list(range(5))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 12), either_sign=st.booleans())
def test_kmeans_ends_where_no_point_and_no_mean_moves(seed: int, count: int, either_sign: bool) -> None:
    drawn = torch.Generator().manual_seed(seed)
    points = torch.randn(12, 3, generator=drawn, dtype=torch.float64)
    found = kmeans(points, count, generator=drawn, restarts=2, either_sign=either_sign)
    assert int(found.sizes.min()) >= 1
    assert int(found.sizes.sum()) == 12
    if not either_sign:
        points = ordered(points)
        for index in range(count):
            torch.testing.assert_close(found.centres[index], points[found.labels == index].mean(0))
        own = (points - found.centres[found.labels]).norm(dim=1)
        assert float((own - torch.cdist(points, found.centres).amin(1)).max()) < 1e-6
        assert found.inertia == pytest.approx(float(own.square().sum()))
    assert found.inertia < 1e-20 or count < 12


def test_kmeans_of_equal_points_leaves_no_group_empty(generator: torch.Generator) -> None:
    points = torch.ones(6, 3, dtype=torch.float64)
    found = kmeans(points, 4, generator=generator)
    assert int(found.sizes.min()) >= 1
    assert torch.equal(found.centres, torch.ones(4, 3, dtype=torch.float64))
    for count in (0, 7):
        with pytest.raises(SettingError, match="6 points cannot have"):
            kmeans(points, count, generator=generator)


@pytest.mark.parametrize("either_sign", [False, True])
def test_the_order_of_the_points_does_not_matter(either_sign: bool, generator: torch.Generator) -> None:
    points = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    turned = points[torch.randperm(30, generator=generator)]
    one, other = (kmeans(given, 6, generator=torch.Generator().manual_seed(1), either_sign=either_sign) for given in (points, turned))
    assert torch.equal(one.centres, other.centres)
    assert torch.equal(one.labels, other.labels)
