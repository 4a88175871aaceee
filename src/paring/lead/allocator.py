"""AdaLoRA's allocation, which happens by itself: nothing to call but how long the training will be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from paring.core.coding import positive_int
from paring.core.errors import SettingError
from paring.lead.held import Held
from paring.parts.allocate.sensitivity import Sensitivity, best
from paring.parts.parameterise.followed import Leader, follow
from paring.parts.parameterise.triplet import NAMES, Triplet


class Allocator(Leader):
    """One adapter's triplets, of which fewer and fewer are left.

    Before a step it adds the gradient of the orthogonality of factors; after it, it weighs every entry by the new value times the gradient
    that moved it, and sets the E of triplets to zero that are not among the best. They may come back until the choice is made for good.

    Args:
        slots: by module path; they are told that this leads them.
        update: how many are left when.
        steps: optimizer steps of the whole training, those of a run that is resumed included.

    Raises:
        SettingError: ``steps`` is no number of steps, or the target is more than the triplets that there are.
        StepError: after a step, of an optimizer that holds only a part of the triplets or evaluates at an average of its iterates.
    """

    prepares = True

    def __init__(self, slots: Mapping[str, Triplet], update: Sensitivity, steps: int) -> None:
        positive_int("steps", steps)
        self.slots = dict(slots)
        self.update = update
        self.steps = steps
        self.start = sum(slot.E.shape[0] for slot in self.slots.values())
        self.goal = update.target * len(self.slots)
        if self.goal > self.start:
            raise SettingError(f"target={update.target} triplets a module are more than the {self.start} of {len(self.slots)} modules.")
        self._held = Held(self.slots)
        follow(self.slots, self)

    @property
    def taken(self) -> int:
        """Steps so far."""
        return max(slot.taken for slot in self.slots.values())

    def before(self, optimizer: Optimizer) -> None:
        """Add the gradient of the orthogonality, in the loss's scale where a fused optimizer divides by it."""
        if not self.update.weight:
            return
        scale: Tensor | None = vars(optimizer).get("grad_scale")
        for slot in self.slots.values():
            for factor, rows in ((slot.A, True), (slot.B, False)):
                if factor.grad is None:
                    continue
                term = defect_gradient(factor if rows else factor.T, self.update, 2 * len(self.slots))
                term = term if rows else term.T
                factor.grad.add_(term if scale is None else term * scale.to(term.device))

    def after(self, optimizer: Optimizer) -> None:
        """Weigh, choose, count."""
        self._held.check(optimizer)
        step, found_inf = self.taken, vars(optimizer).get("found_inf")
        end = self.update.end(self.steps)
        # A fused optimizer calls its hooks for steps that loss scaling has told it to skip as well.
        skipped = found_inf is not None and bool(found_inf)
        if step < end and not skipped:
            self._weigh(vars(optimizer).get("grad_scale"))
        if step >= end and not all(slot.is_settled for slot in self.slots.values()):
            self.choose(self.goal)
            for slot in self.slots.values():
                slot.settle()
        elif step >= end:
            self._mask()
        elif step % self.update.every == 0:
            self.choose(self.update.budget(step, self.steps, self.start, self.goal))
        for slot in self.slots.values():
            slot.stepped()

    def choose(self, count: int) -> None:
        """Keep the best so many triplets, and set the E of the others to zero."""
        slots = list(self.slots.values())
        for slot, kept in zip(slots, best([slot.scores() for slot in slots], count), strict=True):
            slot.kept.copy_(kept)
        self._mask()

    def _mask(self) -> None:
        for slot in self.slots.values():
            slot.E.mul_(slot.kept)

    def _weigh(self, scale: Tensor | None) -> None:
        parameters, gradients, means, spreads = [], [], [], []
        for slot in self.slots.values():
            for name, mean, spread in zip(NAMES, slot.sensitivity("mean"), slot.sensitivity("spread"), strict=True):
                parameter = slot.get_parameter(name)
                parameters.append(parameter.detach().to(mean.dtype))
                gradients.append(torch.zeros_like(mean) if parameter.grad is None else parameter.grad.to(mean.dtype))
                means.append(mean)
                spreads.append(spread)
        found = torch._foreach_abs(torch._foreach_mul(parameters, gradients))
        if scale is not None:
            torch._foreach_div_(found, float(scale))
        torch._foreach_lerp_(means, found, 1.0 - self.update.beta1)
        torch._foreach_lerp_(spreads, torch._foreach_abs(torch._foreach_sub(found, means)), 1.0 - self.update.beta2)


def defect_gradient(rows: Tensor, update: Sensitivity, count: int) -> Tensor:
    r"""The gradient of the orthogonality term by one factor, its ranks along the rows, of ``count`` factors in all.

    :math:`\nabla \lVert M M^\top - I \rVert_F^2 = 4 (M M^\top - I) M`; of the norm itself, that over twice the norm.
    """
    defect = rows @ rows.T
    defect.diagonal().sub_(1.0)
    gradient = defect @ rows
    if update.form == "squared":
        return 4.0 * update.weight * gradient
    norm = torch.linalg.matrix_norm(defect)
    # Where factors are orthonormal there is nothing to do, and the norm has no gradient.
    return gradient * torch.where(norm > 0, 2.0 * update.weight / count / norm, 0.0)
