"""Gradients are those of the dense model: autograd through a copy whose weights are W + the update, also where a module is called often."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from paring.attach.find import slots
from paring.parts.parameterise.gated import Gated
from paring.parts.update.revive import Always
from tests.contract.cases import Case


def _dense_loss(case: Case, model: PeftModel) -> Tensor:
    """The loss of the base model itself, each adapted weight replaced by W + update as a function of the slot's parameters."""
    base = case.base()
    weights = dict(base.named_parameters())
    weights |= {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".modules_to_save.default." in name
    }
    for path, slot in slots(model).items():
        module = base.get_submodule(path)
        width, height = slot.delta().in_features, slot.delta().out_features
        # The update of each unit vector is a row of the transposed update, in the slot's own computation.
        update = slot(torch.zeros(width, height), torch.eye(width))
        weights[f"{path}.weight"] = weights[f"{path}.weight"].detach() + (update if isinstance(module, Conv1D) else update.T)
    loss = functional_call(base, weights, kwargs=case.kind.batch()).loss
    assert isinstance(loss, Tensor)
    return loss


def test_gradients_are_those_of_the_dense_model(case: Case) -> None:
    model = case.roughened()
    for slot in slots(model).values():
        if isinstance(slot, Gated):
            # A dead gate that is not asked has no gradient, where the dense model's has one.
            slot.revive = Always()
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss = model(**case.kind.batch()).loss
    ours = torch.autograd.grad(loss, list(trainable.values()))
    expected_loss = _dense_loss(case, model)
    expected = torch.autograd.grad(expected_loss, list(trainable.values()))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for name, got, wanted in zip(trainable, ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=5e-5 * largest, msg=lambda text, name=name: f"{name}: {text}")
