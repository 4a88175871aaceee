"""What training asks of a model: the slots that are being trained, and how much of them is left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paring.attach.find import adapters, slots
from paring.core.errors import TargetError
from paring.core.factors import local, whole
from paring.parts.parameterise.base import Slot
from paring.parts.parameterise.gated import Gated


def every_slot(model: nn.Module) -> Iterator[tuple[str, str, Slot]]:
    """Each slot with its adapter's name and its module path.

    Raises:
        TargetError: the model has no paring adapter.
    """
    names = adapters(model)
    if not names:
        raise TargetError("This model has no paring adapter; attach one with paring.adapt(model, SoRA(...)).")
    for name in names:
        for path, slot in slots(model, name).items():
            yield name, path, slot


def outside(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter that is in no slot, with its name: the frozen model's, and the heads'."""
    inside = {id(parameter) for _, _, slot in every_slot(model) for parameter in slot.parameters()}
    return ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in inside)


def nothing_to_train() -> TargetError:
    """What to do about a model in which nothing is trainable."""
    return TargetError(
        "No parameter of this model is trainable; activate an adapter with model.set_adapter(name). What freezes a model after the adapter "
        "was attached freezes the adapter too, as PEFT's prepare_model_for_kbit_training does: call it before, or set_adapter after it."
    )


def trained(model: nn.Module) -> dict[str, Slot]:
    """The slots that are trained now, by module path; ``path (adapter)`` where several adapters are trained at once."""
    found = [item for item in every_slot(model) if any(parameter.requires_grad for parameter in item[2].parameters())]
    single = len({name for name, _, _ in found}) == 1
    return {path if single else f"{path} ({name})": slot for name, path, slot in found}


def gated(found: Mapping[str, Slot]) -> dict[str, Gated]:
    """Those of the slots that have a trainable gate."""
    return {path: slot for path, slot in found.items() if isinstance(slot, Gated) and slot.gate.requires_grad}


def is_finite(found: Iterable[Slot]) -> bool:
    """Whether no parameter of the slots holds NaN or infinity; one read on the host for each device."""
    sums: dict[torch.device, list[Tensor]] = {}
    for slot in found:
        for parameter in slot.parameters():
            value = local(parameter)
            # A sum is finite only if every entry is.
            sums.setdefault(value.device, []).append(value.detach().sum(dtype=torch.float32))
    return all(bool(torch.isfinite(torch.stack(values)).all()) for values in sums.values())


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How much of an adapter is left.

    Attributes:
        ranks: ranks held, dead ones included.
        live_ranks: ranks that are left.
        live_parameters: ``sum_m r_m (in_m + out_m)`` over the live ranks; gates are folded away and not counted.
        penalty: the penalty weight; the mean where slots differ, ``None`` without gates.
    """

    ranks: int
    live_ranks: int
    live_parameters: int
    penalty: float | None

    @property
    def sparsity(self) -> float:
        """Share of the ranks that are dead."""
        return 1.0 - self.live_ranks / self.ranks if self.ranks else 0.0

    def values(self) -> dict[str, float]:
        """As they are logged."""
        logged: dict[str, float] = {} if self.penalty is None else {"lambda": self.penalty}
        return {**logged, "live_ranks": self.live_ranks, "live_parameters": self.live_parameters, "sparsity": self.sparsity}


def tally(found: Mapping[str, Slot]) -> Tally:
    """Count what is left of some slots; one read on the host for each device."""
    gates: dict[torch.device, list[Gated]] = {}
    ranks = live_ranks = live_parameters = 0
    for slot in found.values():
        live_parameters += 0 if slot.magnitude is None else slot.magnitude.numel()
        if isinstance(slot, Gated):
            gates.setdefault(slot.gate.device, []).append(slot)
            continue
        update = slot.delta()
        ranks += update.rank
        live_ranks += update.live_rank
        live_parameters += update.parameters
    for group in gates.values():
        counts = torch.stack([torch.count_nonzero(whole(slot.gate)) for slot in group]).tolist()
        for slot, live in zip(group, counts, strict=True):
            ranks += slot.gate.numel()
            live_ranks += live
            live_parameters += live * (slot.A.shape[1] + slot.B.shape[0])
    penalties = [slot.penalty for group in gates.values() for slot in group]
    return Tally(
        ranks=ranks,
        live_ranks=live_ranks,
        live_parameters=live_parameters,
        # Where all are equal, that very number: a mean would round it.
        penalty=None if not penalties else penalties[0] if len(set(penalties)) == 1 else sum(penalties) / len(penalties),
    )
