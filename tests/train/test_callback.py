"""Every guard of the callback, by what it stops or says."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dadaptation
import prodigyopt
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import SGD, AdamW
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from paring import step
from paring.attach.find import slots
from paring.core.errors import StepError, TargetError
from paring.methods.sora import SoRA
from paring.parts.parameterise import alive
from paring.parts.update.revive import Always
from paring.train import ParingCallback, ParingTrainer, create_optimizer
from paring.train.guards import missed, recast
from paring.train.look import gated, trained
from tests.trust.grids import cell

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _calm(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*steps left.*")
        yield
    step.install()


# -- before training ---------------------------------------------------------------------------------------------------------


def test_fsdp1_is_refused(adapted: Make, arguments: Make) -> None:
    model = adapted()
    wrapper = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(wrapper)
    model.base_model.model.wrapped = wrapper
    with pytest.raises(StepError, match=r"FSDP1 .*fsdp_version to 2"):
        _begin(ParingCallback(), model, arguments())


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=cell("distributed", f"DeepSpeed ZeRO-{stage}", "torchrun", refused=True)) for stage in (1, 2, 3)]
)
def test_deepspeed_is_refused(stage: int, adapted: Make, arguments: Make, record_property: Callable[[str, object], None]) -> None:
    record_property("trust", "by the training arguments; tried without the package")
    args = arguments()
    args.deepspeed = {"zero_optimization": {"stage": stage}}
    with pytest.raises(StepError, match=r"DeepSpeed .*FSDP2"):
        _begin(ParingCallback(), adapted(), args)


def test_data_parallel_copies_are_refused(adapted: Make, arguments: Make) -> None:
    args = arguments()
    assert args.n_gpu <= 1
    args._n_gpu = 2
    with pytest.raises(StepError, match=r"DataParallel .*torchrun"):
        _begin(ParingCallback(), adapted(), args)


def test_averaged_model_is_refused(adapted: Make, arguments: Make) -> None:
    with pytest.raises(StepError, match=r"AveragedModel.*zeros do not survive"):
        _begin(ParingCallback(), AveragedModel(adapted()), arguments())


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda p: prodigyopt.Prodigy(p), "Prodigy estimates"),
        (lambda p: dadaptation.DAdaptAdam(p), "DAdaptAdam estimates"),
        (lambda p: torch.optim.Adafactor(p), "Adafactor scales"),
        (lambda p: torch.optim.LBFGS(p), "LBFGS chooses"),
    ],
)
def test_optimizer_is_refused_before_the_first_step(adapted: Make, arguments: Make, data: Any, build: Any, match: str) -> None:
    model = adapted()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = ParingTrainer(model=model, args=arguments(), train_dataset=data, optimizers=(build(_trainable(model)), None))
    with pytest.raises(StepError, match=match):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_schedule_free_of_the_training_arguments_is_refused(adapted: Make, arguments: Make, data: Any) -> None:
    args = arguments(optim="schedule_free_adamw", lr_scheduler_type="constant")
    with pytest.raises(StepError, match=r"AdamWScheduleFree evaluates at an average"):
        ParingTrainer(model=adapted(), args=args, train_dataset=data).train()


def test_a_model_of_which_nothing_is_trained_is_refused(adapted: Make, arguments: Make, data: Any) -> None:
    model = adapted()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trainer = ParingTrainer(model=model, args=arguments(), train_dataset=data)
    with pytest.raises(TargetError, match=r"No parameter .* is trainable.*set_adapter"):
        trainer.train()
    model.set_adapter("default")
    assert ParingTrainer(model=model, args=arguments(), train_dataset=data).train().global_step == 4


def test_recast_takes_the_optimizer_state_along(adapted: Make, arguments: Make) -> None:
    model = adapted()
    optimizer = create_optimizer(model, lr=1e-3)
    gates = [slot.gate for slot in slots(model).values()]
    for gate in gates:
        gate.data = gate.data.to(torch.bfloat16)
        optimizer.state[gate] = {"step": torch.tensor(3.0), "exp_avg": torch.ones_like(gate), "exp_avg_sq": torch.ones_like(gate)}
    _begin(ParingCallback(), model, arguments(), optimizer)
    assert all(gate.dtype == torch.float32 for gate in gates)
    assert all(value.dtype == torch.float32 for gate in gates for value in optimizer.state[gate].values())
    assert recast(model) == 0


# -- the first step ----------------------------------------------------------------------------------------------------------


def test_first_step_of_an_optimizer_without_the_gates_raises(adapted: Make, arguments: Make, data: Any) -> None:
    model = adapted()
    heads = [p for n, p in model.named_parameters() if p.requires_grad and not n.endswith("gate")]
    trainer = ParingTrainer(model=model, args=arguments(), train_dataset=data, optimizers=(AdamW(heads), None))
    with pytest.raises(StepError, match=r"2 of 2 gates \(first: 'first'\)\. AdamW does not hold them"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_one_forgotten_gate_is_enough(adapted: Make, arguments: Make, data: Any) -> None:
    model = adapted()
    forgotten = slots(model)["second"].gate
    optimizer = AdamW([p for p in _trainable(model) if p is not forgotten])
    trainer = Trainer(model=model, args=arguments(), train_dataset=data, optimizers=(optimizer, None), callbacks=[ParingCallback()])
    with (
        pytest.warns(UserWarning, match="shrink twice|share a parameter"),
        pytest.raises(StepError, match=r"1 of 2 gates \(first: 'second'\)"),
    ):
        trainer.train()


def test_first_step_without_hooks_raises(adapted: Make, arguments: Make, data: Any) -> None:
    trainer = ParingTrainer(model=adapted(), args=arguments(), train_dataset=data)
    step.uninstall()
    with pytest.raises(StepError, match=r"AdamW does not call torch.optim's step hooks"):
        trainer.train()


def test_gate_that_was_marked_on_a_copy_only_is_missed(adapted: Make) -> None:
    # As with copies of a module in threads: the gradient arrives at the gate, the mark stays on the copy.
    model = adapted()
    found = gated(trained(model))
    for slot in found.values():
        slot.gate.grad = torch.zeros_like(slot.gate)
    assert missed(found) == ["first", "second"]


class Overflow(TrainerCallback):
    """Makes the first gradients overflow."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 0:
            next(p for p in _trainable(model) if p.grad is not None).grad.fill_(torch.inf)


# A fused step that overflowed looks taken from outside: there the guard may name a forgotten gate one step early, so it is left out.
@pytest.mark.parametrize(("holds", "fused"), [(True, True), (True, False), (False, False)])
def test_skipped_fp16_step_is_no_evidence(adapted: Make, arguments: Make, data: Any, holds: bool, fused: bool) -> None:
    model = adapted()
    parameters = [p for n, p in model.named_parameters() if p.requires_grad and (holds or not n.endswith("gate"))]
    trainer = ParingTrainer(
        model=model, args=arguments(max_grad_norm=0.0), train_dataset=data, callbacks=[Overflow()],
        optimizers=(AdamW(parameters, weight_decay=0.0, fused=fused), None),
    )  # fmt: skip
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    if holds:
        with pytest.warns(UserWarning, match="share a parameter group"):
            trainer.train()
        assert all(slot.steps == 3 for slot in slots(model).values())
    else:
        with pytest.raises(StepError, match="2 of 2 gates"):
            trainer.train()
        assert trainer.state.global_step == 1


# -- while it runs -----------------------------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts reads of a tensor on the host."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_on_the_host_between_logs(adapted: Make, arguments: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: pytest.fail("a tensor was read"))
    # Gates on a CPU are looked at: that waits for nothing.
    monkeypatch.setattr(alive, "_readable", lambda gate: False)
    model, args = adapted(), arguments(max_steps=1000)
    optimizer = create_optimizer(model, lr=1e-3)
    callback, state, control = ParingCallback(), TrainerState(max_steps=1000), TrainerControl()
    _begin(callback, model, args, optimizer)
    with Reads() as reads:
        for index in range(1, 6):
            model(x=torch.ones(2, 6))["loss"].backward()
            optimizer.step()
            callback.on_optimizer_step(args, state, control, model=model, optimizer=optimizer)
            optimizer.zero_grad()
            state.global_step = index
            callback.on_step_end(args, state, control, model=model, optimizer=optimizer)
        # AdamW itself reads its step counts, which lie on the CPU.
        taken = reads.count
    step.uninstall()
    with Reads() as reads:
        for _ in range(5):
            model(x=torch.ones(2, 6))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    assert taken == reads.count
    step.install()
    control.should_log = True
    with Reads() as reads:
        callback.on_step_end(args, state, control, model=model, optimizer=optimizer)
    assert reads.count > 0, "the check itself must be able to see a read"


class Poison(TrainerCallback):
    """Breaks a factor before a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.at:
            with torch.no_grad():
                slots(model)["second"].B[0, 0] = torch.nan


def test_non_finite_loss_stops_before_anything_broken_is_saved(adapted: Make, arguments: Make, data: Any, tmp_path: Path) -> None:
    args = arguments(max_steps=6, save_strategy="steps", save_steps=2, logging_steps=100)
    trainer = ParingTrainer(model=adapted(), args=args, train_dataset=data, callbacks=[Poison(2)])
    with pytest.raises(StepError, match=r"diverged: at step 4 the adapter holds NaN .*2 modules .*'first'"):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2"]


def test_non_finite_loss_in_the_log_stops(adapted: Make, arguments: Make) -> None:
    callback = ParingCallback()
    args = arguments()
    _begin(callback, adapted(), args)
    with pytest.raises(StepError, match=r"diverged: at step 3 the loss is nan"):
        callback.on_log(args, TrainerState(global_step=3), TrainerControl(), logs={"loss": float("nan")})


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (SoRA(rank=4, penalty=1e-3), r"can bring 0\.00% of the gates to zero"),
        (SoRA(rank=4, penalty=20.0, fade=None, gate_rate=300.0), "at zero already"),
        (SoRA(rank=4, penalty=0.5, fade=None, gate_rate=300.0, revive=Always()), None),
    ],
)
def test_outlook_is_told_once_at_a_tenth_of_the_steps(adapted: Make, arguments: Make, data: Any, method: SoRA, match: str | None) -> None:
    said: list[tuple[int, str]] = []
    trainer = ParingTrainer(model=adapted(method), args=arguments(max_steps=20, learning_rate=1e-3), train_dataset=data)
    show = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest, **more: said.append((trainer.state.global_step, str(message)))
        trainer.train()
    warnings.showwarning = show
    told = [(at, text) for at, text in said if "steps left" in text]
    if match is None:
        assert told == []
    else:
        ((at, text),) = told
        assert at == 2
        assert text.startswith("The 18 steps left")
        assert re.search(match, text)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _begin(callback: ParingCallback, model: nn.Module, args: Any, optimizer: Any = None) -> None:
    optimizer = optimizer if optimizer is not None else SGD(_trainable(model), lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callback.on_train_begin(args, TrainerState(), TrainerControl(), model=model, optimizer=optimizer)
