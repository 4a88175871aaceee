"""Parameter groups: factors and heads as Trainer groups them, gates and, if asked for, heads in groups of their own at their own rate."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from paring.attach.find import adapters, head_parameters, method_of
from paring.core.coding import number
from paring.core.errors import StepError, TargetError, near
from paring.method import Rate
from paring.parts.parameterise.base import Role
from paring.step import check
from paring.train.look import every_slot, nothing_to_train

NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Parameters that take no weight decay in transformers' Trainer, beside those inside an ``nn.LayerNorm``: regular expressions
that are searched in the lower-cased name."""

FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
"""Optimizers with a fused implementation."""

DEVICES = ("cpu", "cuda")
"""Where all of them have it."""

CHOICES = ("fused", "foreach", "capturable", "differentiable")
"""Arguments that choose an implementation."""

_PLAIN = Rate()


def _rates(model: nn.Module) -> dict[int, tuple[str, Role, Rate]]:
    """Adapter, role and rate of every slot's parameter, by its id."""
    known: dict[int, tuple[str, Role, Rate]] = {}
    wanted = {name: method_of(model, name).rates() for name in adapters(model)}
    for name, _, slot in every_slot(model):
        for _, parameter, role in slot.roles():
            rate = wanted[name].get(role, _PLAIN)
            # Factors that are stepped alike are in one group.
            known[id(parameter)] = (name, Role.FACTOR if role.factor and rate == _PLAIN else role, rate)
    return known


def _heads(model: nn.Module, lr: float) -> dict[int, tuple[str, Role, Rate]]:
    """The same of every parameter of a head that is trained."""
    number("head_lr", lr, low=0.0, open_low=True)
    rate = Rate(fixed=float(lr))
    found = {id(parameter): (name, Role.HEAD, rate) for name, parameter in head_parameters(model) if parameter.requires_grad}
    if not found:
        raise TargetError(
            f"A learning rate of {lr:g} is given for heads, and no module is trained fully beside an adapter. Leave the rate out, or "
            "attach the adapter with a task_type that has a head, or with modules_to_save."
        )
    return found


def _decaying(model: nn.Module, no_decay: Sequence[str]) -> Iterator[tuple[nn.Parameter, bool]]:
    """Every trainable parameter once, and whether it takes weight decay by Trainer's rule."""
    patterns = [re.compile(pattern) for pattern in no_decay]
    norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.LayerNorm))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield parameter, not name.startswith(norms) and not any(pattern.search(name.lower()) for pattern in patterns)


def parameter_groups(
    model: nn.Module,
    *,
    lr: float | Tensor,
    weight_decay: float = 0.0,
    adapter: str | None = None,
    no_decay: Sequence[str] = NO_DECAY,
    betas: Sequence[float] = (0.9, 0.999),
    head_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Every trainable parameter in a group that steps it as its method asks.

    Give them to an optimizer before a scheduler is built on it: schedulers multiply the rate that a group had at that time, so
    one schedule then scales all groups alike.

    Args:
        model: a model with a paring adapter.
        lr: the main learning rate; a role that the method gives a rate of its own gets that, or its multiple of this one.
        weight_decay: of factors and heads, but for biases and norms; gates get none.
        adapter: leave out the parameters of the other adapters; ``None`` takes all that are trainable.
        no_decay: regular expressions, searched in the lower-cased name, of what takes no weight decay.
        betas: the optimizer's own betas, of which a method may change the first two for its gates.
        head_lr: the learning rate of what is trained fully beside the adapter (``modules_to_save``), a task's new head above all; ``None``
            takes the main one.

    Returns:
        Group dictionaries with ``params``, ``lr``, ``weight_decay``, ``role`` ("factor", for heads at the main rate too, "up" for the
        factors B of a method that steps them at a rate of their own, "gate", or "head"), a ``name``: "decay", "no_decay", "up", "gates",
        "heads", and ``betas`` where the method asks for them. Empty groups are left out.

    Raises:
        SettingError: a rate or a decay that is no finite number of at least 0.
        TargetError: the model has no paring adapter, none of that name, or nothing to train; or a rate is given for heads, and it has none.
    """
    number("lr", float(lr) if isinstance(lr, Tensor) else lr, low=0.0)
    number("weight_decay", weight_decay, low=0.0)
    names = adapters(model)
    if adapter is not None and adapter not in names:
        raise TargetError(f"There is no adapter {adapter!r} on this model, only {', '.join(map(repr, names))}.{near(adapter, names)}")
    known = _rates(model) | ({} if head_lr is None else _heads(model, head_lr))
    found: dict[tuple[str, Role, Rate, float], list[nn.Parameter]] = {}
    for parameter, decays in _decaying(model, no_decay):
        owner, role, rate = known.get(id(parameter), (adapter, Role.FACTOR, _PLAIN))
        if adapter is not None and owner != adapter:
            continue
        decay = rate.decay if rate.decay is not None else weight_decay if decays else 0.0
        name = _name(role) if role is not Role.FACTOR else "decay" if decays else "no_decay"
        found.setdefault((name, role, rate, decay), []).append(parameter)
    if not found:
        raise nothing_to_train()
    # Factors first: what is logged as "the learning rate" is the first group's.
    order = sorted(found, key=lambda key: (key[1] is not Role.FACTOR, key[0]))
    return [
        {
            "params": found[key],
            "lr": _own(lr, key[2]),
            "weight_decay": key[3],
            "role": key[1].value,
            "name": key[0],
            **_betas(key[2], betas),
        }
        for key in order
    ]


def create_optimizer(
    model: nn.Module,
    optimizer_class: type[Optimizer] = torch.optim.AdamW,
    *,
    lr: float | Tensor,
    weight_decay: float = 0.0,
    adapter: str | None = None,
    head_lr: float | None = None,
    **kwargs: Any,
) -> Optimizer:
    """An optimizer over :func:`parameter_groups`.

    >>> optimizer = create_optimizer(model, lr=1e-3, weight_decay=0.01)   # doctest: +SKIP

    Args:
        model: a model with a paring adapter.
        optimizer_class: any ``torch.optim`` optimizer that takes parameter groups.
        lr: the main learning rate.
        weight_decay: of factors and heads.
        adapter: leave out the parameters of the other adapters.
        head_lr: the learning rate of a task's head, and of all else that is trained fully beside the adapter; ``None`` takes the main one.
        kwargs: passed on to the optimizer. Where none of them chooses an implementation, torch's fused one is taken if there is one for
            these parameters, as Trainer does: an adapter is many small tensors, and a loop over them costs more than their arithmetic.

    Raises:
        SettingError: as :func:`parameter_groups`.
        StepError: the optimizer takes no vectors (Muon) or no groups (LBFGS), or its rate is not the length of its step.
        TargetError: as :func:`parameter_groups`.
    """
    betas = kwargs.get("betas", _default(optimizer_class, "betas"))
    more = {} if betas is None else {"betas": betas}
    groups = parameter_groups(model, lr=lr, weight_decay=weight_decay, adapter=adapter, head_lr=head_lr, **more)
    build: Callable[..., Optimizer] = optimizer_class
    if _can_fuse(optimizer_class, kwargs, groups):
        kwargs["fused"] = True
    try:
        optimizer = build(groups, lr=lr, **kwargs)
    except ValueError as error:
        raise StepError(
            f"{optimizer_class.__name__} does not take these parameters: {str(error).rstrip('.')}. The gates are vectors, in a group of "
            "their own. Give it the groups of parameter_groups(model, ...) that it takes, "
            "and the rest, gates included, to a second optimizer such as AdamW."
        ) from error
    for group in optimizer.param_groups:
        if group.get("role") == Role.GATE.value:
            check(optimizer, group)
    return optimizer


def separate(optimizer: Optimizer, model: nn.Module) -> None:
    """Move the gates of a fresh optimizer into groups of their own, with the rate and decay that their method asks for.

    Everything else about the groups stays as it was, so whatever built them (Trainer's layer-wise, 8-bit or low-rank optimizers)
    keeps its say. To be called before the first step and before a scheduler is built.
    """
    known = _rates(model)
    _move(optimizer, {key: value for key, value in known.items() if value[2] != _PLAIN or value[1] is Role.GATE})


def separate_heads(optimizer: Optimizer, model: nn.Module, *, lr: float) -> None:
    """Move what is trained fully beside the adapter into groups of its own with this learning rate; for PEFT's own adapters too.

    A new head starts from nothing, and a rate that the factors of a pre-trained model can bear may be far too small for it. Everything else
    about the groups stays as it was. To be called before the first step and before a scheduler is built.

    Args:
        optimizer: fresh.
        model: with an adapter.
        lr: the heads' learning rate.

    Raises:
        SettingError: no finite number above 0.
        TargetError: nothing is trained fully beside an adapter.
    """
    _move(optimizer, _heads(model, lr))


def _move(optimizer: Optimizer, special: Mapping[int, tuple[str, Role, Rate]]) -> None:
    """Give these parameters, by their id, groups of their own."""
    if isinstance(optimizer, LayerWiseDummyOptimizer):
        # Trainer's layer-wise optimizers: one real optimizer for each parameter, stepped as its gradient arrives.
        for own in optimizer.optimizer_dict.values():
            _move(own, special)
        return
    for group in list(optimizer.param_groups):
        group.setdefault("role", Role.FACTOR.value)
        moved: dict[tuple[Role, Rate], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if id(parameter) in special:
                moved.setdefault(special[id(parameter)][1:], []).append(parameter)
        if not moved:
            continue
        settings = {key: value for key, value in group.items() if key != "params"}
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in special]
        for (role, rate), parameters in moved.items():
            changed = {
                **settings,
                "params": parameters,
                "lr": _own(settings["lr"], rate),
                "role": role.value,
                "name": _name(role),
            }
            if rate.decay is not None:
                changed["weight_decay"] = rate.decay
            if "betas" in settings:
                changed |= _betas(rate, settings["betas"])
            if group["params"]:
                optimizer.add_param_group(changed)
            else:
                group.update(changed)


def _name(role: Role) -> str:
    return "up" if role is Role.UP else f"{role.value}s"


def _own(lr: float | Tensor, rate: Rate) -> float | Tensor:
    """The learning rate that a role asks for; a tensor of its own for each group, since schedulers write into it."""
    if isinstance(lr, Tensor):
        return lr * rate.multiple if rate.fixed is None else torch.full_like(lr, rate.fixed)
    return lr * rate.multiple if rate.fixed is None else rate.fixed


def _betas(rate: Rate, betas: Sequence[float]) -> dict[str, tuple[float, ...]]:
    """The betas with the first two as a role asks for them; optimizers without betas leave the key unread."""
    return {} if rate.memory is None else {"betas": (rate.memory, rate.memory, *betas[2:])}


def _can_fuse(optimizer_class: type[Optimizer], kwargs: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether torch has a fused implementation of this very optimizer for these parameters, and the caller has not chosen another."""
    if optimizer_class not in FUSED or not kwargs.keys().isdisjoint(CHOICES):
        return False
    parameters = [parameter for group in groups for parameter in group["params"]]
    # Sharded parameters have a fused step for some of these optimizers only.
    return all(
        type(parameter) is nn.Parameter and parameter.is_floating_point() and parameter.device.type in DEVICES for parameter in parameters
    )


def _default(optimizer_class: Callable[..., Optimizer], name: str) -> Any:
    """What an optimizer takes for an argument that is not given; ``None`` where its signature does not say."""
    try:
        found = inspect.signature(optimizer_class).parameters.get(name)
    except (TypeError, ValueError):
        return None
    return None if found is None or found.default is inspect.Parameter.empty else found.default
