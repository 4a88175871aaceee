"""The adapter: a value that nobody can change, and that holds nothing unreadable."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch

from paring.core.adapter import Adapter, Metadata, natural
from paring.core.errors import AdapterError
from paring.core.factors import Factors


def factors(rank: int = 2, gate: list[float] | None = None, scale: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(rank)
    a, b = torch.randn(rank, 4, generator=generator), torch.randn(3, rank, generator=generator)
    return Factors(a=a, b=b, gate=None if gate is None else torch.tensor(gate), scale=scale)


@pytest.fixture
def adapter() -> Adapter:
    modules = {
        "layer.10.q": factors(2, [0.0, -0.5], scale=2.0),
        "layer.2.q": factors(3, [1.0, 0.0, 2.0]),
        "layer.1.k": factors(2, [0.0, 0.0]),
        "head": factors(1),
    }
    heads = {"classifier.weight": torch.ones(5, 4), "classifier.bias": torch.zeros(5)}
    return Adapter(modules=modules, heads=heads, metadata=Metadata(base_model="base", task_type="SEQ_CLS"))


def test_modules_are_in_natural_order(adapter: Adapter) -> None:
    assert list(adapter.modules) == ["head", "layer.1.k", "layer.2.q", "layer.10.q"]
    assert list(adapter.heads) == ["classifier.bias", "classifier.weight"]
    assert sorted(["a.10", "a.b", "a.9.z", "a.9", "a"], key=natural) == ["a", "a.b", "a.9", "a.9.z", "a.10"]


def test_ranks_and_counts(adapter: Adapter) -> None:
    assert adapter.ranks == {"head": 1, "layer.1.k": 0, "layer.2.q": 2, "layer.10.q": 1}
    assert adapter.max_rank == 2
    assert adapter.parameters == (1 + 0 + 2 + 1) * (4 + 3)
    assert adapter.head_parameters == 25
    assert Adapter(modules={}).max_rank == Adapter(modules={}).parameters == 0


def test_folding_keeps_every_module_and_every_update(adapter: Adapter) -> None:
    folded = adapter.folded()
    assert list(folded.modules) == list(adapter.modules)
    assert folded.metadata == adapter.metadata
    assert folded.ranks == adapter.ranks
    assert folded.parameters == adapter.parameters
    for path, before in adapter.modules.items():
        after = folded.modules[path]
        assert after.gate is None
        assert after.scale == 1.0
        assert after.rank == before.live_rank
        torch.testing.assert_close(after.materialise(), before.materialise(), atol=1e-6, rtol=1e-6)
    assert torch.equal(folded.heads["classifier.weight"], adapter.heads["classifier.weight"])


def test_nobody_changes_an_adapter(adapter: Adapter) -> None:
    with pytest.raises(FrozenInstanceError):
        adapter.modules = {}  # type: ignore[misc]
    for view in (adapter.modules, adapter.heads):
        with pytest.raises(TypeError):
            view["new"] = None  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        adapter.metadata.base_model = "other"  # type: ignore[misc]


def test_the_dictionaries_given_are_not_held() -> None:
    modules, heads = {"a": factors()}, {"h": torch.ones(1)}
    adapter = Adapter(modules=modules, heads=heads)
    modules["b"], heads["i"] = factors(), torch.ones(1)
    assert list(adapter.modules) == ["a"]
    assert list(adapter.heads) == ["h"]


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(adapter: Adapter, how: str) -> None:
    copied: Adapter = copy.deepcopy(adapter) if how == "deepcopy" else pickle.loads(pickle.dumps(adapter))  # noqa: S301
    assert list(copied.modules) == list(adapter.modules)
    assert copied.metadata == adapter.metadata
    for path, one in adapter.modules.items():
        two = copied.modules[path]
        assert torch.equal(one.materialise(), two.materialise())
        assert one.a.data_ptr() != two.a.data_ptr()
    with pytest.raises(TypeError):
        copied.modules["new"] = factors()  # type: ignore[index]


@pytest.mark.parametrize("path", ["", "a..b", ".a", "a.", "a b", "a/b", "../a", "a\n", "a+b", "é"])
def test_paths_that_are_not_dotted_names_are_refused(path: str) -> None:
    with pytest.raises(AdapterError, match="not a dotted name"):
        Adapter(modules={path: factors()})
    with pytest.raises(AdapterError, match="not a dotted name"):
        Adapter(modules={}, heads={path: torch.ones(1)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["a", "b", "gate"])
def test_nan_and_infinity_are_refused_by_name(where: str, bad: float) -> None:
    good = factors(2, [1.0, 1.0])
    tensors = {"a": good.a, "b": good.b, "gate": torch.ones(2)}
    tensors[where] = tensors[where].clone()
    tensors[where].view(-1)[-1] = bad
    with pytest.raises(AdapterError, match=r"'layer\.0\.q' holds NaN or infinity"):
        Adapter(modules={"layer.0.q": Factors(**tensors)})


def test_heads_may_hold_whole_numbers_but_not_nan() -> None:
    assert Adapter(modules={}, heads={"bn.count": torch.tensor(3)}).head_parameters == 1
    with pytest.raises(AdapterError, match=r"'score.weight' holds NaN"):
        Adapter(modules={}, heads={"score.weight": torch.tensor([1.0, torch.nan])})
