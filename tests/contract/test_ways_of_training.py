"""Accumulation, clipping, checkpointing, autocast: every way of training trains, takes one proximal step a step, and keeps zeros exact."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from paring import train
from paring.attach.find import slots
from paring.parts.parameterise.base import Role
from paring.parts.parameterise.gated import Gated
from paring.parts.parameterise.marks import UNIT
from tests.contract.cases import Case, gated_slots

STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of training, as a user's loop would have it."""

    accumulate: int = 1
    clip: float | None = None
    checkpointing: bool | None = None
    autocast: bool = False
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW


WAYS = {
    "plain": Way(),
    "accumulation-and-clipping": Way(accumulate=3, clip=1e-3),
    "checkpointing": Way(checkpointing=False),
    "reentrant-checkpointing": Way(checkpointing=True),
    "bf16-autocast": Way(autocast=True),
    "sgd": Way(optimizer=torch.optim.SGD),
}


def _checkpoint(case: Case, model: PeftModel, reentrant: bool) -> None:
    """Recompute activations in the backward pass: by the model's own switch, or, where it has none, around one of its modules."""
    if case.kind.vocabulary:
        # The reentrant kind wants an input with a gradient, and the embedding is frozen.
        model.enable_input_require_grads()
    if not case.kind.checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        return
    inner = model.base_model.model.get_submodule(case.kind.checkpointed)
    forward = inner.forward

    def recomputed(*args: Tensor, **kwargs: Any) -> Any:
        return checkpoint(functools.partial(forward, **kwargs), *args, use_reentrant=reentrant)

    inner.forward = recomputed


def _train(case: Case, model: PeftModel, way: Way) -> Iterator[torch.optim.Optimizer]:
    """Train, and yield the optimizer after each step."""
    optimizer = train.create_optimizer(model, way.optimizer, lr=1e-2)
    if way.checkpointing is not None:
        _checkpoint(case, model, way.checkpointing)
    model.train()
    for step in range(STEPS):
        for part in range(way.accumulate):
            torch.manual_seed(10 * step + part)
            with torch.autocast("cpu", torch.bfloat16) if way.autocast else contextlib.nullcontext():
                loss = model(**case.kind.batch(rows=2, seed=10 * step + part)).loss
            assert torch.isfinite(loss)
            (loss / way.accumulate).backward()
        if way.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), way.clip)
        optimizer.step()
        optimizer.zero_grad()
        yield optimizer


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A gate after a step: its rate and that of B, its first two entries, the count of its proximal steps, and whether one is due."""

    rate: float
    main: float
    gate: Tensor
    steps: int
    pending: bool


Parameters = Mapping[tuple[str, str], Tensor]


def _parameters(model: PeftModel) -> Parameters:
    return {(path, name): parameter.detach().clone() for path, slot in slots(model).items() for name, parameter, _ in slot.roles()}


@functools.cache
def _trained(case: Case, way: str) -> tuple[Parameters, PeftModel, list[dict[str, Seen]]]:
    """The parameters before, the model after, and every gate after each step. Two ranks of each module have no gradient."""
    model = case.roughened()
    gates = {path: slot for path, slot in slots(model).items() if isinstance(slot, Gated)}
    with torch.no_grad():
        for slot in gates.values():
            # What happens to their gates is the proximal step alone.
            slot.A[:2] = slot.B[:, :2] = 0.0
            slot.gate[0], slot.gate[1] = 0.0, 0.5
    before, seen = _parameters(model), []
    for optimizer in _train(case, model, WAYS[way]):
        rate = next((group["lr"] for group in optimizer.param_groups if group["role"] == "gate"), 0.0)
        main = next(group["lr"] for group in optimizer.param_groups if group["role"] == "factor")
        seen.append(
            {
                path: Seen(rate=rate, main=main, gate=slot.gate.detach()[:2].clone(), steps=int(slot.steps), pending=slot.pending)
                for path, slot in gates.items()
            }
        )
    return before, model, seen


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains(case: Case, way: str) -> None:
    before, model, _ = _trained(case, way)
    after = _parameters(model)
    assert all(torch.isfinite(parameter).all() for parameter in after.values())
    roles = {(path, name): role for path, slot in slots(model).items() for name, _, role in slot.roles()}
    moved = {key for key, parameter in after.items() if not torch.equal(parameter, before[key])}
    assert not any(roles[key] is Role.FROZEN for key in moved)
    assert {name for _, name in moved} == {name for (_, name), role in roles.items() if role is not Role.FROZEN}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_takes_one_proximal_step_and_keeps_zeros(case: Case, way: str) -> None:
    _, model, seen = _trained(case, way)
    for path, slot in gated_slots(model).items():
        expected, travel = torch.tensor([0.0, 0.5]), 0
        for done, now in enumerate((step[path] for step in seen), start=1):
            expected = slot.update.apply(expected, slot.update.threshold(now.rate, slot.update.weight_after(travel * UNIT)))
            travel += round(now.main / UNIT)
            assert torch.equal(now.gate, expected), path
            assert now.steps == done, f"{path}: one proximal step for each step of the optimizer"
            assert not now.pending
        assert expected[0] == 0
        assert 0 < expected[1] < 0.5


@pytest.mark.parametrize("reentrant", [False, True], ids=["checkpointing", "reentrant-checkpointing"])
def test_checkpointing_gives_the_same_gradients(case: Case, reentrant: bool) -> None:
    found = []
    for recompute in (False, True):
        model = case.roughened()
        if recompute:
            _checkpoint(case, model, reentrant)
        model.train()
        torch.manual_seed(0)
        model(**case.kind.batch(rows=2)).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None})
    assert found[0].keys() == found[1].keys()
    # The reentrant kind adds the gradients of a sum in another order.
    largest = max(float(gradient.abs().max()) for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(
            found[1][name], gradient, rtol=0, atol=1e-6 * largest if reentrant else 0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_gate_without_gradient_dies_after_the_steps_that_the_threshold_asks_for(plain: Case) -> None:
    model = plain.roughened()
    gates = gated_slots(model)
    # A penalty that stays, so that all steps are of one length.
    for slot in gates.values():
        slot.fixed_penalty = slot.update.weight
    threshold = float(next(iter(gates.values())).update.threshold(1e-2, 1.0))
    assert threshold > 0
    optimizer = train.create_optimizer(model, lr=1e-2)
    rate = next(group["lr"] for group in optimizer.param_groups if group["role"] == "gate")
    t = {path: float(slot.update.threshold(rate, slot.penalty)) for path, slot in gates.items()}
    with torch.no_grad():
        for path, slot in gates.items():
            slot.A[0] = slot.B[:, 0] = 0.0
            slot.gate[0] = -2.5 * t[path]
    model.train()
    for step in range(3):
        assert all(slot.gate[0] != 0 for slot in gates.values())
        model(**plain.kind.batch(seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(slot.gate[0] == 0 for slot in gates.values())


def test_a_step_without_a_forward_shrinks_nothing(plain: Case) -> None:
    model = plain.roughened()
    gates = gated_slots(model)
    first, second = (train.create_optimizer(model, torch.optim.SGD, lr=1e-3) for _ in range(2))
    model.train()
    model(**plain.kind.batch()).loss.backward()
    for optimizer in (first, second, first):
        # Gradients are left where they are; only the first step after a forward is followed by a proximal step.
        optimizer.step()
        assert {int(slot.steps) for slot in gates.values()} == {1}
    model.eval()
    model(**plain.kind.inputs())
    first.step()
    assert {int(slot.steps) for slot in gates.values()} == {1}, "a forward in evaluation asks for no step"
