"""Looking into an adapted model: its adapters, their slots, methods and fully trained heads."""

from __future__ import annotations

from collections.abc import Iterator

from accelerate.utils import extract_model_from_parallel
from peft import PeftModel, TaskType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from paring.attach.config import ParingConfig
from paring.attach.layer import ParingLinear
from paring.core.adapter import Adapter, Metadata
from paring.core.entries import Entries
from paring.core.errors import TargetError, near
from paring.core.factors import Factors, whole
from paring.method import Method
from paring.parts.parameterise.base import Slot


def root(model: nn.Module) -> nn.Module:
    """The base model with the adapted modules in it, whatever is wrapped around it: PEFT, DDP, ``torch.compile``."""
    model = extract_model_from_parallel(model, keep_fp32_wrapper=True, keep_torch_compile=False)
    if isinstance(model, PeftModel):
        model = model.base_model
    return model.model if isinstance(model, BaseTuner) else model


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
        raise _missing(model, adapter)
    return found


def _missing(model: nn.Module, adapter: str | None) -> TargetError:
    """The error for an adapter that is not there: which ones are, and the argument that asks for them."""
    names = adapters(model)
    if not names:
        return TargetError("This model has no paring adapter; attach one with paring.adapt(model, SoRA(...)).")
    there, ask = ", ".join(map(repr, names)), " or ".join(f"adapter={name!r}" for name in names)
    return TargetError(f"There is no adapter {adapter!r} on this model, only {there}.{near(str(adapter), names)} Pass {ask}.")


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
    raise _missing(model, adapter)


def method_of(model: nn.Module, adapter: str = "default") -> Method:
    """The method that one adapter was attached with."""
    method = config_of(model, adapter).method
    assert isinstance(method, Method)
    return method


def heads(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """Detached copies of the fully trained modules (``modules_to_save``), by tensor name in the base model."""
    found: dict[str, Tensor] = {}
    for path, module in root(model).named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            for key, value in module.modules_to_save[adapter].state_dict().items():
                found[f"{path}.{key}"] = whole(value).clone()
    return found


def head_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter of the modules that are trained fully beside an adapter (``modules_to_save``), with the adapter's name.

    Adapters of PEFT's own have them too.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for name, head in module.modules_to_save.items():
                for parameter in head.parameters():
                    yield name, parameter


def has_adapter(model: nn.Module) -> bool:
    """Whether some module carries an adapter, of paring's or of PEFT's own."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def transposed(model: nn.Module) -> frozenset[str]:
    """The paths of adapted modules that store their weight as (in, out), as GPT-2's Conv1D does."""
    return frozenset(path for path, layer in layers(model).items() if isinstance(layer.get_base_layer(), Conv1D))


def module_names(model: nn.Module) -> list[str]:
    """All module paths of the base model as it is without adapters."""
    base = root(model)
    inside = tuple(f"{name}." for name, module in base.named_modules() if isinstance(module, ParingLinear | ModulesToSaveWrapper))
    return [name for name, _ in base.named_modules() if not name.startswith(inside)]


def sharded(model: nn.Module) -> bool:
    """Whether parameters lie in shards on several processes (FSDP2)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def snapshot(model: nn.Module, adapter: str = "default") -> Adapter:
    """The adapter as a frozen value: a detached copy of every module's factors or entries, and of the trained heads, on the CPU.

    Shards are gathered, so under FSDP2 every process must call it.

    Raises:
        TargetError: the model has no such adapter.
        AdapterError: a factor holds NaN or infinity.
    """
    config = config_of(model, adapter)
    found = slots(model, adapter)
    updates = {path: slot.delta().to(device="cpu") for path, slot in found.items()}
    return Adapter(
        modules={path: update for path, update in updates.items() if isinstance(update, Factors)},
        entries={path: update for path, update in updates.items() if isinstance(update, Entries)},
        magnitudes={path: whole(slot.magnitude).cpu().clone() for path, slot in found.items() if slot.magnitude is not None},
        heads={name: tensor.cpu() for name, tensor in heads(model, adapter).items()},
        metadata=Metadata(
            base_model=config.base_model_name_or_path,
            revision=config.revision,
            task_type=None if config.task_type is None else TaskType(config.task_type).value,
            method=method_of(model, adapter).encode(),
            fan_in_fan_out=transposed(model),
        ),
    )
