"""When a base layer and its slot may be computed as one function, and when each must be called."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.nn.modules import module as hooks
from transformers.pytorch_utils import Conv1D

from paring.parts.parameterise.base import Slot


def fusible(base: nn.Module, slot: Slot, x: Tensor) -> bool:
    """Whether nothing but the products themselves would happen if the base layer and the slot were called.

    So the base is exactly ``nn.Linear`` or GPT-2's ``Conv1D`` with its own forward; it is frozen, its tensors local and plain; nobody has
    hooked it or the slot (a user, accelerate, DeepSpeed); the types are those of the products. Under a transform of ``torch.func``, and
    where a compiler traces (it fuses the plain operations itself), both are called.
    """
    if type(base) not in (nn.Linear, Conv1D) or type(x) not in (Tensor, nn.Parameter):
        return False
    if _touched(base) or _touched(slot) or torch.compiler.is_compiling() or peek_interpreter_stack() is not None:
        return False
    weight, bias = tensors(base)
    if _hooked_everywhere() or not _frozen(weight) or not (bias is None or _frozen(bias)):
        return False
    if torch.is_autocast_enabled(x.device.type):
        return torch.float64 not in (x.dtype, weight.dtype) and slot.fuses(None)
    return x.dtype == weight.dtype and slot.fuses(x.dtype)


def tensors(base: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight, as it is stored, and bias of an ``nn.Linear`` or a Conv1D."""
    assert isinstance(base, nn.Linear | Conv1D)
    return base.weight, base.bias


def _hooked_everywhere() -> bool:
    """Whether there is a hook on every module; torch 2.6, which paring supports, has no function that says so."""
    return bool(
        hooks._global_forward_hooks or hooks._global_forward_pre_hooks or hooks._global_backward_hooks or hooks._global_backward_pre_hooks
    )


def _frozen(parameter: Tensor) -> bool:
    """Whether no gradient is wanted for it, and it is plain and local: sharded and quantised tensors keep types of their own."""
    return type(parameter) is nn.Parameter and not parameter.requires_grad


def _touched(module: nn.Module) -> bool:
    """Whether a hook, or another forward, was put on this very module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    ) or "forward" in vars(module)
