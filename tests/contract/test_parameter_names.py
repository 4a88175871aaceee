"""Names in the state dict: `paring_slot.<adapter>.gate`, and the adapter's name in all that belongs to it."""

from __future__ import annotations

import torch

from tests.contract.cases import Case, adapted_paths, gated_slots


def test_every_slot_is_named_after_its_adapter(case: Case) -> None:
    model = case.adapted(adapter="mine")
    own = set(model.state_dict()) - {f"base_model.model.{name}" for name in case.base().state_dict()}
    expected = {f"base_model.model.{path}.paring_slot.mine." for path in adapted_paths(model)}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(".mine." in name for name in trainable)
    assert all("paring_" in name or ".modules_to_save." in name for name in trainable), "transformers' delete_adapter goes by this prefix"
    prefixes = {name[: name.index(".mine.") + len(".mine.")] for name in own if "paring_slot" in name}
    assert prefixes == expected


def test_gates_are_named_gate(case: Case) -> None:
    model = case.adapted(adapter="mine")
    named = dict(model.named_parameters())
    for path, slot in gated_slots(model, "mine").items():
        gate = named[f"base_model.model.{path}.paring_slot.mine.gate"]
        assert gate is slot.gate
        assert gate.shape == (slot.A.shape[0],)
        assert gate.dtype is torch.float32


def test_gates_stay_float32_whatever_the_model_is_cast_to(case: Case) -> None:
    model = case.roughened()
    before = {path: slot.gate.detach().clone() for path, slot in gated_slots(model).items()}
    for cast in (model.half, model.bfloat16, lambda: model.to(torch.bfloat16)):
        cast()
        for path, slot in gated_slots(model).items():
            assert slot.A.dtype in (torch.float16, torch.bfloat16)
            assert slot.gate.dtype is torch.float32
            assert torch.equal(slot.gate, before[path]), "digits were lost in the cast"
