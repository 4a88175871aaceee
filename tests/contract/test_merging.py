"""A merged model computes what the unmerged one does, and unmerging restores the base bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import paring
from paring.api import fuse
from paring.attach.layer import ParingLinear
from paring.core.errors import TargetError
from tests.contract.cases import Case, assert_close, logits, names_that_differ, roughen


def _base_weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.clone() for name, value in model.state_dict().items() if "paring_slot." not in name and ".modules_to_save." not in name
    }


def test_merged_equals_unmerged(case: Case) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    before, weights = logits(model, inputs), _base_weights(model)
    model.merge_adapter()
    assert names_that_differ(_base_weights(model), weights) != []
    merged = logits(model, inputs)
    assert_close(merged, before)
    model.unmerge_adapter()
    assert names_that_differ(_base_weights(model), weights) == []
    assert torch.equal(logits(model, inputs), before)


def test_merge_and_unload_leaves_a_plain_model(case: Case) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    before = logits(model, inputs)
    plain = model.merge_and_unload(safe_merge=True)
    assert type(plain) is type(case.base())
    assert not any(isinstance(module, ParingLinear) for module in plain.modules())
    assert plain.state_dict().keys() == case.base().state_dict().keys()
    assert_close(logits(plain, inputs), before)


def test_fusing_a_snapshot_equals_the_live_model(case: Case) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    assert_close(logits(fuse(case.base(), paring.snapshot(model)), inputs), logits(model, inputs))


def test_two_adapters_merge_as_their_sum(case: Case) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    model.add_adapter("second", case.config(seed=8))
    roughen(model, torch.Generator().manual_seed(2), "second", heads=False)
    # Heads cannot be summed, so the first adapter keeps the say over them.
    for layer in (module for module in model.modules() if isinstance(module, ParingLinear)):
        layer.set_adapter(["default", "second"])
    before, weights = logits(model, inputs), _base_weights(model)
    model.merge_adapter(["default", "second"])
    assert_close(logits(model, inputs), before)
    model.unmerge_adapter()
    assert names_that_differ(_base_weights(model), weights) == []


def test_disabling_a_merged_adapter_restores_the_base(case: Case) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), logits(case.base(), inputs))


def test_a_safe_merge_refuses_what_is_not_finite(case: Case) -> None:
    model = case.roughened()
    weights = _base_weights(model)
    slot = next(module for module in model.modules() if isinstance(module, ParingLinear)).paring_slot["default"]
    with torch.no_grad():
        for _, parameter, _ in slot.roles():
            if parameter.is_floating_point():
                parameter.fill_(float("inf"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        model.merge_adapter(safe_merge=True)
    assert names_that_differ(_base_weights(model), weights) == []


def test_a_tied_head_can_be_adapted_but_not_merged(decoder: Case) -> None:
    model = decoder.adapted(target_modules=["lm_head"])
    roughen(model, torch.Generator().manual_seed(1))
    inputs = decoder.kind.inputs()
    base = decoder.base()
    assert base.lm_head.weight is base.get_input_embeddings().weight
    assert (logits(model, inputs) - logits(base, inputs)).abs().max() > 1e-3
    weights = _base_weights(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(TargetError, match=r"Cannot merge: 'lm_head'.*tie_word_embeddings=False"):
            merge()
    assert names_that_differ(_base_weights(model), weights) == []
    with pytest.raises(TargetError, match="shares its weight"):
        fuse(decoder.base(), paring.snapshot(model))
    model.train()
    model(**decoder.kind.batch()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
