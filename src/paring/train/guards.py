"""What can go wrong between a training loop and the proximal step: found before the first step, or right after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from paring.attach.find import adapters, method_of, slots
from paring.core.errors import StepError
from paring.method import Rate
from paring.parts.parameterise.base import Role
from paring.parts.parameterise.gated import Gated
from paring.step import check, shared, warn_of_sharing
from paring.train.look import gated, nothing_to_train, trained

FLATTENED = (
    "FSDP1 flattens the gates into one parameter with everything else, where no proximal step can find them. "
    "Set fsdp_version to 2, or use DDP."
)
"""What is said of FSDP1, asked for or found."""


def recast(model: nn.Module, optimizer: Optimizer | None = None) -> int:
    """Bring gates that were cast below float32 back to float32.

    TRL casts all trainable parameters of a quantised model to bfloat16, where a threshold of rate x weight rounds to nothing. The
    mixin and the callback call this by themselves; a loop with its own casts calls it after them.

    Args:
        model: a model with gates, or one without.
        optimizer: recast its state for those gates too.

    Returns:
        How many gates were recast. Digits that the cast has dropped do not come back.
    """
    count = 0
    for module in model.modules():
        if not isinstance(module, Gated) or module.gate.dtype not in (torch.bfloat16, torch.float16):
            continue
        count += 1
        gate = module.gate
        gradient, gate.grad = gate.grad, None
        gate.data = gate.data.float()
        gate.grad = None if gradient is None else gradient.float()
        state = optimizer.state.get(gate, {}) if optimizer is not None else {}
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == gate.shape:
                state[key] = value.float()
    return count


def refuse_wrappers(args: TrainingArguments, model: nn.Module) -> None:
    """Refuse what hides or averages the gates.

    Raises:
        StepError: FSDP1, DeepSpeed, torch's DataParallel, or an averaged (EMA, SWA) model.
    """
    if args.deepspeed or (is_initialized() and AcceleratorState().distributed_type is DistributedType.DEEPSPEED):
        raise StepError(
            "DeepSpeed keeps the trained parameters in flat partitions of its own, where no gate can be found after a step. "
            "Adapters are small: use DDP, or FSDP2 for a large base model."
        )
    # Before the model is wrapped: the policy that PEFT wraps by fails on slots, without a word of what to do.
    if is_initialized() and AcceleratorState().distributed_type is DistributedType.FSDP and not AcceleratorState().is_fsdp2:
        raise StepError(FLATTENED)
    if args.n_gpu > 1:
        raise StepError(
            "torch.nn.DataParallel runs on copies of the model, whose marks are lost, so the proximal step would never run. "
            "Start the script with torchrun or accelerate launch (DDP), or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    for module in model.modules():
        if isinstance(module, FullyShardedDataParallel):
            raise StepError(FLATTENED)
        if isinstance(module, AveragedModel):
            raise StepError(
                "The model to train is an average (torch.optim.swa_utils.AveragedModel): exact zeros do not survive averaging. "
                "Train the model itself."
            )


def refuse_frozen(model: nn.Module) -> None:
    """Refuse to train a model that is frozen as a whole: all steps would be taken, and nothing would change.

    Raises:
        TargetError: how the adapter is activated.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise nothing_to_train()


def bare(optimizer: Any) -> Any:
    """The optimizer inside accelerate's wrapper."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def homes(optimizer: Any, found: dict[str, Gated]) -> Iterator[tuple[str, Optimizer, dict[str, Any]]]:
    """The optimizer and the parameter group that hold each gate, for those that are held."""
    optimizer = bare(optimizer)
    if isinstance(optimizer, LayerWiseDummyOptimizer):
        for own in dict.fromkeys(optimizer.optimizer_dict.values()):
            yield from homes(own, found)
        return
    if not isinstance(optimizer, Optimizer):
        return
    where = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for path, slot in found.items():
        if id(slot.gate) in where:
            yield path, optimizer, where[id(slot.gate)]


def check_optimizer(optimizer: Any, model: nn.Module) -> None:
    """Refuse an optimizer whose rate is not its step, and warn if the gates move at the main rate.

    Raises:
        StepError: see :func:`paring.step.check`.
    """
    found = gated(trained(model))
    sharing = []
    for _, owner, group in homes(optimizer, found):
        check(owner, group)
        if shared(group):
            sharing.append(owner)
    names = [name for name in adapters(model) if any(slot in found.values() for slot in slots(model, name).values())]
    asked = [rate for name in names if (rate := method_of(model, name).rates().get(Role.GATE, Rate())) != Rate()]
    if sharing and any(rate.fixed is not None or rate.multiple != 1.0 for rate in asked):
        own = " or ".join(f"{rate.fixed:g}" if rate.fixed is not None else f"{rate.multiple:g} times that" for rate in asked)
        warn_of_sharing(sharing[0], own)


def missed(found: dict[str, Gated]) -> list[str]:
    """The paths of gates that have a gradient and that no proximal step has shrunk since their last training forward."""
    return [path for path, slot in found.items() if slot.gate.grad is not None and (slot.pending or not slot.proved)]


def was_skipped(optimizer: Any) -> bool:
    """Whether the last step was left out because fp16 gradients overflowed."""
    return isinstance(optimizer, AcceleratedOptimizer) and bool(optimizer.step_was_skipped)


def diverged(what: str, step: int) -> str:
    """What to do about a training that has left the finite numbers."""
    return (
        f"Training diverged: at step {step} {what}. Nothing was saved since. Lower the learning rate, clip gradients (max_grad_norm), "
        "look for empty or broken examples, or train in bf16 or float32 where this was fp16."
    )
