"""Attaching an adapter changes no bit of the output."""

from __future__ import annotations

import torch

from tests.contract.cases import Case, logits, roughen


def test_output_unchanged_at_attach(case: Case) -> None:
    inputs = case.kind.inputs()
    before = logits(case.base(), inputs)
    assert torch.equal(logits(case.adapted(), inputs), before)


def test_training_output_unchanged_at_attach(case: Case) -> None:
    inputs = case.kind.inputs()
    base = case.base().train()
    torch.manual_seed(3)
    before = logits(base, inputs)
    adapted = case.adapted().train()
    torch.manual_seed(3)
    assert torch.equal(logits(adapted, inputs), before), "the base model's own dropout no longer draws what it drew"


def test_output_unchanged_when_a_second_adapter_is_attached(case: Case) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    before = logits(model, inputs)
    model.add_adapter("second", case.config(seed=8))
    assert torch.equal(logits(model, inputs), before)
    model.set_adapter("second")
    assert torch.equal(logits(model, inputs), logits(case.base(), inputs))


def test_roughened_adapters_have_an_effect(case: Case) -> None:
    # What the other tests lean on: with a roughened adapter, equal outputs are no accident.
    inputs = case.kind.inputs()
    model = case.adapted()
    roughen(model, torch.Generator().manual_seed(1), heads=False)
    assert (logits(model, inputs) - logits(case.base(), inputs)).abs().max() > 1e-3
