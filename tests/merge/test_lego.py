"""LoRA-LEGO's properties, one test each, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from paring.core.adapter import Adapter
from paring.core.errors import SettingError
from paring.core.factors import Factors
from paring.merge import Concatenation, Lego, merge
from tests.merge.adapters import adapter, dense, far


def changed(given: Adapter, change: Callable[[Factors], Factors]) -> Adapter:
    """With every module's factors replaced."""
    return replace(given, modules={path: change(factors) for path, factors in given.modules.items()})


def shuffled(factors: Factors) -> Factors:
    """Its ranks in another order, which is the same update."""
    order = torch.randperm(factors.rank, generator=torch.Generator().manual_seed(3))
    return replace(factors, a=factors.a[order], b=factors.b[:, order])


def flipped(factors: Factors) -> Factors:
    """Every other unit as its negative, which is the same update."""
    signs = torch.tensor([1.0, -1.0] * factors.rank, dtype=factors.a.dtype)[: factors.rank]
    return replace(factors, a=factors.a * signs[:, None], b=factors.b * signs)


def regauged(factors: Factors) -> Factors:
    """Units with their lengths shared out otherwise, which is the same update; powers of two, so to the last bit."""
    gauge = torch.tensor([4.0, 0.25, 16.0, 1.0] * factors.rank, dtype=factors.a.dtype)[: factors.rank]
    return replace(factors, a=factors.a * gauge[:, None], b=factors.b / gauge)


@pytest.mark.parametrize("settings", [{}, {"balance": True}, {"sign_align": True}, {"absorb": "b"}], ids=repr)
def test_all_units_and_no_weight_on_the_output_are_the_exact_sum(settings: dict[str, object]) -> None:
    adapters = [adapter(0, 4, scale=2.0), adapter(1, 4, scale=-0.5), adapter(2, 4)]
    merged = merge(adapters, Lego(rank=12, reweight_output=False, **settings))
    assert far(merged, merge(adapters, Concatenation(weights=(1.0, 1.0, 1.0)))) < 1e-12
    assert set(merged.ranks.values()) == {12}


@pytest.mark.parametrize("settings", [{}, {"balance": True}, {"sign_align": True}, {"absorb": "b"}], ids=repr)
@pytest.mark.parametrize("count", [2, 3])
def test_copies_are_averaged_not_added(settings: dict[str, object], count: int) -> None:
    one = adapter(0, 4, scale=0.7)
    assert far(merge([one] * count, Lego(rank=4, **settings)), one) < 1e-12
    # Even where there are more groups than different units, none is empty, and nothing is lost.
    more = merge([one, one], Lego(rank=6, reweight_output=False, **settings))
    assert set(more.ranks.values()) == {6}
    assert far(merge([one, one], Lego(rank=8, reweight_output=False)), merge([one, one], Concatenation(weights=(1.0, 1.0)))) < 1e-12


@pytest.mark.parametrize("settings", [{}, {"balance": True, "sign_align": True}, {"reweight_parameters": False}], ids=repr)
@pytest.mark.parametrize("rank", [1, 3, 5, None])
def test_units_and_adapters_in_another_order_give_the_same_bits(settings: dict[str, object], rank: int | None) -> None:
    adapters = [adapter(seed, 3 + seed, scale=1.0 + seed) for seed in range(3)]
    rule = Lego(rank=rank, **settings)
    first = merge(adapters, rule)
    assert far(merge([changed(one, shuffled) for one in adapters[::-1]], rule), first) == 0.0


def test_each_mean_has_the_mean_length_of_its_group() -> None:
    one, two = adapter(0, 5), adapter(1, 4)
    merged = merge([one, two], Lego(rank=3))
    plain = merge([one, two], Lego(rank=3, reweight_parameters=False))
    for path, factors in merged.modules.items():
        units = torch.cat([torch.cat([each.modules[path].a, each.modules[path].b.T], dim=1) for each in (one, two)])
        rows = torch.cat([factors.a, factors.b.T], dim=1)
        means = torch.cat([plain.modules[path].a, plain.modules[path].b.T], dim=1)
        # Each unit is nearest to the mean of its own group, as k-means ends.
        groups = torch.cdist(units, means).argmin(1)
        for index in range(3):
            members = units[groups == index]
            torch.testing.assert_close(means[index], members.mean(0))
            torch.testing.assert_close(rows[index].norm(), members.norm(dim=1).mean())
            torch.testing.assert_close(rows[index] / rows[index].norm(), means[index] / means[index].norm())


def test_the_output_is_weighed_by_the_root_of_r_over_k() -> None:
    adapters = [adapter(0, 2), adapter(1, 6)]
    for rank in (1, 4, 8):
        with_it, without = (dense(merge(adapters, Lego(rank=rank, reweight_output=on))) for on in (True, False))
        for path, update in with_it.items():
            torch.testing.assert_close(update, (4 / rank) ** 0.5 * without[path])


def test_a_common_scale_changes_no_group() -> None:
    def scaled(scale: float) -> list[Adapter]:
        return [adapter(seed, 4, scale=scale) for seed in range(3)]

    plain, half = merge(scaled(1.0), Lego(rank=4)), merge(scaled(0.25), Lego(rank=4))
    assert far(half, changed(plain, lambda factors: replace(factors, scale=0.25 * factors.scale))) < 1e-12


def test_a_unit_and_its_negative() -> None:
    one, two = adapter(0, 4), adapter(1, 4)
    aligned, plain = Lego(rank=4, sign_align=True), Lego(rank=4)
    other = changed(one, flipped)
    assert far(one, other) == 0.0
    assert far(merge([other, two], aligned), merge([one, two], aligned)) == 0.0
    assert far(merge([other, two], plain), merge([one, two], plain)) > 1e-3
    assert far(merge([one, other], aligned), one) < 1e-12
    assert far(merge([one, other], plain), one) > 1e-3, "k-means takes them for far apart"


def test_a_unit_in_another_gauge() -> None:
    one, two = adapter(0, 4), adapter(1, 4)
    balanced, plain = Lego(rank=4, balance=True), Lego(rank=4)
    other = changed(one, regauged)
    assert far(one, other) == 0.0
    assert far(merge([other, two], balanced), merge([one, two], balanced)) < 1e-12
    assert far(merge([other, two], plain), merge([one, two], plain)) > 1e-3
    # So where the scale goes does not matter any more.
    scaled = [replace(adapter(0), modules=adapter(0, scale=3.0).modules), adapter(1, scale=0.1)]
    assert far(merge(scaled, Lego(balance=True)), merge(scaled, Lego(balance=True, absorb="b"))) < 1e-12
    assert far(merge(scaled, Lego()), merge(scaled, Lego(absorb="b"))) > 1e-3


def test_units_of_no_length() -> None:
    start = changed(adapter(0, 4), lambda factors: replace(factors, b=torch.zeros_like(factors.b)))
    for rule in (Lego(), Lego(balance=True), Lego(balance=True, sign_align=True, rank=8)):
        assert float(max(update.abs().max() for update in dense(merge([start, start], rule)).values())) == 0.0
        assert far(merge([start, adapter(1)], rule), merge([adapter(1), start], rule)) == 0.0
    # Opposite units have a mean of zero, which stays zero.
    one = adapter(0, 1)
    opposite = changed(one, lambda factors: replace(factors, a=-factors.a, b=-factors.b))
    assert max(float(update.abs().max()) for update in dense(merge([one, opposite], Lego(rank=1))).values()) == 0.0


def test_more_groups_than_units_are_refused_with_what_there_is() -> None:
    ragged = [adapter(0, 4), adapter(1, 2, paths=["down"])]
    with pytest.raises(SettingError, match=r"only 4 ranks in 'layers.*at most 4, or none"):
        merge(ragged, Lego(rank=5))
    assert set(merge(ragged, Lego(rank=4)).ranks.values()) == {4}
    assert merge(ragged, Lego()).ranks == {"layers.2.up": 4, "layers.10.up": 4, "down": 4}
    for make in (lambda: Lego(rank=0), lambda: Lego(restarts=0), lambda: Lego(absorb="a")):  # type: ignore[arg-type]
        with pytest.raises(SettingError):
            make()
