"""Dropout on a slot's input is found where those look for it who turn dropout off: in an ``nn.Dropout``."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from paring import method as methods
from tests.contract.cases import Case, example, roughen
from tests.contract.models import KINDS
from tests.contract.training import with_dropout

CASES = [
    Case(method_name=name, kind=KINDS["twin"]) for name in methods.names() if "dropout" in {item.name for item in fields(example(name))}
]


def _output(case: Case, *, dropout: bool, off: bool) -> Tensor:
    """What the model computes while it is trained."""
    model = case.adapted(method=with_dropout(case.method) if dropout else case.method)
    roughen(model, torch.Generator().manual_seed(1))
    model.train()
    if off:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0
    torch.manual_seed(0)
    found: Tensor = model(**case.kind.inputs()).logits
    return found.detach()


@pytest.mark.parametrize("dropping", CASES, ids=[case.method_name for case in CASES])
def test_dropout_can_be_turned_off_from_outside(dropping: Case) -> None:
    without = _output(dropping, dropout=False, off=True)
    assert torch.equal(_output(dropping, dropout=True, off=True), without)
    assert not torch.equal(_output(dropping, dropout=True, off=False), without)
