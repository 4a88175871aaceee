"""Adding an adapter into its base model for good."""

from __future__ import annotations

import torch
from torch import nn

from paring.attach.shapes import linear_shape, plain_weight, promoted
from paring.core.adapter import Adapter
from paring.core.errors import AdapterError, TargetError, near
from paring.kernels.norms import directed


def check_fit(model: nn.Module, adapter: Adapter) -> None:
    """Refuse an adapter that belongs to another base model, by the names and shapes of its modules and heads.

    Raises:
        AdapterError: a module or head is missing or has other widths.
        TargetError: a module is not linear.
    """
    modules = dict(model.named_modules())
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for path, update in adapter.updates.items():
        if path not in modules:
            raise AdapterError(
                f"The adapter has an update for {path!r}, which this model lacks.{near(path, modules)} It belongs to another base model."
            )
        shape = linear_shape(path, modules[path])
        if (shape.in_features, shape.out_features) != (update.in_features, update.out_features):
            raise AdapterError(
                f"Module {path!r} is {shape.in_features} -> {shape.out_features}, but the adapter's update is "
                f"{update.in_features} -> {update.out_features}: it was trained on another base model."
            )
    for name, tensor in adapter.heads.items():
        if name not in own or own[name].shape != tensor.shape:
            found = f"shape {tuple(own[name].shape)}" if name in own else "none"
            raise AdapterError(f"The adapter's head {name!r} has shape {tuple(tensor.shape)}, the model has {found}; check num_labels.")


def check_shared(model: nn.Module, adapter: Adapter) -> None:
    """Refuse weights that must not be changed: quantised, sharded, or another module's as well.

    Raises:
        TargetError: names the module and the other one.
    """
    modules = dict(model.named_modules())
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    for path in adapter.updates:
        weight, _ = plain_weight(path, modules[path])
        others = [name for name in shared[id(weight)] if name != f"{path}.weight"]
        if others:
            raise TargetError(
                f"Cannot fuse into {path!r}: {others[0]!r} shares its weight. Load the base model with tie_word_embeddings=False."
            )


@torch.no_grad()
def fuse_into(model: nn.Module, adapter: Adapter) -> nn.Module:
    """Add every update into its weight and replace the heads. Everything is checked before the first weight changes."""
    check_fit(model, adapter)
    check_shared(model, adapter)
    modules = dict(model.named_modules())
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for path, update in adapter.updates.items():
        weight, transposed = plain_weight(path, modules[path])
        kind = promoted(weight)
        delta = update.prune().to(device=weight.device).materialise(kind)
        total = (weight.T if transposed else weight).to(kind) + delta
        if path in adapter.magnitudes:
            total = directed(total, adapter.magnitudes[path])
        weight.copy_((total.T if transposed else total).to(weight.dtype))
    for name, tensor in adapter.heads.items():
        own[name].copy_(tensor)
    return model
