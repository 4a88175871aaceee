"""The group lasso's proximal step on all slots of an adapter, taken by itself after each optimizer step: nothing to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from paring.core.errors import StepError
from paring.core.prox import Threshold, shrinkage
from paring.parts.parameterise.followed import Leader, follow
from paring.parts.parameterise.grouped import Grouped
from paring.parts.update.lasso import GroupLasso
from paring.parts.update.length import refuse


class Shrinker(Leader):
    r"""One adapter's factors in groups, each of which is shrunk as a whole, or set to zero.

    A group that is zero and has a gradient of zero stays so: only what the optimizer remembers of it, its momentum, could move it.
    That is so of every group that holds both factors of its modules, since :math:`dL/dA = s B^\top G` and :math:`dL/dB = s G A^\top`
    vanish with the other factor; such a group is gone for ever. Nothing else is remembered than how many steps were taken, so a run that is
    resumed goes on with the same bits.

    Args:
        slots: by module path; they are told that this leads them.
        lasso: what makes a group, and how it is shrunk.
    """

    timed: ClassVar[bool] = False
    prepares = True

    def __init__(self, slots: Mapping[str, Grouped], lasso: GroupLasso) -> None:
        self.slots = dict(slots)
        self.lasso = lasso
        self.members = lasso.groups(self.slots)
        self._still: Tensor | None = None
        follow(self.slots, self)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each group that are trained, as they are now: casts replace them."""
        found = {name: [self.slots[path].get_parameter(factor) for path, factor in members] for name, members in self.members.items()}
        return {name: trained for name, group in found.items() if (trained := [one for one in group if one.requires_grad])}

    @torch.no_grad()
    def value(self) -> float:
        r"""The penalty as it is now, :math:`\lambda \sum_g \lVert p_g \rVert_2`."""
        return self.lasso.weight * float(norms(list(self.groups().values())).sum())

    def before(self, optimizer: Optimizer) -> None:
        """Note which groups are zero and have no gradient."""
        if not self._shrinks(_home(optimizer)):
            return
        groups = list(self.groups().values())
        gradients = [[torch.zeros_like(one) if one.grad is None else one.grad for one in members] for members in groups]
        self._still = (norms(groups) == 0) & (norms(gradients) == 0)

    def after(self, optimizer: Optimizer) -> None:
        """Shrink each group that has a gradient once, at the rate it was stepped with, and count the step."""
        still, self._still = self._still, None
        home = _home(optimizer)
        if self._shrinks(home):
            self._shrink(optimizer, home, still)
        for slot in self._held(home):
            slot.stepped()

    def _held(self, home: Mapping[int, dict[str, Any]]) -> list[Grouped]:
        return [slot for slot in self.slots.values() if id(slot.A) in home or id(slot.B) in home]

    def _shrinks(self, home: Mapping[int, dict[str, Any]]) -> bool:
        return self.lasso.shrinks(max(slot.taken for slot in self._held(home)))

    def _shrink(self, optimizer: Optimizer, home: Mapping[int, dict[str, Any]], still: Tensor | None) -> None:
        groups = self.groups()
        found_inf: Tensor | None = vars(optimizer).get("found_inf")
        sizes = norms(list(groups.values()))
        parameters: list[Tensor] = []
        factors: list[Tensor] = []
        for index, (name, members) in enumerate(groups.items()):
            if all(parameter.grad is None or id(parameter) not in home for parameter in members):
                continue
            threshold = self._rate(name, members, home, optimizer) * self.lasso.weight
            if isinstance(threshold, Tensor):
                threshold = threshold.to(sizes.device)
            if found_inf is not None:
                # A fused optimizer calls its hooks for steps that loss scaling has told it to skip as well.
                threshold = threshold * (1.0 - found_inf.to(sizes.device).squeeze())
            factor = shrinkage(sizes[index], threshold)
            if still is not None:
                factor = factor.masked_fill(still[index], 0.0)
            parameters += members
            factors += [factor.to(parameter.device) for parameter in members]
        if parameters:
            torch._foreach_mul_(parameters, factors)

    def _rate(self, name: str, members: Sequence[nn.Parameter], home: Mapping[int, dict[str, Any]], optimizer: Optimizer) -> Threshold:
        """The learning rate that a group is stepped with.

        Raises:
            StepError: there is no one such rate, it is not the length of the step, or the factors are too coarse to be shrunk by it.
        """
        own = {id(group): group for parameter in members if (group := home.get(id(parameter))) is not None}
        if any(id(parameter) not in home for parameter in members):
            raise StepError(
                f"{type(optimizer).__name__} holds only a part of the factors of the group {name!r}, which is shrunk as a whole. Give all "
                "trainable parameters of the adapter to one optimizer; paring.train.create_optimizer(model, lr=...) does."
            )
        for group in own.values():
            refuse(optimizer, group, "the factors")
        rates: list[Threshold] = [group["lr"] for group in own.values()]
        if len(rates) > 1 and len({float(rate) for rate in rates}) > 1:
            raise StepError(
                f"The factors of the group {name!r} are stepped at different learning rates ({', '.join(map(str, rates))}), under which "
                "its proximal step has no closed form. Give them one rate, or take smaller groups (groups='module' or 'matrix')."
            )
        if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in members):
            raise StepError(
                f"The factors of the group {name!r} were cast to {members[0].dtype}, in which a proximal step of rate x penalty rounds to "
                "nothing. Keep the adapter in float32 (as it is attached) and train in bf16 by autocast."
            )
        return rates[0]


def _home(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """The parameter group that holds each parameter, by identity."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def norms(groups: Sequence[Sequence[Tensor]]) -> Tensor:
    """The Euclidean norm of each group of tensors, as one vector on the device of the first."""
    if not groups:
        return torch.zeros(0)
    single = torch._foreach_norm([tensor for group in groups for tensor in group])
    pieces = iter(single)
    device = single[0].device
    return torch.stack([torch.linalg.vector_norm(torch.stack([next(pieces).to(device) for _ in group])) for group in groups])
