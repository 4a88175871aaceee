"""The proximal step: exactly once after every real optimizer step, whatever the loop looks like."""

from __future__ import annotations

import copy
import gc
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dadaptation
import prodigyopt
import pytest
import schedulefree
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.optim import SGD, Adam, AdamW, Optimizer
from transformers import Adafactor, TrainerCallback, TrainingArguments

from paring import step
from paring.attach.config import ParingConfig
from paring.attach.find import slots
from paring.core.errors import StepError
from paring.methods.sora import SoRA
from paring.parts.parameterise.gated import Gated
from paring.parts.parameterise.marks import PATIENCE, UNIT
from paring.parts.shape import Shape
from paring.parts.update.revive import Always, Never
from paring.train import ParingTrainer, recast
from tests.releases import needs_muon

# Powers of two throughout, so that float32 is exact: threshold = rate x penalty = 1/8.
RATE, PENALTY = 0.25, 0.5
GATES = [0.5, -0.25, 0.375, 1.0, -0.3125, 0.0]
LIVES = [4, 2, 3, 8, 3, 0]  # ceil(|g| / t)
SIZE = len(GATES)


class Tiny(nn.Module):
    """One frozen linear module with a slot beside it, and a trained head."""

    def __init__(self, *, calls: int = 1, gates: list[float] | None = None, **settings: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base = nn.Linear(SIZE, SIZE).requires_grad_(False)
        self.base.weight.normal_(generator=generator, std=0.5)
        self.base.bias.zero_()
        made = SoRA(rank=SIZE, **{"penalty": PENALTY, "fade": None, "revive": Always(), **settings}).slot(
            Shape(path="base", in_features=SIZE, out_features=SIZE), generator
        )
        assert isinstance(made, Gated)
        self.slot = made
        self.head = nn.Parameter(torch.ones(SIZE))
        self.calls = calls
        with torch.no_grad():
            self.slot.gate.copy_(torch.tensor(GATES if gates is None else gates))
            self.slot.B.copy_(torch.eye(SIZE))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.calls):
            x = self.slot(self.base(x), x)
        return x * self.head

    def still(self) -> Tensor:
        """A loss that gives the gate and the factors a gradient of exact zeros, and the head one of ones."""
        return (self(torch.ones(2, SIZE)) * 0.0).sum() + self.head.sum()

    def moving(self, x: Tensor | None = None) -> Tensor:
        """A loss that moves everything."""
        loss: Tensor = (self(torch.linspace(-1, 1, 4 * SIZE).view(4, SIZE) if x is None else x) - 1.0).square().mean()
        return loss


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    # Every Trainer collects garbage before it starts; what was imported is not garbage, and looking at it takes most of a test's time.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    step.install()
    yield
    step.install()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def after(steps: int) -> Tensor:
    """The gates after a number of steps without a gradient."""
    start = torch.tensor(GATES)
    return torch.sign(start) * (start.abs() - steps * RATE * PENALTY).clamp_min(0.0)


def check_lives(history: list[Tensor]) -> None:
    """Every gate is at its exact value after every step, so it reaches zero after exactly ceil(|g| / t) of them."""
    for index, gate in enumerate(history):
        assert torch.equal(gate, after(index + 1)), f"after step {index + 1}"
    lives = [0 if start == 0 else next(i + 1 for i, gate in enumerate(history) if gate[rank] == 0) for rank, start in enumerate(GATES)]
    assert lives == LIVES


# -- the exact number of steps -----------------------------------------------------------------------------------------------


def announcing(kind: type[Optimizer]) -> None:
    """Make sure that the step of a class calls the hooks: torch sees to that when the first optimizer of the class is made."""
    make: Any = kind
    make([nn.Parameter(torch.zeros(1))], lr=0.0)
    assert vars(kind)["step"].hooked


class Calling(SGD):
    """An optimizer whose step calls its parent's step, which announces itself too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        announcing(SGD)
        super().__init__(*args, **kwargs)

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Outer(Optimizer):
    """An optimizer around another one, over the same groups."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=RATE),
    "momentum": lambda p: SGD(p, lr=RATE, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=RATE),
    "adamw": lambda p: AdamW(p, lr=RATE, weight_decay=0.0),
    "foreach": lambda p: AdamW(p, lr=RATE, weight_decay=0.0, foreach=True),
    "fused": lambda p: AdamW(p, lr=RATE, weight_decay=0.0, fused=True),
    "tensor rate": lambda p: AdamW(p, lr=torch.tensor(RATE), weight_decay=0.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=RATE),
    "adafactor": lambda p: Adafactor(p, lr=RATE, relative_step=False, scale_parameter=False),
    "super": lambda p: Calling(p, lr=RATE),
    "nested": lambda p: Outer(Outer(SGD(p, lr=RATE))),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_gate_without_gradient_dies_after_exactly_so_many_steps(name: str, accumulate: int) -> None:
    model = Tiny()
    optimizer = OPTIMIZERS[name](trained(model))
    history = []
    for _ in range(max(LIVES) + 1):
        for _ in range(accumulate):
            model.still().backward()
        assert model.slot.gate.grad is not None
        optimizer.step()
        optimizer.zero_grad()
        history.append(model.slot.gate.detach().clone())
    check_lives(history)
    assert model.slot.steps == len(history)


@pytest.mark.parametrize("fused", [False, True])
def test_skipped_fp16_step_moves_nothing_and_counts_nothing(fused: bool) -> None:
    model = Tiny()
    optimizer = AdamW(trained(model), lr=RATE, weight_decay=0.0, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=10_000)
    history = []
    for index in range(max(LIVES) + 3):
        scaler.scale(model.still()).backward()
        overflow = index in (0, 5)
        if overflow:
            assert model.head.grad is not None
            model.head.grad[0] = torch.inf
        before = model.slot.gate.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if overflow:
            assert torch.equal(model.slot.gate, before)
        else:
            history.append(model.slot.gate.detach().clone())
    check_lives(history)
    assert model.slot.steps == len(history)


class OnDevice(Optimizer):
    """Decides on the device whether to step, from what torch.amp.GradScaler leaves in an attribute."""

    found_inf: Tensor

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.sub_(group["lr"] * parameter.grad * (1 - self.found_inf))


def test_found_inf_tensor_scales_the_threshold_away_without_a_read() -> None:
    model = Tiny()
    optimizer = OnDevice(trained(model), {"lr": torch.tensor(RATE)})
    for found, steps in ((1.0, 0), (0.0, 1), (1.0, 1), (0.0, 2)):
        model.still().backward()
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(model.slot.gate, after(steps))
        assert model.slot.steps == steps
        assert model.slot.travel * UNIT == pytest.approx(steps * RATE)
        assert not model.slot.pending


class Net(nn.Module):
    """A module that Trainer can train: gates without a gradient, a head with one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(SIZE, SIZE)
        self.out = nn.Linear(SIZE, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"loss": self.out(self.body(x) * 0.0).mean()}


class Watch(TrainerCallback):
    """Keeps the gates after every step, and makes the gradient overflow before some."""

    def __init__(self, slot: Gated, overflow: tuple[int, ...] = ()) -> None:
        self.slot, self.overflow, self.history = slot, overflow, [slot.gate.detach().clone()]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.overflow:
            next(p for n, p in model.named_parameters() if n.endswith("out.modules_to_save.default.bias")).grad.fill_(torch.inf)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.history.append(self.slot.gate.detach().clone())


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("overflow", [(), (0, 5)])
def test_gate_without_gradient_dies_after_exactly_so_many_trainer_steps(tmp_path: Path, accumulate: int, overflow: tuple[int, ...]) -> None:
    method = SoRA(rank=SIZE, penalty=PENALTY, fade=None, gate_rate=RATE)
    model = get_peft_model(Net(), ParingConfig(method=method, target_modules=["body"], modules_to_save=["out"]))
    slot = slots(model)["body"]
    assert isinstance(slot, Gated)
    slot.gate.data.copy_(torch.tensor(GATES))
    watch = Watch(slot, overflow)
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=max(LIVES) + 1 + len(overflow), per_device_train_batch_size=1, learning_rate=RATE / 4,
        lr_scheduler_type="constant", gradient_accumulation_steps=accumulate, report_to=[], save_strategy="no", disable_tqdm=True,
        weight_decay=0.1, use_cpu=True, max_grad_norm=0.0,
    )  # fmt: skip
    data = [{"x": torch.ones(SIZE), "labels": torch.zeros(())}] * 8
    trainer = ParingTrainer(model=model, args=args, train_dataset=data, callbacks=[watch])
    if overflow:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    for index in overflow:
        assert torch.equal(watch.history[index], watch.history[index + 1])
    check_lives([gate for index, gate in enumerate(watch.history[1:]) if index not in overflow])
    assert slot.steps == max(LIVES) + 1


def test_released_constant_threshold_leaves_the_rate_out() -> None:
    model = Tiny(step_size="constant", penalty=0.125)
    optimizer = SGD(trained(model), lr=0.0)
    history = []
    for _ in range(max(LIVES) + 1):
        model.still().backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(model.slot.gate.detach().clone())
    check_lives(history)


FADING: dict[str, Callable[[Tiny, float], list[Optimizer]]] = {
    "together": lambda model, rate: [SGD([{"params": [model.slot.gate]}, {"params": [model.slot.A, model.slot.B], "lr": rate}], lr=RATE)],
    "nested": lambda model, rate: [Calling([{"params": [model.slot.gate]}, {"params": [model.slot.B], "lr": rate}], lr=RATE)],
    "B after the gate": lambda model, rate: [SGD([model.slot.gate], lr=RATE), SGD([model.slot.B, model.head], lr=rate)],
}


@pytest.mark.parametrize("make", FADING.values(), ids=FADING)
@pytest.mark.parametrize("rate", [1.0, 0.125])
def test_a_fading_penalty_follows_the_rate_of_b_and_goes_on_after_a_reload(
    make: Callable[[Tiny, float], list[Optimizer]], rate: float
) -> None:
    """Rate x penalty = 1/8; halved when B has gone one of its rates, a third of it after two, a quarter after three."""

    def step_once(model: Tiny) -> float:
        before = model.slot.gate.detach()[3].item()
        optimizers = make(model, rate)
        # Two backward passes are one step.
        for _ in range(2):
            model.still().backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        return before - model.slot.gate.detach()[3].item()

    model = Tiny(fade=rate)
    assert step_once(model) == 1 / 8
    assert step_once(model) == 1 / 16
    other = Tiny(fade=rate)
    other.load_state_dict(model.state_dict())
    assert step_once(other) == pytest.approx(1 / 24)
    assert other.slot.travelled == int(other.slot.travel) * UNIT == pytest.approx(3 * rate)
    # What is fixed from outside does not fade.
    other.slot.fixed_penalty = PENALTY
    assert step_once(other) == 1 / 8
    assert other.slot.penalty == copy.deepcopy(other).slot.penalty == PENALTY


def test_a_penalty_does_not_fade_while_b_stays() -> None:
    model = Tiny(fade=1.0)
    model.slot.B.requires_grad_(False)
    optimizer = SGD(trained(model), lr=RATE)
    for _ in range(3):
        model.still().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.slot.travelled == 0.0
    assert model.slot.penalty == PENALTY


@pytest.mark.parametrize("rate", [1e30, float("inf"), float("nan")])
def test_a_rate_beyond_all_bounds_does_not_break_the_count(rate: float) -> None:
    model = Tiny(fade=1.0)
    model.still().backward()
    SGD([{"params": [model.slot.gate]}, {"params": [model.slot.B], "lr": rate}], lr=RATE).step()
    assert model.slot.travelled == 1.0


def test_a_b_that_is_stepped_first_has_gone_when_the_gate_is_shrunk() -> None:
    model = Tiny(fade=RATE)
    model.still().backward()
    SGD([model.slot.B], lr=RATE).step()
    SGD([model.slot.gate], lr=RATE).step()
    assert model.slot.gate[3] == 1 - 1 / 16


# -- the extra L1 term -------------------------------------------------------------------------------------------------------


class Spy(SGD):
    """Keeps the gates' gradients as the step sees them."""

    seen: list[Tensor]

    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            with torch.enable_grad():
                closure()
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]
        return super().step()


class CallingSpy(Spy):
    """Its step calls its parent's, which calls its own: each announces itself before the step."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("closure", [None, "argument", "keyword"])
def test_l1_term_is_in_the_gradient_once_when_the_step_begins(closure: str | None) -> None:
    models = [Tiny(l1=0.5), Tiny(l1=0.5)]
    entries = 2 * SIZE
    announcing(Spy)
    optimizer = CallingSpy([model.slot.gate for model in models], lr=RATE)

    def backward() -> None:
        optimizer.zero_grad()
        for model in models:
            model.still().backward()

    for _ in range(3):
        before = [torch.sign(model.slot.gate.detach()) for model in models]
        if closure is None:
            backward()
            assert all(not model.slot.gate.grad.any() for model in models if model.slot.gate.grad is not None)
            optimizer.step()
        elif closure == "argument":
            optimizer.step(backward)
        else:
            optimizer.step(closure=backward)
        for seen, sign in zip(optimizer.seen, before, strict=True):
            assert torch.equal(seen, 0.5 * sign / entries)


def test_l1_term_survives_the_scale_of_a_fused_optimizer() -> None:
    models = [Tiny(l1=0.5), Tiny(l1=0.5)]
    results = []
    for model, scale in zip(models, (1.0, 1024.0), strict=True):
        optimizer = SGD([model.slot.gate, model.head], lr=RATE, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(model.still()).backward()
        scaler.step(optimizer)
        results.append(model.slot.gate.detach())
    expected = torch.tensor(GATES) - RATE * 0.5 * torch.sign(torch.tensor(GATES)) / SIZE
    shrunk = expected - expected.clamp(-RATE * PENALTY, RATE * PENALTY)
    for result in results:
        assert torch.allclose(result, shrunk, atol=1e-7, rtol=0)


# -- which optimizer, which slot ---------------------------------------------------------------------------------------------


def test_only_the_optimizer_that_holds_the_gate_shrinks_it() -> None:
    model = Tiny()
    factors, gates = AdamW([model.slot.A, model.slot.B, model.head], lr=1e-3), SGD([model.slot.gate], lr=RATE)
    for index in range(3):
        model.still().backward()
        factors.step()
        assert torch.equal(model.slot.gate, after(index))
        gates.step()
        factors.step()
        assert torch.equal(model.slot.gate, after(index + 1))
        factors.zero_grad()
        gates.zero_grad()


def test_two_optimizers_with_the_same_gate_shrink_it_once_a_backward() -> None:
    model = Tiny()
    first, second = SGD(trained(model), lr=RATE), SGD([model.slot.gate], lr=RATE)
    model.still().backward()
    first.step()
    second.step()
    assert torch.equal(model.slot.gate, after(1))


def test_a_closure_that_runs_forward_and_backward_inside_the_step() -> None:
    model = Tiny()
    optimizer = AdamW(trained(model), lr=RATE, weight_decay=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model.still()
        loss.backward()
        return loss.item()

    history = []
    for _ in range(max(LIVES) + 1):
        optimizer.step(closure)
        history.append(model.slot.gate.detach().clone())
    check_lives(history)


def test_frozen_gate_and_slot_that_was_not_called_stay() -> None:
    frozen, idle, active = Tiny(), Tiny(), Tiny()
    frozen.slot.gate.requires_grad_(False)
    optimizer = SGD([p for model in (frozen, idle, active) for p in model.parameters()], lr=RATE)
    idle.still().backward()  # leaves a gradient of zeros behind
    optimizer.step()
    assert torch.equal(idle.slot.gate, after(1))
    optimizer.zero_grad(set_to_none=False)
    for _ in range(2):
        (frozen.still() + active.still()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert torch.equal(frozen.slot.gate, after(0))
    assert torch.equal(idle.slot.gate, after(1))
    assert torch.equal(active.slot.gate, after(2))


def test_evaluation_marks_nothing() -> None:
    model = Tiny()
    model.eval()
    model(torch.ones(1, SIZE))
    model.train()
    with torch.no_grad():
        model(torch.ones(1, SIZE))
    assert not model.slot.pending


def test_a_step_without_a_new_forward_does_not_shrink_again() -> None:
    model = Tiny()
    optimizer = SGD(trained(model), lr=RATE)
    model.still().backward()
    optimizer.step()
    optimizer.step()
    assert torch.equal(model.slot.gate, after(1))


def test_watched_optimizer_works_alone_and_beside_the_process_wide_hook() -> None:
    model = Tiny()
    optimizer = SGD(trained(model), lr=RATE)
    handles = step.watch(optimizer)
    for index, alone in enumerate((False, True)):
        if alone:
            step.uninstall()
        model.still().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(model.slot.gate, after(index + 1))
    for handle in handles:
        handle.remove()
    model.still().backward()
    optimizer.step()
    assert torch.equal(model.slot.gate, after(2))


class Plain:
    """Gradient descent that knows nothing of torch.optim."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.param_groups = [{"params": parameters, "lr": RATE}]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        if closure is not None:
            closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.sub_(group["lr"] * parameter.grad)


class Hookless(SGD):
    """Of torch.optim by its parents, but its step calls no hook."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, lr=RATE)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            with torch.enable_grad():
                closure()
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.sub_(RATE * parameter.grad)


def bare_step(optimizer: Any) -> Any:
    """Take away what torch has put around the class's step when its first object was made."""
    if isinstance(optimizer, Hookless):
        Hookless.step = Hookless.step.__wrapped__  # type: ignore[method-assign]
    return optimizer


@pytest.mark.parametrize("make", [Plain, lambda parameters: bare_step(Hookless(parameters))], ids=["plain", "hookless"])
@pytest.mark.parametrize("closure", [False, True])
def test_watching_an_optimizer_that_calls_no_hooks(make: Callable[[list[nn.Parameter]], Any], closure: bool) -> None:
    model = Tiny(revive=Never(), gate_rate=None)
    optimizer = make(trained(model))

    def once() -> None:
        if closure:
            optimizer.step(lambda: model.still().backward())
        else:
            model.still().backward()
            optimizer.step()
        model.zero_grad()

    once()
    assert torch.equal(model.slot.gate, after(0)), "nothing calls it by itself"
    (handle,) = step.watch(optimizer)
    for index in range(max(LIVES)):
        once()
        assert torch.equal(model.slot.gate, after(index + 1))
    handle.remove()
    once()
    assert model.slot.steps == max(LIVES)


def test_watching_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(StepError, match="Linear has no step and no param_groups"):
        step.watch(nn.Linear(2, 2))


@needs_muon
def test_muon_for_factors_and_adamw_for_gates() -> None:
    model = Tiny()
    muon = torch.optim.Muon([model.slot.A, model.slot.B], lr=1e-3)
    rest = AdamW([model.slot.gate, model.head], lr=RATE, weight_decay=0.0)
    history = []
    for _ in range(max(LIVES) + 1):
        model.still().backward()
        muon.step()
        rest.step()
        muon.zero_grad()
        rest.zero_grad()
        history.append(model.slot.gate.detach().clone())
    check_lives(history)


# -- optimizers that are refused ---------------------------------------------------------------------------------------------


def _in_train_mode(optimizer: Any) -> Any:
    optimizer.train()
    return optimizer


REFUSED: dict[str, tuple[Callable[[list[nn.Parameter]], Any], str]] = {
    "LBFGS": (lambda p: torch.optim.LBFGS(p, lr=RATE, max_iter=1), "line search"),
    "torch's Adafactor": (lambda p: torch.optim.Adafactor(p, lr=RATE), "size of the parameter"),
    "transformers' Adafactor, relative": (lambda p: Adafactor(p), "size of the parameter"),
    "transformers' Adafactor, scaled": (lambda p: Adafactor(p, lr=RATE, relative_step=False), "size of the parameter"),
    "Prodigy": (lambda p: prodigyopt.Prodigy(p), "D-adaptation"),
    "DAdaptAdam": (lambda p: dadaptation.DAdaptAdam(p), "D-adaptation"),
    "DAdaptSGD": (lambda p: dadaptation.DAdaptSGD(p), "D-adaptation"),
    "DAdaptLion": (lambda p: dadaptation.DAdaptLion(p), "D-adaptation"),
    "AdamWScheduleFree": (lambda p: _in_train_mode(schedulefree.AdamWScheduleFree(p, lr=RATE)), "averag"),
    "SGDScheduleFreeClosure": (lambda p: schedulefree.SGDScheduleFreeClosure(p, lr=RATE), "averag"),
    "ScheduleFreeWrapper": (lambda p: _in_train_mode(schedulefree.ScheduleFreeWrapper(SGD(p, lr=RATE))), "averag"),
}


SHARED: dict[str, tuple[dict[str, Any], Callable[[Tiny], list[Any]], bool]] = {
    "all in one group": ({}, trained, True),
    "own group": ({}, lambda model: [{"params": [model.slot.gate]}, {"params": [model.slot.A, model.slot.B, model.head]}], False),
    "the main rate is asked for": ({"gate_rate": None}, trained, False),
}


@pytest.mark.parametrize(("settings", "groups", "warned"), SHARED.values(), ids=SHARED)
def test_a_loop_that_steps_the_gates_at_the_main_rate_is_told_once(
    settings: dict[str, Any], groups: Callable[[Tiny], list[Any]], warned: bool
) -> None:
    model = Tiny(**settings)
    optimizer = SGD(groups(model), lr=RATE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            model.moving().backward()
            optimizer.step()
            optimizer.zero_grad()
    told = [str(item.message) for item in caught if "share a parameter group" in str(item.message)]
    assert len(told) == warned
    assert all("asks for 0.025" in text and "create_optimizer" in text for text in told)


@pytest.mark.parametrize("name", REFUSED)
def test_optimizer_whose_rate_is_not_its_step_or_that_averages_is_refused_by_name(name: str) -> None:
    build, reason = REFUSED[name]
    model = Tiny()
    optimizer = build(trained(model))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.moving()
        loss.backward()
        return loss

    inner = optimizer.base if isinstance(optimizer, schedulefree.ScheduleFreeWrapper) else optimizer
    given = (closure,) if name in ("LBFGS", "SGDScheduleFreeClosure") else ()
    if not given:
        closure()
    with pytest.raises(StepError, match=f"(?s)^{type(inner).__name__} .*{reason}.*create_optimizer"):
        optimizer.step(*given)


def test_weight_decay_on_the_gates_warns_once() -> None:
    model = Tiny()
    optimizer = AdamW(trained(model), lr=RATE, weight_decay=0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            model.still().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len([item for item in caught if "shrink twice" in str(item.message)]) == 1


# -- compiled steps and forwards ---------------------------------------------------------------------------------------------


@pytest.fixture
def _quiet() -> Iterator[None]:
    # The compiler logs thousands of lines, which pytest would keep.
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    torch._dynamo.reset()


@pytest.mark.usefixtures("_quiet")
def test_compiled_step_shrinks_exactly_and_is_not_compiled_for_each_rate() -> None:
    counter = CompileCounter()
    model = Tiny()
    optimizer = AdamW(trained(model), lr=RATE, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda index: 1 - index / 16)
    take = torch.compile(optimizer.step, backend=counter)
    frames, travel, start = [], 0.0, torch.tensor(GATES)
    for _ in range(6):
        travel += optimizer.param_groups[0]["lr"] * PENALTY
        model.still().backward()
        take()
        scheduler.step()
        optimizer.zero_grad()
        frames.append(counter.frame_count)
        assert torch.equal(model.slot.gate, torch.sign(start) * (start.abs() - travel).clamp_min(0.0))
    assert model.slot.steps == 6
    assert 0 < frames[-1] == frames[2]


COMPILED_FORWARD = """
import torch
from torch._dynamo.testing import CompileCounter
from paring import step
from paring.methods.sora import SoRA
from paring.parts.shape import Shape
step.install()
slot = SoRA(rank=4).slot(Shape(path="base", in_features=4, out_features=4), torch.Generator().manual_seed(0))
counter = CompileCounter()
forward = torch.compile(slot, backend=counter)
optimizer = torch.optim.SGD(slot.parameters(), lr=0.25)
for _ in range(4):
    forward(torch.zeros(2, 4), torch.ones(2, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print(counter.frame_count, int(slot.steps))
"""


@pytest.mark.slow
def test_compiled_forward_marks_its_slot_and_is_compiled_once() -> None:
    # In a process of its own: the annotations that are checked in tests do not compile.
    done = subprocess.run([sys.executable, "-c", COMPILED_FORWARD], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "4"]


# -- loops that forget the gates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [1, 12])
def test_loop_without_the_gate_warns_at_the_last_backward_of_its_patience(calls: int) -> None:
    model = Tiny(calls=calls)
    optimizer = SGD([model.head], lr=1e-3)
    for index in range(PATIENCE + 3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.moving().backward()
            optimizer.step()
            optimizer.zero_grad()
        said = [item for item in caught if "no proximal step" in str(item.message)]
        assert len(said) == (1 if index == PATIENCE - 1 else 0), f"backward {index + 1}"


def test_loop_with_the_gate_never_warns() -> None:
    model = Tiny(gate_rate=None)
    optimizer = SGD(trained(model), lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(PATIENCE + 3):
            model.moving().backward()
            optimizer.step()
            optimizer.zero_grad()


# -- gates written from outside ----------------------------------------------------------------------------------------------


def _replace(slot: Gated, value: Tensor, optimizer: Optimizer) -> None:
    new = nn.Parameter(value.clone())
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is slot.gate else parameter for parameter in group["params"]]
    slot.gate = new


def _copy(slot: Gated, value: Tensor, optimizer: Optimizer) -> None:
    with torch.no_grad():
        slot.gate.copy_(value)


def _data(slot: Gated, value: Tensor, optimizer: Optimizer) -> None:
    slot.gate.data = value.clone()


def _load(slot: Gated, value: Tensor, optimizer: Optimizer) -> None:
    slot.load_state_dict({**slot.state_dict(), "gate": value})


@pytest.mark.parametrize("write", [_data, _copy, _load, _replace])
def test_gate_written_from_outside_is_what_the_next_step_shrinks(write: Callable[[Gated, Tensor, Optimizer], None]) -> None:
    model = Tiny(gates=[3.0] * SIZE)
    optimizer = SGD(trained(model), lr=RATE)
    for _ in range(2):
        model.still().backward()
        optimizer.step()
        optimizer.zero_grad()
    write(model.slot, torch.tensor(GATES), optimizer)
    history = []
    for _ in range(max(LIVES) + 1):
        model.still().backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(model.slot.gate.detach().clone())
    check_lives(history)


def test_gate_replaced_behind_the_optimizer_is_not_shrunk_and_the_loop_is_told() -> None:
    model = Tiny()
    optimizer = SGD(trained(model), lr=RATE)
    model.slot.gate = nn.Parameter(model.slot.gate.detach().clone())
    for _ in range(PATIENCE - 1):
        model.still().backward()
        optimizer.step()
    with pytest.warns(UserWarning, match="no proximal step"):
        model.still().backward()
    assert torch.equal(model.slot.gate, after(0))


# -- precision ---------------------------------------------------------------------------------------------------------------


def test_gate_stays_float32_through_casts_of_the_model() -> None:
    model = Tiny()
    odd = torch.tensor([1.0 + 2.0**-20] * SIZE)
    model.slot.gate.data.copy_(odd)
    for cast in (lambda: model.to(torch.bfloat16), model.half, lambda: model.to(dtype=torch.float16), model.bfloat16):
        cast()
        assert model.slot.gate.dtype == torch.float32
        assert torch.equal(model.slot.gate, odd)
        assert model.slot.A.dtype != torch.float32


def test_low_precision_gate_raises_and_recast_cures() -> None:
    model = Tiny()
    optimizer = AdamW(trained(model), lr=RATE, weight_decay=0.0)
    model.slot.gate.data = model.slot.gate.data.to(torch.bfloat16)
    with pytest.raises(StepError, match=r"bfloat16.*recast"):
        model.still()
    assert recast(model) == 1
    assert recast(model) == 0
    history = []
    for _ in range(max(LIVES) + 1):
        model.still().backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(model.slot.gate.detach().clone())
    check_lives(history)


# -- resume ------------------------------------------------------------------------------------------------------------------


def test_resumed_loop_equals_the_uninterrupted_one_bit_for_bit() -> None:
    def run(model: Tiny, optimizer: Optimizer, batches: range) -> None:
        for index in batches:
            model.moving(torch.randn(4, SIZE, generator=torch.Generator().manual_seed(index))).backward()
            optimizer.step()
            optimizer.zero_grad()

    def fresh() -> tuple[Tiny, Optimizer]:
        model = Tiny(penalty=1.0)
        return model, AdamW(trained(model), lr=0.0625, weight_decay=0.0)

    whole, optimizer = fresh()
    run(whole, optimizer, range(12))

    first, optimizer = fresh()
    run(first, optimizer, range(7))
    assert (first.slot.gate == 0).any(), "a rank must have died before the break"
    saved, state = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())
    second, optimizer = fresh()
    second.load_state_dict(saved)
    optimizer.load_state_dict(state)
    run(second, optimizer, range(7, 12))

    assert second.slot.steps == 12
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
