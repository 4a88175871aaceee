"""LoRA-FA: A stays, and what it would have needed is not kept."""

from __future__ import annotations

import torch

from paring.attach.find import slots
from paring.methods.lora import LoRA
from paring.methods.lora_fa import LoRAFA
from tests.methods.small import adapted, batch, kept, run


def test_a_never_moves() -> None:
    model, lora = adapted(LoRAFA(rank=2)), adapted(LoRA(rank=2))
    start = {path: slot.A.detach().clone() for path, slot in slots(model).items()}
    for one in (model, lora):
        # Off zero, so that A would have a gradient.
        for slot in slots(one).values():
            with torch.no_grad():
                slot.B.fill_(0.1)
        one(**batch())["loss"].backward()
    for path, slot in slots(model).items():
        assert slot.A.grad is None
        assert slots(lora)[path].A.grad.abs().max() > 0
        torch.testing.assert_close(slot.B.grad, slots(lora)[path].B.grad)
    run(model, 4)
    assert all(torch.equal(slot.A, start[path]) for path, slot in slots(model).items())


def test_memory() -> None:
    # A x, 2 entries a row; LoRA keeps x as well, 64 a row.
    assert kept(LoRAFA(rank=2)) <= 100 * 2 + 2 * (64 + 48)
    assert kept(LoRA(rank=2)) >= 100 * 64
