"""What holds for every rule, and what adapters must share to be merged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from paring.core.adapter import Adapter, Metadata
from paring.core.errors import AdapterError, SettingError
from paring.core.factors import Factors
from paring.merge import DARE, SVD, TIES, Concatenation, Lego, Linear, Magnitude, Rule, merge, weighted_sum
from tests.merge.adapters import SHAPES, adapter, dense, far

RULES: tuple[Rule, ...] = (
    Concatenation(),
    SVD(),
    Linear(),
    TIES(density=1.0),
    TIES(density=1.0, majority="frequency"),
    TIES(density=1.0, on="factors"),
    DARE(density=1.0),
    DARE(density=1.0, majority="total"),
    DARE(density=1.0, on="factors"),
    DARE(density=1.0, on="factors", majority="frequency"),
    Magnitude(density=1.0),
    Magnitude(density=1.0, on="factors"),
    Lego(),
    Lego(balance=True, sign_align=True),
)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("count", [2, 3])
def test_copies_of_one_adapter_give_it_back(rule: Rule, count: int) -> None:
    one = adapter(0, scale=-0.5)
    merged = merge([one] * count, rule)
    assert far(merged, one) < 1e-12
    assert far(weighted_sum([one] * count, rule), one) < 1e-12


@pytest.mark.parametrize("rule", [*RULES, TIES(density=0.3), DARE(density=0.3), Magnitude(density=0.3)], ids=repr)
def test_it_is_the_same_again_and_of_finite_numbers(rule: Rule) -> None:
    adapters = [adapter(0), adapter(1, 3, paths=["down", "layers.2.up"], scale=2.0), adapter(2, 5, paths=["down"])]
    first, second = merge(adapters, rule), merge(adapters, rule)
    assert first.modules.keys() == SHAPES.keys()
    for path, factors in first.modules.items():
        assert torch.equal(factors.a, second.modules[path].a)
        assert torch.equal(factors.b, second.modules[path].b)
        assert factors.a.dtype == factors.b.dtype == torch.float64
        assert bool(torch.isfinite(factors.materialise()).all())


@pytest.mark.parametrize("rule", [rule for rule in RULES if not isinstance(rule, DARE)], ids=repr)
def test_the_order_of_the_adapters_does_not_matter_without_weights(rule: Rule) -> None:
    adapters = [adapter(seed, 3 + seed, scale=0.5 + seed) for seed in range(3)]
    assert far(merge(adapters, rule), merge(adapters[::-1], rule)) < 1e-10


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_dead_ranks_and_gates_are_those_of_the_folded_adapter(rule: Rule) -> None:
    def gated(seed: int) -> Adapter:
        plain = adapter(seed, 5)
        gate = torch.tensor([1.5, 0.0, -0.5, 0.0, 1.0], dtype=torch.float64)
        return replace(plain, modules={path: replace(factors, gate=gate) for path, factors in plain.modules.items()})

    def without(given: Adapter) -> Adapter:
        folded = {
            path: Factors(a=one.a[[0, 2, 4]], b=one.b[:, [0, 2, 4]] * one.gate[[0, 2, 4]])
            for path, one in given.modules.items()
            if one.gate is not None
        }
        return replace(given, modules=folded)

    adapters = [gated(0), gated(1)]
    assert far(merge(adapters, rule), merge([without(one) for one in adapters], rule)) < 1e-12


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_an_absent_module_is_an_update_of_zero(rule: Rule) -> None:
    whole, part = adapter(0), adapter(1, paths=["down"])
    nothing = {
        path: Factors(a=torch.zeros(0, width, dtype=torch.float64), b=torch.zeros(height, 0, dtype=torch.float64))
        for path, (height, width) in SHAPES.items()
    }
    listed = replace(part, modules={**nothing, **part.modules})
    dead = replace(whole, modules={path: replace(one, gate=torch.zeros(4, dtype=torch.float64)) for path, one in whole.modules.items()})
    assert far(merge([whole, part], rule), merge([whole, listed], rule)) == 0.0
    assert far(merge([whole, part], rule), merge([whole, replace(dead, modules={**dead.modules, **part.modules})], rule)) == 0.0


def test_a_mean_divides_by_all_adapters_and_a_mean_of_those_that_agree_does_not() -> None:
    whole, part = adapter(0), adapter(1, paths=["down"])
    alone = dense(whole)["layers.2.up"]
    for rule, share in ((Concatenation(), 0.5), (SVD(), 0.5), (Magnitude(density=1.0), 0.5), (TIES(density=1.0), 1.0), (Lego(), 1.0)):
        torch.testing.assert_close(dense(merge([whole, part], rule))["layers.2.up"], share * alone)


def test_a_module_that_is_dead_in_all_stays_listed_without_ranks() -> None:
    empty = Factors(a=torch.ones(2, 5), b=torch.ones(4, 2), gate=torch.zeros(2))
    full = Factors(a=torch.eye(5)[:2], b=torch.eye(4)[:, :2])
    one = Adapter(modules={"empty": empty, "full": full})
    for rule in RULES:
        added = isinstance(rule, Concatenation)
        assert merge([one, one], rule).ranks == {"empty": 0, "full": 4 if added else 2}
    assert merge([one, one], Lego(rank=4)).ranks == {"empty": 0, "full": 4}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_are_the_widest_that_come_in(dtype: torch.dtype) -> None:
    def cast(given: Adapter) -> Adapter:
        return replace(given, modules={path: factors.to(dtype=dtype) for path, factors in given.modules.items()})

    adapters = [adapter(0), adapter(1)]
    narrow = merge([cast(one) for one in adapters], SVD(rank=8))
    assert {factors.a.dtype for factors in narrow.modules.values()} == {dtype}
    exact = dense(merge(adapters, SVD(rank=8)))
    for path, update in dense(narrow).items():
        assert float((update - exact[path]).norm() / exact[path].norm()) < 8 * torch.finfo(dtype).eps
    assert {factors.b.dtype for factors in merge([cast(adapters[0]), adapters[1]], SVD()).modules.values()} == {torch.float64}


def test_heads_are_kept_where_there_is_no_doubt() -> None:
    head, other = {"classifier.weight": torch.ones(2, 3)}, {"classifier.weight": torch.zeros(2, 3)}
    none, one, same, two = adapter(0), adapter(1, heads=head), adapter(2, heads=head), adapter(3, heads=other)
    assert merge([none, one], SVD()).heads == head
    assert torch.equal(merge([one, none, same], SVD()).heads["classifier.weight"], head["classifier.weight"])
    assert merge([one, none], SVD()).metadata.task_type == "SEQ_CLS"
    lost = merge([one, two], SVD())
    assert lost.heads == {}
    assert lost.metadata.task_type is None, "a loader would ask for the head"
    kept = merge([one, two], SVD(), heads_of=1)
    assert torch.equal(kept.heads["classifier.weight"], other["classifier.weight"])
    assert kept.metadata.task_type == "SEQ_CLS"
    for place in (0, 5, -1):
        with pytest.raises(SettingError, match="brings no heads; those that do are 1, 2"):
            merge([none, one, two], SVD(), heads_of=place)
    with pytest.raises(SettingError, match="none of them does"):
        merge([none, none], SVD(), heads_of=0)


def test_a_task_without_a_head_keeps_its_type() -> None:
    plain = [replace(adapter(seed), metadata=Metadata(base_model="base", task_type="CAUSAL_LM")) for seed in range(2)]
    assert merge(plain, SVD()).metadata == Metadata(base_model="base", task_type="CAUSAL_LM")
    assert merge([plain[0], replace(plain[1], metadata=Metadata())], SVD()).metadata == Metadata(base_model="base")


def test_other_base_models_are_refused() -> None:
    one = adapter(0)
    moved = replace(adapter(1), metadata=Metadata(base_model="elsewhere"))
    with pytest.raises(AdapterError, match="different base models, 'base' and 'elsewhere'"):
        merge([one, moved], SVD())
    assert merge([one, moved], SVD(), base_model="base").metadata.base_model == "base"
    older, newer = (replace(one, metadata=Metadata(base_model="base", revision=name)) for name in ("v1", "v2"))
    with pytest.raises(AdapterError, match="different revisions"):
        merge([older, newer], SVD())
    assert merge([older, one], SVD()).metadata.revision == "v1"
    transposed = replace(one, metadata=Metadata(fan_in_fan_out=frozenset(["down"])))
    with pytest.raises(AdapterError, match=r"'down' is stored transposed"):
        merge([one, transposed], SVD())
    assert merge([transposed, transposed], SVD()).metadata.fan_in_fan_out == {"down"}
    wide = replace(adapter(1), modules={"down": Factors(a=torch.ones(1, 10), b=torch.ones(20, 1))})
    with pytest.raises(AdapterError, match=r"'down' is 9 -> 20 in adapter 1 and 10 -> 20 in adapter 3"):
        merge([one, one, wide], SVD())


def test_what_else_is_refused() -> None:
    one = adapter(0)
    with pytest.raises(SettingError, match="at least two adapters to merge, not 1"):
        merge([one], SVD())
    with pytest.raises(SettingError, match="give an instance of Rule"):
        merge([one, one], "svd")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="one for each of the 3 adapters"):
        merge([one] * 3, SVD(weights=(0.5, 0.5)))
    for weights in ((0.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0), ("a", 1.0)):
        with pytest.raises(SettingError, match="weights"):
            SVD(weights=weights)  # type: ignore[arg-type]
    for make in (lambda: SVD(rank=0), lambda: TIES(density=0.0), lambda: DARE(density=1.5), lambda: TIES(on="deltas")):  # type: ignore[arg-type]
        with pytest.raises(SettingError):
            make()
    with pytest.raises(SettingError, match="leave rank out"):
        TIES(rank=4, on="factors")


def test_rules_travel_as_plain_data() -> None:
    for rule in (*RULES, SVD(rank=3, weights=(0.5, -1.0)), Lego(rank=2, absorb="b", seed=5)):
        assert Rule.decode(rule.encode()) == rule
