"""What the spectral cut was tried with: its own settings, and three ideas that paring does not offer.

Ranks that stay are shrunk by what is taken away (:class:`Soft`), what an early cut took may come back (:class:`Returning`), and A begins
in the leading directions of the gradient (:func:`aim`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer

import paring
from paring.attach.calibrate import gradients
from paring.attach.find import layers, slots
from paring.core.linalg import product_svd, truncated_svd
from paring.lead.cutter import Cutter
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Budget
from paring.parts.parameterise.ordered import Ordered


class Soft(Cutter):
    r"""Singular values are soft-thresholded in place of being cut.

    Each cut is the proximal step :math:`\arg\min_X \tfrac12 \lVert X - s B A \rVert_F^2 + \tau \sum_m \sqrt{c_m}\,\lVert X_m \rVert_*`,
    whose threshold is the least that leaves the size that the hard cut leaves: :math:`\sigma \leftarrow (\sigma - \tau \sqrt{c_m})_+`.
    """

    @torch.no_grad()
    def cut(self, budget: int | None = None, optimizer: Optimizer | None = None) -> bool:
        """Cut, then shrink what is left by the worth of the first rank that went."""
        spectra = {path: slot.split(by_loss=False).s for path, slot in self.slots.items()}
        if not super().cut(budget, optimizer):
            return False
        gone = [float(spectra[path][slot.left] ** 2) / slot.cost for path, slot in self.slots.items() if slot.left < len(spectra[path])]
        threshold = max(gone, default=0.0) ** 0.5
        for path, slot in self.slots.items():
            s = spectra[path][: slot.left].clamp_min(torch.finfo(torch.float64).tiny)
            slot.B[:, : slot.left] *= ((s - threshold * slot.cost**0.5).clamp_min(0.0) / s).to(slot.B)
        return True


class Returning(Cutter):
    """What is cut before the last time may come back: only its columns of B are zeroed, and its rows of A stay where they pointed."""

    def __init__(self, slots: Mapping[str, Ordered], steps: int) -> None:
        super().__init__(slots, steps)
        self._promised: int | None = None

    @property
    def parameters(self) -> int:
        """What the last cut has left, whatever has grown since."""
        return super().parameters if self._promised is None else self._promised

    @torch.no_grad()
    def cut(self, budget: int | None = None, optimizer: Optimizer | None = None) -> bool:
        """Cut, and put the rows of A back unless this is the last time."""
        last = budget is None or budget <= self.update.budget.parameters(self.start)
        rows = {path: product_svd(slot.B.double(), slot.A.double()).vt for path, slot in self.slots.items()}
        self._promised = None
        if not super().cut(budget, optimizer):
            return False
        if not last:
            self._promised = self.parameters
            for path, slot in self.slots.items():
                slot.A[slot.left :] = (rows[path][slot.left :] * slot.norm).to(slot.A)
                slot.eval().train()  # so that it looks anew at what is left
        return True


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to cut.

    Attributes:
        settings: of :class:`~paring.methods.spectral.Spectral`; ``quicken`` is 0 unless it is said here.
        leader: what makes the cuts.
        aimed: whether A begins in the directions of the gradient.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    leader: type[Cutter] = Cutter
    aimed: bool = False


VARIANTS: dict[str, Variant] = {
    "by loss": Variant(settings={"score": "loss"}),
    "longer steps": Variant(settings={"quicken": 0.5}),
    "by loss, longer steps": Variant(settings={"score": "loss", "quicken": 0.5}),
    "1 cut": Variant(settings={"cuts": 1}),
    "6 cuts": Variant(settings={"cuts": 6}),
    "until .3": Variant(settings={"until": 0.3}),
    "until .4": Variant(settings={"until": 0.4}),
    "r 4": Variant(settings={"rank": 4, "alpha": 8.0}),
    "reset": Variant(settings={"moments": "reset"}),
    "soft": Variant(leader=Soft),
    "soft, 36 cuts": Variant(leader=Soft, settings={"cuts": 36}),
    "returning": Variant(leader=Returning),
    "from the gradient": Variant(aimed=True),
}


class Look(NamedTuple):
    """What a gradient is read off: a few batches, and the loss of a model on one."""

    batches: Sequence[Any]
    loss: Callable[[nn.Module, Any], Tensor]


def varied(base: nn.Module, variant: Variant, budget: Budget, *, steps: int, seed: int, look: Look, **more: Any) -> PeftModel:
    """The model with an adapter that a variant cuts.

    Args:
        base: without adapter.
        variant: how.
        budget: to what.
        steps: of the training.
        seed: of the adapter's start.
        look: where the gradient is asked for.
        more: of :func:`paring.adapt`.
    """
    model = paring.adapt(base, Spectral(budget=budget, **{"quicken": 0.0, **variant.settings}), seed=seed, **more)
    found = {path: slot for path, slot in slots(model).items() if isinstance(slot, Ordered)}
    if variant.aimed:
        aim(model, found, look)
    variant.leader(found, steps)
    return model


@torch.no_grad()
def aim(model: PeftModel, found: Mapping[str, Ordered], look: Look) -> None:
    """Turn A's rows to the leading right singular vectors of the gradient of each weight, at the length that they had; B stays zero."""
    for path, gradient in gradients(model, "default", layers(model), look.batches, look.loss).items():
        found[path].A.copy_(truncated_svd(gradient, len(found[path].A)).vt * found[path].norm)
