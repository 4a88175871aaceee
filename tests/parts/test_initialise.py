"""Initialisers: where the factors start, and from which randomness."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch

from paring.core.adapter import Adapter
from paring.core.errors import AdapterError
from paring.core.factors import Factors
from paring.parts.initialise.base import Initialiser
from paring.parts.initialise.from_adapter import FromAdapter
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.shape import Shape

SHAPE = Shape(path="layer.0.query", in_features=16, out_features=6)


def trained(rank: int = 3, path: str = SHAPE.path, gate: list[float] | None = None, scale: float = 0.5) -> Adapter:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(rank, 16, generator=generator), torch.randn(6, rank, generator=generator)
    factors = Factors(a=a, b=b, gate=None if gate is None else torch.tensor(gate), scale=scale)
    return Adapter(modules={path: factors, "layer.1.query": factors})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("initialiser", [KaimingZero(), FromAdapter(adapter=trained())], ids=["kaiming_zero", "from_adapter"])
@pytest.mark.parametrize("rank", [3, 5])
def test_every_initialiser_keeps_its_promise(initialiser: Initialiser, rank: int) -> None:
    state = torch.get_rng_state()
    start = initialiser.factors(SHAPE, rank, 2.0, seeded())
    assert start.a.shape == (rank, 16)
    assert start.b.shape == (6, rank)
    assert start.gate is None
    assert start.scale == 2.0
    assert start.a.dtype == start.b.dtype == torch.float32
    assert start.a.device.type == "cpu"
    again = initialiser.factors(SHAPE, rank, 2.0, seeded())
    assert torch.equal(start.a, again.a)
    assert torch.equal(start.b, again.b)
    assert torch.equal(torch.get_rng_state(), state)
    assert (start.a != 0).any(dim=1).all(), "a rank that is zero in both factors never trains"


def test_kaiming_zero_is_uniform_in_its_bound_and_starts_at_zero() -> None:
    wide = Shape(path="wide", in_features=100, out_features=3)
    start = KaimingZero().factors(wide, 200, 1.0, seeded())
    bound = 1 / math.sqrt(100)
    assert (start.b == 0).all()
    assert start.a.abs().max().item() <= bound
    assert start.a.abs().max().item() > 0.999 * bound
    # Mean and variance of the uniform distribution on +-bound, at 20,000 draws.
    assert abs(start.a.mean().item()) < 5 * bound / math.sqrt(3 * 20000)
    assert start.a.var().item() == pytest.approx(bound**2 / 3, rel=0.03)
    assert not torch.equal(start.a, KaimingZero().factors(wide, 200, 1.0, seeded(1)).a)


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.0, 16.0])
@pytest.mark.parametrize("rank", [3, 6])
def test_from_adapter_starts_at_the_adapters_update_whatever_the_scales(scale: float, rank: int) -> None:
    adapter = trained(scale=0.5)
    start = FromAdapter(adapter=adapter).factors(SHAPE, rank, scale, seeded())
    assert start.scale == scale
    torch.testing.assert_close(start.materialise(), adapter.modules[SHAPE.path].materialise())
    # B takes up the ratio of the scales; A is the adapter's own.
    assert torch.equal(start.a[:3], adapter.modules[SHAPE.path].a)
    torch.testing.assert_close(start.b[:, :3], adapter.modules[SHAPE.path].b * 0.5 / scale)


def test_ranks_above_the_adapters_start_as_those_of_lora() -> None:
    start = FromAdapter(adapter=trained()).factors(SHAPE, 6, 1.0, seeded())
    fresh = KaimingZero().factors(SHAPE, 6, 1.0, seeded())
    assert torch.equal(start.a[3:], fresh.a[3:])
    assert (start.b[:, 3:] == 0).all()


def test_dead_ranks_of_the_adapter_make_room() -> None:
    adapter = trained(rank=4, gate=[0.5, 0.0, -2.0, 0.0])
    start = FromAdapter(adapter=adapter).factors(SHAPE, 2, 1.0, seeded())
    torch.testing.assert_close(start.materialise(), adapter.modules[SHAPE.path].materialise())


def test_an_adapter_of_another_dtype_starts_in_float32() -> None:
    low = trained().modules[SHAPE.path].to(dtype=torch.bfloat16)
    start = FromAdapter(adapter=Adapter(modules={SHAPE.path: low})).factors(SHAPE, 4, 0.5, seeded())
    assert start.a.dtype == start.b.dtype == torch.float32
    torch.testing.assert_close(start.materialise(), low.materialise())


def test_a_missing_module_is_named_with_near_ones() -> None:
    with pytest.raises(AdapterError, match=r"'layer\.0\.query' is targeted.*Did you mean 'layer\.1\.query'"):
        FromAdapter(adapter=trained(path="other")).factors(SHAPE, 4, 1.0, seeded())


def test_another_shape_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"is 8 -> 6, but the adapter's factors are 16 -> 6: .*another base model"):
        FromAdapter(adapter=trained()).factors(Shape(path=SHAPE.path, in_features=8, out_features=6), 4, 1.0, seeded())


def test_a_rank_below_the_adapters_is_refused() -> None:
    with pytest.raises(AdapterError, match="rank 3 in the adapter, above rank=2; raise the rank"):
        FromAdapter(adapter=trained()).factors(SHAPE, 2, 1.0, seeded())


def test_the_adapter_is_not_written_into_configurations() -> None:
    initialiser = FromAdapter(source="somewhere", adapter=trained())
    assert initialiser.encode() == {"name": "from_adapter", "version": 1, "source": "somewhere", "ranks": None}
    back = Initialiser.decode(initialiser.encode())
    assert back == initialiser
    assert hash(back) == hash(initialiser)
    # Read back, it keeps LoRA's start and says so: the weights come with the checkpoint.
    with pytest.warns(UserWarning, match="'somewhere'.*layer.0.query"):
        start = back.factors(SHAPE, 4, 1.0, seeded())
    assert torch.equal(start.a, KaimingZero().factors(SHAPE, 4, 1.0, seeded()).a)
    assert (start.b == 0).all()


def test_a_copied_initialiser_still_holds_its_adapter() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = copy.deepcopy(FromAdapter(adapter=trained())).factors(SHAPE, 3, 1.0, seeded())
    torch.testing.assert_close(start.materialise(), trained().modules[SHAPE.path].materialise())
