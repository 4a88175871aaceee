"""Which modules an adapter gets: PEFT's own matching, and every name and pattern checked before anything has changed."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from accelerate.hooks import AlignDevicesHook
from peft import TaskType
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import ParametrizationList

from paring.attach.config import ParingConfig
from paring.attach.layer import ParingLinear
from paring.attach.shapes import linear_shape
from paring.core.errors import TargetError, near
from paring.core.heads import IMPLIED

_SHOWN = 3
_LEFT_OUT = {
    "modules_to_save": "trained in full already (the task's head, or modules_to_save)",
    "layers_to_transform": "outside of layers_to_transform",
    "exclude_modules": "in exclude_modules",
}
"""What keeps modules that ``target_modules`` matches from being adapted, by the setting of the configuration."""


def find_targets(config: ParingConfig, model: nn.Module) -> dict[str, nn.Module]:
    """The modules that PEFT will adapt, by its own rule; ``"all-linear"`` becomes the names that it stands for.

    Raises:
        TargetError: a name matches nothing (near names are shown), a pattern is none, no module is left, or one cannot be adapted.
    """
    _check_patterns(config)
    inside = _inside_layers(model)
    modules = {name: module for name, module in model.named_modules() if name and not name.startswith(inside)}
    # An adapter that is loaded for inference may be put on a model that lacks what mattered in training, such as another head.
    if not config.inference_mode:
        _check_others(config, modules)
    given = config.target_modules
    if given == "all-linear":
        _maybe_include_all_linear_layers(config, model)
        every = set(config.target_modules) - _left_out(config, model)
        # PEFT reads layers_to_transform for ends of names only, and these are whole.
        config.target_modules = {name for name in every if _in_layers(config, name)}
        if not every:
            raise TargetError("target_modules='all-linear' found no linear module to adapt in this model.")
        if not config.target_modules:
            raise TargetError(f"target_modules='all-linear' finds only what is left out: {_why(config, 'layers_to_transform', every)}.")
        if not config.inference_mode:
            _tell_of_experts(model)
    elif isinstance(given, set):
        _check_names(config, model, modules)
    found = {name: module for name, module in modules.items() if check_target_module_exists(config, name)}
    if not found:
        raise TargetError(_nothing(config, given, model, modules))
    _refuse_inside(config, model, found)
    return found


def _tell_of_experts(model: nn.Module) -> None:
    """Warn of experts that "all-linear" leaves out: tensors for all of a layer's experts, in no linear module.

    Most of the model's weights may lie there.
    """
    inside = _inside_layers(model)
    # Three dimensions and more than one in the first: neither a convolution's kernel, weight-normed or not, nor an embedding of positions.
    fused = {
        f"{path}.{name}".lstrip("."): parameter.numel()
        for path, module in model.named_modules()
        if not isinstance(module, _ConvNd | ParametrizationList) and not path.startswith(inside)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and parameter.shape[0] > 1
    }
    if fused:
        share = sum(fused.values()) / sum(parameter.numel() for parameter in model.parameters())
        more = f" and {len(fused) - _SHOWN} more" if len(fused) > _SHOWN else ""
        warnings.warn(
            f"target_modules='all-linear' leaves out {', '.join(list(fused)[:_SHOWN])}{more}: tensors of several experts each, which "
            f"paring does not adapt ({share:.0%} of the model's parameters). The linear modules are adapted.",
            stacklevel=2,
        )


def _check_patterns(config: ParingConfig) -> None:
    """Refuse what PEFT would hand to ``re`` and is no regular expression.

    Raises:
        TargetError: names the setting and the pattern.
    """
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        value = vars(config)[name]
        # In a list of targets or exclusions the names are no patterns; in the other two settings they are.
        patterns = [value] if isinstance(value, str) else value if name in ("modules_to_save", "layers_pattern") else ()
        for pattern in patterns or ():
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise TargetError(
                    f"{name}: {pattern!r} is no regular expression ({error}). Mend it, such as r'.*\\.query' for whole names, or give a "
                    "list of names of modules."
                ) from error


def _check_names(config: ParingConfig, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Refuse a target that names nothing, or only what is trained in full and would be passed over.

    Raises:
        TargetError: the first such name, with near ones.
    """
    for wanted in sorted(config.target_modules):
        matched = [name for name in modules if _ends(name, wanted)]
        if not matched:
            raise TargetError(
                f"target_modules names {wanted!r}, which matches no module.{near_module(wanted, modules)}{_known(config, model)}"
            )
        if not _adapted(config, matched, "modules_to_save"):
            raise TargetError(
                f"target_modules names {wanted!r}, which is {_LEFT_OUT['modules_to_save']} and needs no adapter. Leave it out of "
                "target_modules."
            )


def _check_others(config: ParingConfig, modules: Mapping[str, nn.Module]) -> None:
    """Refuse names of ``exclude_modules`` and ``modules_to_save`` that match nothing: a module would be adapted, or stay untrained.

    Raises:
        TargetError: the first such name, with near ones.
    """
    excluded = config.exclude_modules
    if isinstance(excluded, str) and excluded and not any(re.fullmatch(excluded, name) for name in modules):
        raise TargetError(
            f"exclude_modules={excluded!r} matches no module; a string is a regular expression for whole names, such as r'.*\\.query'. "
            f"Mend it, give a list of names, or leave it out.{near_module(excluded, modules)}"
        )
    names = () if excluded is None or isinstance(excluded, str) else excluded
    # Of the names that a task implies, PEFT adds those to modules_to_save that this model does not have, too.
    saved = set(config.modules_to_save or ()) - set(_implied(config))
    for setting, wanted, there in (
        *(("exclude_modules", name, any(_ends(module, name) for module in modules)) for name in sorted(names)),
        *(("modules_to_save", name, any(module.endswith(name) for module in modules)) for name in sorted(saved)),
    ):
        if not there:
            raise TargetError(
                f"{setting} names {wanted!r}, which matches no module.{near_module(wanted, modules)} Mend it, or leave it out."
            )


def _ends(name: str, wanted: str) -> bool:
    """Whether a module is meant by an entry of a list of targets or exclusions."""
    return name == wanted or name.endswith(f".{wanted}")


def near_module(wanted: str, modules: Iterable[str]) -> str:
    """Say which modules have names, or ends of names, that are close to one, as the end of an error sentence."""
    names = list(modules)
    return near(wanted, {name.rpartition(".")[2] for name in names} | set(names))


def _adapted(config: ParingConfig, names: Iterable[str], *settings: str, **changes: Any) -> list[str]:
    """Those of the names that ``target_modules`` matches while no other setting than these leaves any out."""
    alone = copy.copy(config)
    kept = {*settings, "layers_pattern"} if "layers_to_transform" in settings else {*settings}
    for name in {*_LEFT_OUT, "layers_pattern"} - kept:
        setattr(alone, name, None)
    for name, value in changes.items():
        setattr(alone, name, value)
    return [name for name in names if check_target_module_exists(alone, name)]


def _in_layers(config: ParingConfig, name: str) -> bool:
    """Whether a module lies in one of ``layers_to_transform``."""
    if config.layers_to_transform is None:
        return True
    # A name without a dot is whole, and in no layer.
    return "." in name and bool(_adapted(config, [name], "layers_to_transform", target_modules={name.rpartition(".")[2]}))


def _nothing(config: ParingConfig, given: Any, model: nn.Module, modules: Mapping[str, nn.Module]) -> str:
    """Why no module is left to adapt."""
    matched = _adapted(config, modules)
    if not matched:
        return f"No module matches target_modules={given!r}.{_known(config, model)}"
    lost = {setting: [name for name in matched if name not in _adapted(config, matched, setting)] for setting in _LEFT_OUT}
    why = "; ".join(_why(config, setting, names) for setting, names in lost.items() if names)
    return f"target_modules={given!r} matches only what is left out: {why}."


def _why(config: ParingConfig, setting: str, names: Iterable[str]) -> str:
    """Which modules a setting leaves out, and which layers there would have been."""
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    shown = f"{', '.join(map(repr, names[:_SHOWN]))}{more} {'is' if len(names) == 1 else 'are'} {_LEFT_OUT[setting]}"
    if setting == "modules_to_save":
        return shown
    layers = sorted({int(index[1]) for index in (re.search(r"\.(\d+)\.", name) for name in names) if index is not None})
    there = f" (they lie in layers {layers[0]} to {layers[-1]})" if setting == "layers_to_transform" and layers else ""
    return f"{shown} = {vars(config)[setting]!r}{there}"


def _inside_layers(model: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, ParingLinear))


def _left_out(config: ParingConfig, model: nn.Module) -> set[str]:
    """What "all-linear" does not mean: modules whose weight is read and that are never called, and those that are trained fully."""
    saved = _saved(config)
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, NonDynamicallyQuantizableLinear) or name.endswith(saved) or read_past(model, name)
    }


def read_past(model: nn.Module, path: str) -> bool:
    """Whether the module's parent reads its weight in evaluation and does not call it."""
    return isinstance(model.get_submodule(path.rpartition(".")[0]), nn.TransformerEncoderLayer)


def _saved(config: ParingConfig) -> tuple[str, ...]:
    """The ends of names of modules that PEFT trains fully: those asked for, and the head that the task implies."""
    return tuple({*(config.modules_to_save or ()), *_implied(config)})


def _implied(config: ParingConfig) -> tuple[str, ...]:
    """The names that the head of the task may have."""
    return IMPLIED.get("" if config.task_type is None else TaskType(config.task_type).value, ())


def _refuse_inside(config: ParingConfig, model: nn.Module, targets: Mapping[str, nn.Module]) -> None:
    """Refuse targets that would train and do nothing, or that would be wrapped twice.

    Raises:
        TargetError: a linear module that torch's fast path reads past, one that is trained fully, or one with two names.
    """
    saved = _saved(config)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for path, module in targets.items():
        parent = path.rpartition(".")[0]
        hook = vars(module).get("_hf_hook")
        if isinstance(hook, AlignDevicesHook) and hook.offload:
            raise TargetError(
                f"Module {path!r} is offloaded by accelerate: its weights come and go with each forward, so there is no device to train an "
                "adapter on. Load the model without offloading (no device_map that names the cpu or the disk), or quantised."
            )
        if read_past(model, path):
            raise TargetError(
                f"Module {path!r} lies in an nn.TransformerEncoderLayer, whose fast path reads its weight and does not call it in "
                "evaluation: an adapter there would be lost. Leave it out with exclude_modules."
            )
        if path.endswith(saved):
            raise TargetError(
                f"Module {path!r} is a target and would be trained fully as well: PEFT trains every module whose name ends with one of "
                f"{sorted(saved)} (modules_to_save and the head of the task). Leave it out of target_modules."
            )
        twice = [name for name in names[module] if name.rpartition(".")[0] != parent and not _same(model, name, path)]
        if twice:
            raise TargetError(
                f"Module {path!r} is also {twice[0]!r}: an adapter under one of its names would not be used under the other. "
                "Give the model two modules, or leave both out with exclude_modules."
            )


def _same(model: nn.Module, one: str, other: str) -> bool:
    """Whether two names of one module lead through one parent, so that a module put there is found by both."""
    first, second = one.rpartition("."), other.rpartition(".")
    return first[2] == second[2] and model.get_submodule(first[0]) is model.get_submodule(second[0])


def _known(config: ParingConfig, model: nn.Module) -> str:
    """The kinds of linear modules that the model has, for an error message."""
    kinds = set()
    inside = _inside_layers(model)
    for name, module in model.named_modules():
        if name and not name.startswith(inside):
            try:
                linear_shape(name, module)
            except TargetError:
                continue
            kinds.add(name.rpartition(".")[2])
    return f" Linear modules here end in: {', '.join(sorted(kinds))}." if kinds else ""
