"""The distance between two updates."""

from __future__ import annotations

import pytest
import torch

from paring.core.errors import AdapterError
from paring.core.factors import Factors
from paring.exchange.compare import difference, differences
from tests.exchange.helpers import adapter, factors


def test_zero_for_the_same_update_written_in_another_way(generator: torch.Generator) -> None:
    held = factors(generator, 8, 3)
    mix = torch.randn(3, 3, generator=generator)
    folded = held.prune().fold()
    turned = Factors(a=mix @ folded.a, b=folded.b @ torch.linalg.inv(mix))
    assert difference(held, folded.pad(6), generator) < 1e-6
    assert difference(folded, turned, generator) < 1e-5


@pytest.mark.parametrize("ratio", [2.0, 1.0625, -1.0, 0.0])
def test_the_ratio_of_scales_shows(ratio: float, generator: torch.Generator) -> None:
    held = factors(generator, 8, 3).prune().fold()
    scaled = Factors(a=held.a, b=held.b * ratio)
    assert difference(held, scaled, generator) == pytest.approx(abs(1 - ratio) / max(1.0, abs(ratio)), rel=1e-6)
    assert difference(scaled, held, generator) == pytest.approx(difference(held, scaled, generator))


def test_two_dead_modules_do_not_differ(generator: torch.Generator) -> None:
    assert difference(factors(generator, 8, 0), factors(generator, 3, 0), generator) == 0.0


def test_a_missing_module_counts_as_zero(generator: torch.Generator) -> None:
    found = differences(adapter({"a": 2, "b": 2, "dead": 0}), adapter({"a": 2}), generator)
    assert found == {"a": 0.0, "b": 1.0, "dead": 0.0}


def test_shapes_must_agree(generator: torch.Generator) -> None:
    with pytest.raises(AdapterError, match="different modules"):
        difference(factors(generator, 2, 2), factors(generator, 2, 2, width=9), generator)
