"""What cannot be adapted is refused by name, before anything has changed."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

import paring
from paring.core.errors import SettingError, TargetError
from tests.contract.cases import Case, logits, names_that_differ


class Mixed(nn.Module):
    """Modules that are not linear, beside one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 12)
        self.line = nn.Conv1d(12, 12, 1)
        self.image = nn.Conv2d(12, 12, 1)
        self.pair = nn.Bilinear(12, 12, 12)
        self.norm = nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.fc = nn.Linear(12, 12)

    def forward(self, ids: Tensor) -> Tensor:
        """Uses some of them."""
        x = self.tokens(ids)
        return self.fc(self.attention(x, x, x, need_weights=False)[0])


def _untouched(model: nn.Module, state: dict[str, Tensor], modules: list[tuple[str, type]]) -> None:
    assert names_that_differ(dict(model.state_dict()), state) == []
    assert [(name, type(module)) for name, module in model.named_modules()] == modules
    assert all(parameter.requires_grad for parameter in model.parameters())


def _seen(model: nn.Module) -> tuple[dict[str, Tensor], list[tuple[str, type]]]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return state, [(name, type(module)) for name, module in model.named_modules()]


REFUSED = {
    "tokens": "an embedding",
    "line": "a convolution",
    "image": "a convolution",
    "pair": "Bilinear",
    "norm": "LayerNorm",
    "attention": "packed attention",
    "attention.out_proj": "MultiheadAttention, which reads its weight and never calls it",
}


@pytest.mark.parametrize("target", REFUSED)
def test_what_is_not_linear_is_refused_by_name(plain: Case, target: str) -> None:
    model = Mixed()
    seen = _seen(model)
    with pytest.raises(TargetError, match=rf"'{target}'.*{REFUSED[target]}"):
        paring.adapt(model, plain.method, target_modules=["fc", target], seed=0)
    _untouched(model, *seen)


def test_the_linear_module_beside_them_is_adapted(plain: Case) -> None:
    # The control: without the others, the same model is fine.
    model = paring.adapt(Mixed(), plain.method, target_modules=["fc"], seed=0).eval()
    assert list(paring.ranks(model)) == ["fc"]
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 12)


def test_unknown_targets_show_near_names(case: Case) -> None:
    model = case.base()
    seen = _seen(model)
    known = list(paring.ranks(case.adapted()))[-1].rpartition(".")[2]
    wrong = f"{known}x"
    with pytest.raises(TargetError, match=rf"'{wrong}', which matches no module\. Did you mean .*'{known}'"):
        paring.adapt(model, case.method, target_modules=[known, wrong], seed=0)
    _untouched(model, *seen)


def test_a_pattern_that_matches_nothing_is_refused(case: Case) -> None:
    model = case.base()
    seen = _seen(model)
    with pytest.raises(TargetError, match="No module matches.*Linear modules here end in"):
        paring.adapt(model, case.method, target_modules=r"nothing\..*", seed=0)
    _untouched(model, *seen)


def test_a_rank_above_the_layer_names_it_and_leaves_the_model_alone(case: Case) -> None:
    assert "rank" in {item.name for item in fields(case.method)}, "this method has no rank"
    model, inputs = case.base(), case.kind.inputs()
    before, seen = logits(model, inputs), _seen(model)
    paths = list(paring.ranks(case.adapted()))
    with pytest.raises(SettingError, match=r"rank=100000 is above what '([\w.]+)' can use") as caught:
        paring.adapt(model, replace(case.method, rank=100_000), seed=0, **case.settings)  # type: ignore[call-arg]
    assert any(repr(path) in str(caught.value) for path in paths)
    _untouched(model, *seen)
    assert torch.equal(logits(model, inputs), before)
    # And it can be adapted after all.
    assert paring.ranks(case.adapted(base=model)) == paring.ranks(case.adapted())


def test_a_refused_second_adapter_leaves_the_first_alone(case: Case) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    before, state = logits(model, inputs), {name: value.clone() for name, value in model.state_dict().items()}
    config = case.config()
    config.target_modules = {"nowhere"}
    with pytest.raises(TargetError, match="nowhere"):
        model.add_adapter("second", config)
    assert names_that_differ(dict(model.state_dict()), state) == []
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model, inputs), before)


@pytest.mark.parametrize("rank", [0, -1, 1.5])
def test_a_rank_that_is_no_rank_is_refused(plain: Case, rank: float, unchecked: None) -> None:
    with pytest.raises(SettingError, match="rank="):
        replace(plain.method, rank=rank)  # type: ignore[call-arg]
