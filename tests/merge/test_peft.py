"""PEFT's ``add_weighted_adapter`` as the oracle: the same updates, entry by entry, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from paring.core.adapter import Adapter
from paring.core.factors import Factors
from paring.merge import DARE, SVD, TIES, Concatenation, Linear, Magnitude, Rule, merge

WIDTHS = {"one": (12, 20), "two": (20, 9)}
NAMES = ("default", "b", "c")


class Small(nn.Module):
    """Two linear modules."""

    def __init__(self) -> None:
        super().__init__()
        for name, (height, width) in WIDTHS.items():
            self.add_module(name, nn.Linear(width, height))


def model(ranks: Sequence[int], targets: Sequence[Sequence[str]], seed: int = 0) -> PeftModel:
    """With an adapter of random factors for each rank, all with scales of their own."""
    made: PeftModel | None = None
    for name, rank, modules in zip(NAMES, ranks, targets, strict=False):
        config = LoraConfig(r=rank, lora_alpha=3 + len(modules) + rank, target_modules=list(modules))
        if made is None:
            made = get_peft_model(Small(), config)
        else:
            made.add_adapter(name, config)
    assert made is not None
    generator = torch.Generator().manual_seed(seed)
    made.double()
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


def read(of: PeftModel, name: str) -> Adapter:
    """One of its adapters, as paring has it."""
    modules = {}
    for path in WIDTHS:
        layer = of.base_model.model.get_submodule(path)
        if "lora_A" in dict(layer.named_children()) and name in layer.lora_A:
            a, b = layer.lora_A[name].weight.detach().clone(), layer.lora_B[name].weight.detach().clone()
            modules[path] = Factors(a=a, b=b, scale=layer.scaling[name])
    return Adapter(modules=modules)


def merged_by_peft(of: PeftModel, names: Sequence[str], weights: Sequence[float], kind: str, **more: object) -> dict[str, Tensor]:
    """What PEFT makes of them."""
    of.add_weighted_adapter(list(names), list(weights), "merged", combination_type=kind, **more)
    return {path: one.materialise(torch.float64) for path, one in read(of, "merged").modules.items()}


def agree(of: PeftModel, rule: Rule, weights: Sequence[float], kind: str, **more: object) -> None:
    """Every entry of every update."""
    names = list(of.peft_config)
    ours = merge([read(of, name) for name in names], rule)
    theirs = merged_by_peft(of, names, weights, kind, **more)
    assert ours.modules.keys() == theirs.keys()
    for path, update in theirs.items():
        assert float(update.norm()) > 0.1
        torch.testing.assert_close(ours.modules[path].materialise(torch.float64), update, rtol=1e-6, atol=1e-6)


EVERYWHERE = [list(WIDTHS)] * 3
WEIGHTS = (0.5, -0.3, 0.8)
# Scales of PEFT are made float32 for its weights: what is left of 1e-7 is theirs.
UNEQUAL = [
    (Concatenation(weights=WEIGHTS), "cat", {}),
    (SVD(weights=WEIGHTS, rank=5), "svd", {"svd_rank": 5}),
    (TIES(weights=WEIGHTS, rank=5, density=0.4), "ties_svd", {"svd_rank": 5, "density": 0.4}),
    (
        TIES(weights=WEIGHTS, rank=5, density=0.4, majority="frequency"),
        "ties_svd",
        {"svd_rank": 5, "density": 0.4, "majority_sign_method": "frequency"},
    ),
    (Magnitude(weights=WEIGHTS, rank=5, density=0.4), "magnitude_prune_svd", {"svd_rank": 5, "density": 0.4}),
]
EQUAL = [
    (Linear(weights=WEIGHTS), "linear", {}),
    (TIES(weights=WEIGHTS, density=0.4, on="factors"), "ties", {"density": 0.4}),
    (
        TIES(weights=WEIGHTS, density=0.4, on="factors", majority="frequency"),
        "ties",
        {"density": 0.4, "majority_sign_method": "frequency"},
    ),
    (Magnitude(weights=WEIGHTS, density=0.4, on="factors"), "magnitude_prune", {"density": 0.4}),
]


@pytest.mark.parametrize(("rule", "kind", "more"), [*UNEQUAL, *EQUAL])
def test_equal_ranks(rule: Rule, kind: str, more: dict[str, object]) -> None:
    agree(model((4, 4, 4), EVERYWHERE), rule, WEIGHTS, kind, **more)


@pytest.mark.parametrize(("rule", "kind", "more"), UNEQUAL)
def test_different_ranks_and_modules(rule: Rule, kind: str, more: dict[str, object]) -> None:
    agree(model((2, 4, 3), [["one"], ["one", "two"], ["two"]]), rule, WEIGHTS, kind, **more)


@pytest.mark.parametrize(("rule", "kind", "more"), EQUAL)
def test_different_modules_on_factors(rule: Rule, kind: str, more: dict[str, object]) -> None:
    agree(model((4, 4, 4), [["one"], ["one", "two"], ["two"]]), rule, WEIGHTS, kind, **more)


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        (DARE(weights=WEIGHTS, rank=5, density=0.6, seed=7), "dare_linear_svd"),
        (DARE(weights=WEIGHTS, rank=5, density=0.6, seed=7, majority="total"), "dare_ties_svd"),
        (DARE(weights=WEIGHTS, density=0.6, seed=7, on="factors"), "dare_linear"),
        (DARE(weights=WEIGHTS, density=0.6, seed=7, on="factors", majority="total"), "dare_ties"),
    ],
)
def test_dropping_the_same_entries(rule: Rule, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # PEFT draws from the global generator, of which making the new adapter takes numbers too.
    generator, drawn = torch.Generator().manual_seed(7), torch.bernoulli
    monkeypatch.setattr(torch, "bernoulli", lambda chances, **given: drawn(chances, **{"generator": generator, **given}))
    more = {"svd_rank": 5} if kind.endswith("svd") else {}
    agree(model((4, 4, 4), EVERYWHERE), rule, WEIGHTS, kind, density=0.6, **more)
