"""Looking into an adapted model: its adapters, their slots, methods and fully trained heads."""

from __future__ import annotations

from peft import TaskType
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from paring.attach.config import ParingConfig
from paring.attach.layer import ParingLinear
from paring.core.adapter import Adapter, Metadata
from paring.core.errors import TargetError, near
from paring.method import Method
from paring.parts.parameterise.base import Slot

PEFT_PREFIX = "base_model.model."


def layers(model: nn.Module) -> dict[str, ParingLinear]:
    """The adapted modules by their path in the base model; a module that is shared appears once."""
    return {module.shape.path: module for module in model.modules() if isinstance(module, ParingLinear)}


def adapters(model: nn.Module) -> list[str]:
    """The names of the adapters on a model, in the order they were attached."""
    return list(dict.fromkeys(name for layer in layers(model).values() for name in layer.paring_slot))


def slots(model: nn.Module, adapter: str | None = None) -> dict[str, Slot]:
    """The slots of one adapter by module path.

    Args:
        model: anything that holds the adapted modules: a PeftModel, the model inside it, a wrapper around it.
        adapter: its name; ``None`` takes the first slot of each module.

    Raises:
        TargetError: no adapter of that name, with near names.
    """
    found: dict[str, Slot] = {}
    for path, layer in layers(model).items():
        name = adapter if adapter is not None else next(iter(layer.paring_slot), None)
        slot = layer.slot(name) if name is not None else None
        if slot is not None:
            found[path] = slot
    if not found:
        names = adapters(model)
        if not names:
            raise TargetError("This model has no paring adapter; attach one with paring.adapt(model, SoRA(...)).")
        raise TargetError(f"There is no adapter {adapter!r} on this model, only {', '.join(map(repr, names))}.{near(str(adapter), names)}")
    return found


def config_of(model: nn.Module, adapter: str = "default") -> ParingConfig:
    """The configuration of one adapter.

    Raises:
        TargetError: the model carries no such configuration.
    """
    for module in model.modules():
        held = vars(module).get("peft_config")
        if isinstance(held, dict) and isinstance(held.get(adapter), ParingConfig):
            config = held[adapter]
            assert isinstance(config, ParingConfig)
            return config
    raise TargetError(f"There is no paring adapter {adapter!r} on this model; it has {adapters(model) or 'none'}.")


def method_of(model: nn.Module, adapter: str = "default") -> Method:
    """The method that one adapter was attached with."""
    method = config_of(model, adapter).method
    assert isinstance(method, Method)
    return method


def heads(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """Detached copies of the fully trained modules (``modules_to_save``), by tensor name in the base model."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            path = name.removeprefix(PEFT_PREFIX)
            for key, value in module.modules_to_save[adapter].state_dict().items():
                found[f"{path}.{key}"] = value.detach().clone()
    return found


def transposed(model: nn.Module) -> frozenset[str]:
    """The paths of adapted modules that store their weight as (in, out), as GPT-2's Conv1D does."""
    return frozenset(path for path, layer in layers(model).items() if isinstance(layer.get_base_layer(), Conv1D))


def module_names(model: nn.Module) -> list[str]:
    """All module paths of the base model as it is without adapters."""
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, ParingLinear | ModulesToSaveWrapper))
    names = [name for name, _ in model.named_modules() if not name.startswith(inside)]
    return [name.removeprefix(PEFT_PREFIX) for name in names if name.startswith(PEFT_PREFIX) or not name.startswith("base_model")]


def snapshot(model: nn.Module, adapter: str = "default") -> Adapter:
    """The adapter as a frozen value: a detached copy of every module's factors, and of the trained heads, on the CPU.

    Raises:
        TargetError: the model has no such adapter.
        AdapterError: a factor holds NaN or infinity.
    """
    config = config_of(model, adapter)
    return Adapter(
        modules={path: slot.factors().to(device="cpu") for path, slot in slots(model, adapter).items()},
        heads={name: tensor.cpu() for name, tensor in heads(model, adapter).items()},
        metadata=Metadata(
            base_model=config.base_model_name_or_path,
            revision=config.revision,
            task_type=None if config.task_type is None else TaskType(config.task_type).value,
            method=method_of(model, adapter).encode(),
            fan_in_fan_out=transposed(model),
        ),
    )
