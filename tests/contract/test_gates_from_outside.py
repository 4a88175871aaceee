"""A gate that somebody else writes is honoured: by the forward, the ranks, the export and the next step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import paring
from paring import train
from paring.parts.parameterise.gated import Gated
from tests.contract.cases import Case, assert_close, gated_slots, logits

Write = Callable[[nn.Module, dict[str, Gated], dict[str, Tensor]], None]


@torch.no_grad()
def _in_place(model: nn.Module, gates: dict[str, Gated], wanted: dict[str, Tensor]) -> None:
    for path, slot in gates.items():
        slot.gate.copy_(wanted[path])


def _data(model: nn.Module, gates: dict[str, Gated], wanted: dict[str, Tensor]) -> None:
    for path, slot in gates.items():
        slot.gate.data = wanted[path].clone()


def _state_dict(model: nn.Module, gates: dict[str, Gated], wanted: dict[str, Tensor]) -> None:
    state = {f"base_model.model.{path}.paring_slot.default.gate": value for path, value in wanted.items()}
    assert model.load_state_dict(state, strict=False).unexpected_keys == []


def _new_parameter(model: nn.Module, gates: dict[str, Gated], wanted: dict[str, Tensor]) -> None:
    for path, slot in gates.items():
        slot.gate = nn.Parameter(wanted[path].clone())


WRITERS: dict[str, Write] = {"in-place": _in_place, "data": _data, "state-dict": _state_dict, "new-parameter": _new_parameter}


def _wanted(gates: dict[str, Gated]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(6)
    found = {}
    for index, (path, slot) in enumerate(gates.items()):
        value = 0.5 + torch.rand(slot.gate.shape, generator=generator)
        value[: 1 + index % (len(value) - 1)] = 0.0
        found[path] = value
    return found


@pytest.mark.parametrize("how", WRITERS)
def test_gates_written_from_outside_are_honoured(case: Case, how: str) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    gates = gated_slots(model)
    # After a step, so that whatever might be remembered of the gates is in place; the optimizer is there before the write, too.
    optimizer = train.create_optimizer(model, lr=1e-2)
    model.train()
    model(**case.kind.batch()).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    wanted = _wanted(gates)
    WRITERS[how](model, gates, wanted)
    expected = {path: int(value.count_nonzero()) for path, value in wanted.items()}
    assert paring.ranks(model) == expected
    snapshot = paring.snapshot(model)
    assert all(torch.equal(factors.gate, wanted[path]) for path, factors in snapshot.modules.items() if factors.gate is not None)
    # The forward uses them, in training as in evaluation: it is that of a model whose gates were so from the start.
    twin = case.roughened()
    twin.load_state_dict(model.state_dict())
    for training in (True, False):
        for one in (model, twin):
            one.train(training)
        torch.manual_seed(0)
        got = logits(model, inputs)
        torch.manual_seed(0)
        assert_close(got, logits(twin, inputs), share=1e-6)
    # And so does the next step: the proximal step falls on what was written.
    if how == "new-parameter":
        optimizer = train.create_optimizer(model, lr=1e-2)
    done = {path: int(slot.steps) for path, slot in gates.items()}
    model.train()
    model(**case.kind.batch()).loss.backward()
    with torch.no_grad():
        for slot in gates.values():
            assert slot.gate.grad is not None
            slot.gate.grad.zero_()
    for state in optimizer.state.values():
        state["exp_avg"].zero_()
    rate = next(group["lr"] for group in optimizer.param_groups if group["role"] == "gate")
    stepped = {path: slot.update.apply(wanted[path], slot.update.threshold(rate, slot.penalty)) for path, slot in gates.items()}
    optimizer.step()
    for path, slot in gates.items():
        assert int(slot.steps) == done[path] + 1
        assert torch.equal(slot.gate, stepped[path]), path


def test_a_module_emptied_from_outside_leaves_the_base(case: Case) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    with torch.no_grad():
        for slot in gated_slots(model).values():
            slot.gate.zero_()
    assert set(paring.ranks(model).values()) == {0}
    untouched = case.roughened()
    with torch.no_grad():
        for name, parameter in untouched.named_parameters():
            if "paring_slot" in name:
                parameter.zero_()
    assert torch.equal(logits(model, inputs), logits(untouched, inputs))
