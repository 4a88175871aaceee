"""The one way in for starts that need a gradient: look at a few batches before training begins."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from paring.attach.find import config_of, layers, slots
from paring.attach.layer import ParingLinear
from paring.attach.model import start_generator
from paring.attach.shapes import dense_weight
from paring.core.coding import positive_int
from paring.core.errors import SettingError
from paring.core.linalg import finite
from paring.parts.parameterise.base import Source
from paring.parts.parameterise.waiting import Waiting


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    adapter: str = "default",
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    memory: int = 2**30,
) -> dict[str, float]:
    r"""Give an adapter its start from the gradient of the frozen weights, :math:`G = \frac 1 N \sum_n \partial\mathcal L_n / \partial W`.

    The gradients of all weights together would take as much memory as full fine-tuning. So modules take turns: each pass over the batches
    forms :math:`G = \sum dY^\top X` of as many modules as fit into ``memory``, and gives them their start; more memory means fewer passes.
    The gradients are those of the model without adapters, in evaluation mode (without dropout), with the heads that this one trains;
    nothing of the model changes but the adapter's start. Where several processes train together each brings batches of its own, and the
    mean is taken.

    Args:
        model: a model with an adapter whose method starts from a gradient.
        batches: a few batches of the training data, as the training will see them; they are read once and kept.
        adapter: the adapter's name.
        loss: the loss of the model on a batch; by default ``model(**batch).loss``, with the batch moved to the model's device.
        memory: bytes of gradients that may be held at a time, at least one module's.

    Returns:
        The Frobenius norm of each module's gradient, by module path.

    Raises:
        SettingError: there is nothing to calibrate, no batch, or no loss, or the loss or a gradient is not finite.
        TargetError: the model has no such adapter.
    """
    positive_int("memory", memory)
    waiting = _waiting(model, adapter)
    kept = list(batches)
    if not kept:
        raise SettingError("batches is empty: give a few batches of the training data, [next(loader) for _ in range(8)].")
    seed = config_of(model, adapter).seed
    assert seed is not None
    norms: dict[str, float] = {}
    for group in _groups(waiting, memory):
        for path, gradient in gradients(model, adapter, group, kept, loss or _own_loss).items():
            slot = group[path].slot(adapter)
            assert slot is not None
            norms[path] = float(gradient.norm())
            if slot.wants is Source.SALIENCE:
                gradient = gradient * dense_weight(path, group[path].get_base_layer()).to(gradient)
            slot.begin(gradient, start_generator(seed, group[path].shape))
    still = [path for path, norm in norms.items() if not norm]
    if still:
        warnings.warn(
            f"{len(still)} of {len(norms)} modules have no gradient in these batches (first: {still[0]!r}): their start is arbitrary. "
            "Give more batches, or leave the modules out with exclude_modules.",
            stacklevel=2,
        )
    return norms


def _waiting(model: nn.Module, adapter: str) -> dict[str, ParingLinear]:
    found = {
        path: slot
        for path, slot in slots(model, adapter).items()
        if isinstance(slot, Waiting) and slot.source is not None and slot.source.calibrated
    }
    if not found:
        raise SettingError(f"The method of adapter {adapter!r} needs no calibration: its start is there already. Leave the call out.")
    begun = [path for path, slot in found.items() if slot.has_begun]
    if begun:
        raise SettingError(
            f"The adapter {adapter!r} has its start already ({len(begun)} modules, first: {begun[0]!r}); a new one would throw its "
            "training away. Attach a fresh adapter to start anew."
        )
    return {path: layer for path, layer in layers(model).items() if path in found}


def _groups(waiting: Mapping[str, ParingLinear], memory: int) -> Iterator[dict[str, ParingLinear]]:
    """The modules in their order, as many at a time as fit."""
    group: dict[str, ParingLinear] = {}
    used = 0
    for path, layer in waiting.items():
        size = 4 * layer.shape.in_features * layer.shape.out_features
        if group and used + size > memory:
            yield group
            group, used = {}, 0
        group[path] = layer
        used += size
    if group:
        yield group


def gradients(
    model: nn.Module, adapter: str, group: Mapping[str, ParingLinear], batches: Sequence[Any], loss: Callable[[nn.Module, Any], Tensor]
) -> dict[str, Tensor]:
    """The mean gradient of each module's weight, float32 at least, (out, in), of the model without adapters but with one's heads.

    Args:
        model: stays as it is.
        adapter: whose heads.
        group: the modules, by path.
        batches: what the mean is over.
        loss: of the model on a batch.

    Raises:
        SettingError: a loss or a gradient is not finite.
    """
    sums: dict[str, Tensor] = {}
    handles = [layer.get_base_layer().register_forward_hook(_watcher(path, sums)) for path, layer in group.items()]
    try:
        with _plain(model, adapter), torch.enable_grad():
            for number, batch in enumerate(batches):
                value = loss(model, batch)
                if not bool(torch.isfinite(value.detach()).all()):
                    raise SettingError(f"The loss on batch {number} is {value.detach()}: look for empty or broken examples.")
                if value.requires_grad:
                    value.backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    for path, layer in group.items():
        if path not in sums:
            weight = next(layer.get_base_layer().parameters())
            sums[path] = torch.zeros(layer.shape.out_features, layer.shape.in_features, device=weight.device)
        sums[path] /= len(batches)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums[path])
            sums[path] /= dist.get_world_size()
        if not finite(sums[path]):
            raise SettingError(f"The gradient of {path!r} is not finite: calibrate in bfloat16 or float32, or look for broken examples.")
    return sums


def _watcher(path: str, sums: dict[str, Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
    """A hook on a frozen linear that adds up the gradient that its weight would have; the weight may be of any type."""

    def watch(_: nn.Module, args: Any, y: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        x = args[0].detach()
        # Where nothing before it is differentiated, the graph begins here.
        watched = y if y.requires_grad else y.detach().requires_grad_()

        @torch.no_grad()
        def arrived(dy: Tensor) -> None:
            dtype = torch.promote_types(dy.dtype, torch.float32)
            with torch.autocast(dy.device.type, enabled=False):
                found = dy.reshape(-1, dy.shape[-1]).to(dtype).T @ x.reshape(-1, x.shape[-1]).to(dtype)
            sums[path] = sums[path] + found if path in sums else found

        watched.register_hook(arrived)  # type: ignore[no-untyped-call]
        return watched

    return watch


@contextmanager
def _plain(model: nn.Module, adapter: str) -> Iterator[None]:
    """The model without adapters but with one's heads, in evaluation mode, and nothing collects gradients; afterwards as it was."""
    modes = {module: module.training for module in model.modules()}
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    disabled = {layer: layer._disable_adapters for layer in layers(model).values()}
    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save]
    heads = [(wrapper, wrapper._active_adapter) for wrapper in wrappers]
    try:
        model.eval()
        for wrapper in wrappers:
            wrapper._active_adapter = [adapter]
        for parameter in wanted:
            parameter.requires_grad_(False)
        for layer in disabled:
            layer._disable_adapters = True
        yield
    finally:
        for wrapper, active in heads:
            wrapper._active_adapter = active
        for layer, was in disabled.items():
            layer._disable_adapters = was
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    if not isinstance(batch, Mapping):
        raise SettingError(
            f"A batch is a {type(batch).__name__}, not a mapping of the model's arguments; give loss=lambda model, batch: ..."
        )
    device = next(model.parameters()).device
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    result = model(**moved)
    found = result.get("loss") if isinstance(result, Mapping) else vars(result).get("loss")
    if not isinstance(found, Tensor):
        raise SettingError("The model gives no loss on these batches: put labels into them, or give loss=lambda model, batch: ...")
    return found
