"""Accumulation, clipping, checkpointing, autocast: every way of training trains, takes one proximal step a step, and keeps zeros exact."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
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
    "accumulation": Way(accumulate=3),
    "clipping": Way(clip=1e-3),
    "checkpointing": Way(checkpointing=False),
    "reentrant-checkpointing": Way(checkpointing=True),
    "bf16-autocast": Way(autocast=True),
    "sgd": Way(optimizer=torch.optim.SGD),
    "all-at-once": Way(accumulate=2, clip=0.1, checkpointing=False, autocast=True),
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


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains(case: Case, way: str) -> None:
    model = case.roughened()
    before = {(path, name): parameter.detach().clone() for path, slot in slots(model).items() for name, parameter, _ in slot.roles()}
    for _ in _train(case, model, WAYS[way]):
        pass
    moved: set[str] = set()
    for path, slot in slots(model).items():
        for name, parameter, role in slot.roles():
            assert torch.isfinite(parameter).all()
            changed = not torch.equal(parameter, before[path, name])
            assert not (changed and role is Role.FROZEN), f"{path}: {name} is frozen and moved"
            moved |= {name} if changed else set()
    assert moved == {name for slot in slots(model).values() for name, _, role in slot.roles() if role is not Role.FROZEN}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_takes_one_proximal_step_and_keeps_zeros(case: Case, way: str) -> None:
    model = case.roughened()
    gates = gated_slots(model)
    with torch.no_grad():
        for slot in gates.values():
            # Two ranks without any gradient: what happens to their gates is the proximal step alone.
            slot.A[:2] = slot.B[:, :2] = 0.0
            slot.gate[0], slot.gate[1] = 0.0, 0.5
    expected = {path: torch.tensor([0.0, 0.5]) for path in gates}
    for done, optimizer in enumerate(_train(case, model, WAYS[way]), start=1):
        rate = next(group["lr"] for group in optimizer.param_groups if group["role"] == "gate")
        for path, slot in gates.items():
            expected[path] = slot.update.apply(expected[path], slot.update.threshold(rate, slot.penalty))
            assert int(slot.steps) == done, f"{path}: one proximal step for each step of the optimizer"
            assert torch.equal(slot.gate[:2], expected[path]), path
            assert not slot.pending
    assert all(slot.gate[0] == 0 and 0 < slot.gate[1] < 0.5 for slot in gates.values())


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
