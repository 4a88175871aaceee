"""A disabled adapter leaves the untouched base model, bit for bit."""

from __future__ import annotations

import torch

from tests.contract.cases import Case, logits


def test_disabled_adapter_is_the_base(case: Case) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    before = logits(model, inputs)
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), logits(case.base(), inputs))
    assert torch.equal(logits(model, inputs), before)


def test_a_disabled_adapter_leaves_no_gradient_and_no_mark(case: Case) -> None:
    model = case.roughened().train()
    with model.disable_adapter():
        loss = model(**case.kind.batch()).loss
    assert not loss.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_unloading_gives_the_base_back(case: Case) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    plain = model.unload()
    expected = case.base()
    state = plain.state_dict()
    heads = tuple(f"{name}." for name in (*case.kind.heads, "classifier"))
    assert state.keys() == expected.state_dict().keys()
    # Trained heads stay, as PEFT has it; everything else is as it was.
    assert [
        name for name, value in expected.state_dict().items() if not name.startswith(heads) and not torch.equal(state[name], value)
    ] == []
    assert logits(plain, inputs).shape == logits(expected, inputs).shape
