"""A model's stack of blocks, and what stands in the way of training some of them at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

from paring.attach.find import has_adapter
from paring.core.errors import StepError, TargetError, near

Blocks = nn.ModuleList | nn.Sequential


def find_blocks(model: nn.Module, path: str | None = None) -> tuple[str, Blocks]:
    """The list of a model's blocks: the longest ``nn.ModuleList`` whose members are all of one class and that lies in no other such list.

    Args:
        model: any model.
        path: the list's own path, ``"model.layers"``, where that does not say which.

    Returns:
        Its path and the list.

    Raises:
        TargetError: there is none, several are equally long, or the path is of something else.
    """
    lists: dict[str, Blocks] = {
        name: module for name, module in model.named_modules() if name and isinstance(module, Blocks) and len(module)
    }
    if path is not None:
        if path not in lists:
            raise TargetError(f"path={path!r} is no list of blocks in this model.{near(path, lists)} Lists here: {_named(lists)}.")
        return path, lists[path]
    alike: dict[str, Blocks] = {
        name: module for name, module in lists.items() if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    }
    outer = {name: module for name, module in alike.items() if not any(name.startswith(f"{other}.") for other in alike)}
    if not outer:
        raise TargetError(f"This model has no nn.ModuleList of alike blocks; name one with path=... Lists here: {_named(lists)}.")
    most = max(len(module) for module in outer.values())
    longest = {name: module for name, module in outer.items() if len(module) == most}
    if len(longest) > 1:
        raise TargetError(f"Which are the blocks? {_named(longest)} are equally long; name one with path=...")
    return next(iter(longest.items()))


def _named(lists: dict[str, Blocks]) -> str:
    return ", ".join(f"{name!r} ({len(module)})" for name, module in lists.items()) or "none"


def refuse(model: nn.Module) -> None:
    """Refuse a model whose own weights cannot be trained a few blocks at a time.

    Raises:
        StepError: it is spread over devices or processes.
        TargetError: an adapter is on it, or a weight is quantised.
    """
    if is_initialized() and AcceleratorState().distributed_type is DistributedType.DEEPSPEED:
        raise StepError(
            "DeepSpeed decides at its start which parameters are trained, and holds them in partitions of its own, so no blocks can be "
            "frozen and unfrozen. Train on one device without it."
        )
    for module in model.modules():
        if isinstance(module, DistributedDataParallel | DataParallel | FullyShardedDataParallel):
            raise StepError(
                f"{type(module).__name__} decides at its start which parameters have gradients, and LISA changes that while it trains. "
                "Train on one device, without that wrapper."
            )
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise StepError(
            f"There are {torch.distributed.get_world_size()} processes; what exchanges their gradients (DDP, FSDP) decides at its start "
            "which parameters have some, and LISA changes that while it trains. Train in one process."
        )
    if has_adapter(model):
        raise TargetError("There is an adapter on the model, and LISA trains the model's own weights: give it without.")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise StepError(f"{name!r} is sharded over processes (FSDP2), which LISA has not been tried with. Train in one process.")
        if type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor or not _trains(parameter.dtype):
            raise TargetError(
                f"{name!r} is quantised ({parameter.dtype}), and LISA trains the model's own weights. Load it in bfloat16 or float32, or "
                "train an adapter."
            )


def _trains(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize >= 2


def outside(model: nn.Module, path: str) -> list[tuple[nn.Module, nn.Parameter]]:
    """The parameters that lie outside of the blocks, each with the module that it lies in."""
    return [
        (module, parameter)
        for name, module in model.named_modules()
        if name != path and not name.startswith(f"{path}.")
        for parameter in module.parameters(recurse=False)
    ]


def own(model: nn.Module, path: str, blocks: Blocks) -> list[list[nn.Parameter]]:
    """The trainable parameters of each block; what is tied to something outside of the blocks is no block's own."""
    others = {id(parameter) for _, parameter in outside(model, path)}
    return [[item for item in block.parameters() if item.requires_grad and id(item) not in others] for block in blocks]


def embeddings(model: nn.Module, path: str) -> Iterator[nn.Parameter]:
    """The trainable weights of the embeddings outside of the blocks."""
    for module, parameter in outside(model, path):
        if isinstance(module, nn.Embedding) and parameter.requires_grad:
            yield parameter
