"""What full training has changed in a model, as a LoRA on the model that it began with; whatever no LoRA can hold is named."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paring.attach.find import has_adapter
from paring.attach.shapes import linear_shape, plain
from paring.attach.targets import near_module, read_past
from paring.core.adapter import Adapter, Metadata
from paring.core.errors import TargetError, near
from paring.core.heads import IMPLIED
from paring.extract import extract
from paring.parts.allocate.target import Loss, Target

_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """A LoRA out of a fully tuned model, and what it lacks.

    Attributes:
        adapter: on the base model, with the heads that are carried whole.
        losses: what each of its modules has lost.
        dropped: tensors whose change was left out, with the norm of the change over the larger norm of the two: 1 where one is zero.
    """

    adapter: Adapter
    losses: Mapping[str, Loss]
    dropped: Mapping[str, float]


@torch.no_grad()
def extract_lora(
    base: nn.Module,
    tuned: nn.Module | Mapping[str, Tensor],
    target: Target,
    *,
    task_type: str | None = None,
    modules_to_save: str | Sequence[str] = (),
    drop_rest: bool = False,
    drawn: Collection[str] = (),
    base_model: str | None = None,
    seed: int = 0,
) -> Extraction:
    """Extract a LoRA out of a model that was trained in full, however that was done.

    The weights of all linear modules that have changed get one, up to the target (:func:`paring.extract.extract`). The head that the task
    implies and ``modules_to_save`` are carried whole. Everything else that has changed (embeddings, norms, biases) has no place in a LoRA.

    Args:
        base: the model before training, of the same class.
        tuned: the model after it, or its state.
        target: ``ToRank(rank=16)``, ``ToEnergy(share=0.9)`` or ``ToBudget(budget=Bytes(count=2_000_000))``.
        task_type: PEFT's task type; ``"SEQ_CLS"`` carries the classifier.
        modules_to_save: ends of names of modules to carry whole, such as ``["LayerNorm", "embed_tokens"]``.
        drop_rest: leave out what has no place, instead of refusing it. The adapter then lacks that part of the training.
        drawn: tensors that the base has not got on disk and that were drawn when it was loaded (``missing_keys`` of transformers' loading
            info), so that nothing may be relative to them.
        base_model: folder or hub id of the base, for the adapter's files; by default what it was loaded from.
        seed: of the sketches of large matrices.

    Returns:
        The adapter with its losses; stock PEFT loads its export onto the base model.

    Raises:
        TargetError: the two differ in more than values, nothing has changed, an adapter is on one of them, a weight is quantised, or
            something has changed that a LoRA cannot hold.
        AdapterError: a weight holds NaN or infinity.
        SettingError: the target is none.
    """
    state = _state(base, tuned)
    own = base.state_dict()
    whole = _wholes(base, modules_to_save, task_type)
    heads = {name: state[name].detach().cpu().clone() for name in own if _inside(name, whole)}
    linear = {path: module for path, module in _linear(base) if f"{path}.weight" in own and not _inside(path, whole)}
    _refuse_quantised(linear)
    kept = {path for path in linear if _on_disk(path, drawn) and own[f"{path}.weight"].shape == state[f"{path}.weight"].shape}
    held = _untied(base, kept)
    turned = {path for path in held if isinstance(linear[path], Conv1D)}
    weights = {f"{path}.weight" for path in held}
    rest = [name for name in own if name not in heads and name not in weights and (name in drawn or not _equal(own[name], state[name]))]
    _refuse_rest(rest, own, state, drawn, drop_rest)
    adapter, losses = extract(
        {path: _turned(own, path, turned) for path in held},
        {path: _turned(state, path, turned) for path in held},
        target,
        heads=heads,
        metadata=Metadata(
            base_model=base_model or (base.name_or_path or None if isinstance(base, PreTrainedModel) else None),
            task_type=task_type,
            fan_in_fan_out=frozenset(turned),
        ),
        seed=seed,
    )
    if not losses:
        more = f" What has changed was left out: {_named(rest)}." if rest else " Is it the same model twice?"
        raise TargetError(f"No weight of a linear module differs between the two models, so there is nothing to extract.{more}")
    return Extraction(adapter=adapter, losses=losses, dropped={name: _change(own[name], state[name]) for name in rest})


def _state(base: nn.Module, tuned: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors after training by their names in the base model.

    Raises:
        TargetError: they are of another model, or there is an adapter on one of the two.
    """
    for model, what in ((base, "base"), (tuned, "tuned")):
        if isinstance(model, nn.Module) and has_adapter(model):
            raise TargetError(
                f"There is an adapter on the {what} model; give it without (merge_and_unload() of PEFT adds one in for good)."
            )
    found: Mapping[str, Tensor] = tuned.state_dict() if isinstance(tuned, nn.Module) else tuned
    own = base.state_dict()
    # Files leave out all names but one of a tensor that has several.
    other = {name: next((same for same in names if same in found), name) for names in _ties(base) for name in names}
    full = {**{name: found[other[name]] for name in own if name in other and other[name] in found}, **found}
    for some, others, which in ((own, full, "base"), (full, own, "tuned")):
        for name in some:
            if name not in others:
                raise TargetError(
                    f"Only the {which} model has a tensor {name!r}.{near(name, others)} The two must be of one class and "
                    "configuration: load both alike."
                )
    return full


def _ties(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [same for same in names.values() if len(same) > 1]


def _wholes(model: nn.Module, names: str | Sequence[str], task_type: str | None) -> tuple[str, ...]:
    """The modules that are carried whole, by PEFT's rule: all whose names end so.

    Raises:
        TargetError: a name matches none.
    """
    given = (names,) if isinstance(names, str) else tuple(names)
    paths = [path for path, _ in model.named_modules() if path]
    for name in given:
        if not any(path.endswith(name) for path in paths):
            raise TargetError(
                f"modules_to_save names {name!r}, which matches no module.{near_module(name, paths)} Mend it, or leave it out."
            )
    ends = (*given, *IMPLIED.get(task_type or "", ()))
    return tuple(path for path in paths if path.endswith(ends)) if ends else ()


def _inside(name: str, modules: Collection[str]) -> bool:
    return name in modules or name.startswith(tuple(f"{path}." for path in modules))


def _linear(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules on which a LoRA does something."""
    for path, module in model.named_modules():
        try:
            linear_shape(path, module)
        except TargetError:
            continue
        if path and not read_past(model, path):
            yield path, module


def _refuse_quantised(linear: Mapping[str, nn.Module]) -> None:
    for path, module in linear.items():
        if not plain(module):
            raise TargetError(
                f"The weight of {path!r} ({type(module).__name__}) is quantised or sharded, and what training has added cannot be told "
                "from rounding. Load both models whole, in bfloat16 or float32."
            )


def _on_disk(path: str, drawn: Collection[str]) -> bool:
    """Whether a module has all its tensors from disk."""
    return not any(name.startswith(f"{path}.") for name in drawn)


def _untied(model: nn.Module, paths: set[str]) -> list[str]:
    """Those whose weight is no other module's, or only such modules' as are in the set too."""
    weights = {f"{path}.weight" for path in paths}
    tied = {name for same in _ties(model) if not weights.issuperset(same) for name in same}
    return [path for path, _ in model.named_modules() if path in paths and f"{path}.weight" not in tied]


def _turned(state: Mapping[str, Tensor], path: str, turned: Collection[str]) -> Tensor:
    weight = state[f"{path}.weight"]
    return weight.T if path in turned else weight


def _equal(before: Tensor, after: Tensor) -> bool:
    return before.shape == after.shape and torch.equal(before.to(after.device).double(), after.double())


def _change(before: Tensor, after: Tensor) -> float:
    first, second = before.to(after.device).double(), after.double()
    return float((second - first).norm() / max(float(first.norm()), float(second.norm())))


def _refuse_rest(
    rest: Sequence[str], own: Mapping[str, Tensor], state: Mapping[str, Tensor], drawn: Collection[str], drop_rest: bool
) -> None:
    """Refuse what has changed and is no weight of a linear module.

    Raises:
        TargetError: it may not be dropped, or it was not asked for.
    """
    lost = [name for name in rest if name in drawn or own[name].shape != state[name].shape]
    if lost:
        raise TargetError(
            f"The base model has no such tensors of its own, or of another shape: {_named(lost)}. Carry their modules whole, with "
            f"modules_to_save={_parents(lost)}."
        )
    if rest and not drop_rest:
        raise TargetError(
            f"Training has changed what a LoRA of linear modules cannot hold: {_named(rest)}. Leave that out with drop_rest=True "
            f"(--drop_rest), or carry modules whole with modules_to_save, such as {_parents(rest)}; biases of linear modules have no place."
        )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(map(repr, names[:_SHOWN]))}{more}"


def _parents(names: Sequence[str]) -> list[str]:
    """The last names of some of the modules that tensors lie in."""
    return list(dict.fromkeys(name.split(".")[-2] for name in names if "." in name))[:_SHOWN]
