"""What the rest of a run can do to the gates, on numbers that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, ReduceLROnPlateau, SequentialLR

from paring.attach.find import slots
from paring.methods.sora import SoRA
from paring.train import create_optimizer
from paring.train.look import gated, trained
from paring.train.travel import outlook, rates_left, warning
from tests.releases import rates_as_tensors

Make = Callable[..., Any]
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: LambdaLR(o, lambda index: 1 - index / 20),
    "cosine": lambda o: CosineAnnealingLR(o, T_max=20),
    "sequence": lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=5), LambdaLR(o, lambda index: 1 - index / 20)], milestones=[5]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, pytest.param(True, marks=rates_as_tensors)])
def test_rates_left_are_those_of_the_real_run_and_change_nothing(name: str, tensor: bool) -> None:
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    lr = (lambda value: torch.tensor(value)) if tensor else float
    optimizer = SGD([{"params": [parameters[0]], "lr": lr(0.5)}, {"params": [parameters[1]], "lr": lr(2.0)}], lr=lr(1.0))
    scheduler = SCHEDULERS[name](optimizer)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    foreseen = rates_left(scheduler, optimizer, 10)
    real: list[list[float]] = [[], []]
    for _ in range(10):
        for rates, group in zip(real, optimizer.param_groups, strict=True):
            rates.append(float(group["lr"]))
        optimizer.step()
        scheduler.step()
    assert foreseen is not None
    assert foreseen == [pytest.approx(rates) for rates in real]


def test_rates_that_follow_a_metric_are_unknown() -> None:
    optimizer = SGD([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    assert rates_left(ReduceLROnPlateau(optimizer), optimizer, 10) is None
    other = SGD([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    assert rates_left(LambdaLR(other, lambda _: 1.0), optimizer, 10) is None
    assert rates_left(None, optimizer, 3) == [[0.5] * 3]


def view(adapted: Make, gates: list[float], *, steps: int, scheduler: Any = None, **settings: Any) -> Any:
    model = adapted(SoRA(rank=4, gate_rate=0.5, **{"fade": None, **settings}))
    with torch.no_grad():
        for slot in slots(model).values():
            slot.gate.copy_(torch.tensor(gates))
    optimizer = create_optimizer(model, SGD, lr=0.25)
    return outlook(gated(trained(model)), optimizer, None if scheduler is None else scheduler(optimizer), steps)


def test_reach_counts_the_gates_within_the_travel(adapted: Make) -> None:
    # Ten steps at gate rate 1/2 and penalty 1/4 travel 10/8.
    assert view(adapted, [1.25, -1.25, 1.3, 0.0], steps=10, penalty=0.25).reach == 0.75
    # Linear to zero over 10 steps: (1 + 0.9 + ... + 0.1) / 8 = 5.5 / 8.
    linear = lambda o: LambdaLR(o, lambda index: 1 - index / 10)  # noqa: E731
    assert view(adapted, [0.68, -0.69, 1.3, 2.0], steps=10, penalty=0.25, scheduler=linear).reach == 0.25
    # A constant threshold travels whatever the rate does.
    assert view(adapted, [2.5, -2.6, 1.3, 3.0], steps=10, penalty=0.25, scheduler=linear, step_size="constant").reach == 0.5
    # A weight that halves after 2 steps, when B has travelled 2/4: 1/8 x (1 + 2/3 + 1/2) = 13/48 in three steps.
    assert view(adapted, [0.27, -0.28, 1.3, 2.0], steps=3, penalty=0.25, fade=0.5).reach == 0.25
    # Linear to zero over 4 steps, before which B has travelled 0, 1/4, 7/16, 9/16:
    # 1/8 x (1 + 3/4 x 2/3 + 1/2 x 8/15 + 1/4 x 8/17) = 0.2355.
    short = lambda o: LambdaLR(o, lambda index: 1 - index / 4)  # noqa: E731
    assert view(adapted, [0.235, -0.236, 1.3, 2.0], steps=4, penalty=0.25, fade=0.5, scheduler=short).reach == 0.25


def test_a_b_that_another_optimizer_holds_is_taken_to_stay(adapted: Make) -> None:
    model = adapted(SoRA(rank=4, gate_rate=0.5, penalty=0.25, fade=0.5))
    found = gated(trained(model))
    with torch.no_grad():
        for slot in found.values():
            slot.gate.fill_(0.3)
    view = outlook(found, SGD([slot.gate for slot in found.values()], lr=0.5), None, 3)
    assert view is not None
    assert view.reach == 1.0


def test_a_penalty_that_is_fixed_and_one_that_fades_from_the_same_value_travel_differently(adapted: Make) -> None:
    model = adapted(SoRA(rank=4, gate_rate=0.5, penalty=0.25, fade=0.5))
    found = gated(trained(model))
    fixed, fading = found.values()
    fixed.fixed_penalty = fading.penalty
    with torch.no_grad():
        for slot in found.values():
            slot.gate.fill_(0.3)
    # Three steps: 3/8 where it stays, 13/48 where it halves after two.
    view = outlook(found, create_optimizer(model, SGD, lr=0.25), None, 3)
    assert view is not None
    assert view.reach == 0.5


def test_doomed_only_if_full_speed_cannot_escape(adapted: Make) -> None:
    # Net travel a step: 1/2 x (3 - 1) = 1.
    assert view(adapted, [3.0, -3.0, 1.0, 0.0], steps=3, penalty=3.0).doomed
    assert not view(adapted, [3.1, -3.0, 1.0, 0.0], steps=3, penalty=3.0).doomed
    assert not view(adapted, [0.1, 0.1, 0.1, 0.1], steps=1000, penalty=1.0).doomed
    # Where the rates to come are unknown, nothing is doomed.
    assert not view(adapted, [3.0, -3.0, 1.0, 0.0], steps=3, penalty=3.0, scheduler=ReduceLROnPlateau).doomed


def test_warning_says_what_to_change(adapted: Make) -> None:
    assert "gate_rate" in str(warning(view(adapted, [2.0] * 4, steps=2, penalty=0.25), 2))
    assert "at zero already" in str(warning(view(adapted, [0.0] * 4, steps=9, penalty=0.5), 9))
    assert "Lower penalty" in str(warning(view(adapted, [1.0] * 4, steps=9, penalty=3.0), 9))
    assert warning(view(adapted, [0.1, 2.0, 2.0, 2.0], steps=2, penalty=0.25), 2) is None


def test_gates_in_no_optimizer_have_no_outlook(adapted: Make) -> None:
    model = adapted()
    assert outlook(gated(trained(model)), SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0), None, 3) is None
