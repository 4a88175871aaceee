"""The proximal update: which threshold, which operator."""

from __future__ import annotations

import pytest
import torch

from paring.core.errors import SettingError
from paring.core.prox import released_threshold, soft_threshold
from paring.parts.update.proximal import Proximal, Update


def test_the_threshold_follows_the_rate_or_not() -> None:
    assert Proximal(weight=0.1).threshold(0.5, 0.1) == 0.05
    assert Proximal(weight=0.1, step_size="constant").threshold(0.5, 0.1) == 0.1
    rate = torch.tensor(0.5)
    threshold = Proximal(weight=0.1).threshold(rate, 0.1)
    assert isinstance(threshold, torch.Tensor)
    assert threshold.item() == pytest.approx(0.05)
    # The weight is given, since a schedule may have moved it from where it began.
    assert Proximal(weight=0.1).threshold(0.5, 0.4) == 0.2


def test_the_weight_fades_by_the_way_that_b_has_gone_or_stays() -> None:
    assert [Proximal(weight=0.5, fade=0.25).weight_after(travel) for travel in (0.0, 0.25, 0.75, 124.75)] == [0.5, 0.25, 0.125, 0.001]
    assert Proximal(weight=0.5).weight_after(10**9) == 0.5


def test_the_operator_is_the_one_named() -> None:
    v = torch.tensor([0.15, -0.19, 0.1, 0.21, -3.0])
    assert torch.equal(Proximal(weight=1.0).apply(v, 0.1), soft_threshold(v, 0.1))
    assert torch.equal(Proximal(weight=1.0, operator="released").apply(v, 0.1), released_threshold(v, 0.1))
    assert not torch.equal(soft_threshold(v, 0.1), released_threshold(v, 0.1))


def test_round_trip() -> None:
    update = Proximal(weight=0.2, operator="released", step_size="constant", fade=7.5)
    assert Update.decode(update.encode()) == update


@pytest.mark.parametrize(
    "settings",
    [
        {"weight": -0.1},
        {"weight": float("nan")},
        {"weight": 1.0, "operator": "exakt"},
        {"weight": 1.0, "step_size": "lr"},
        {"weight": 1.0, "fade": 0.0},
    ],
)
def test_refusals(settings: dict[str, object], unchecked: None) -> None:
    with pytest.raises(SettingError):
        Proximal(**settings)  # type: ignore[arg-type]
    with pytest.raises(SettingError):
        Update.decode({"name": "proximal", **settings})
