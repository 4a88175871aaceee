r"""S2-LoRA: one pair of low-rank factors for all modules of a shape, and for each module a sparse vector of its own.

.. math::
    y = W_m x + s\,B\,(e_m \odot A x), \qquad
    \min_{A, B, e}\; \mathcal L(A, B, e) + \lambda \sum_m \lVert e_m \rVert_1

A (r x in) and B (out x r) are shared by all modules with ``in`` inputs and ``out`` outputs; :math:`e_m` (r) is the module's own, the gate
of its ranks. After each step of the optimizer the vectors alone take SoRA's proximal step

.. math:: e \leftarrow \operatorname{sign}(v)\,\max(|v| - t,\, 0), \qquad t = \eta\lambda,

so that each module picks the ranks that it uses. What is left is a plain LoRA of rank :math:`|\{i : e_{mi} \neq 0\}|` per module. The
export writes the shared factors out for each of them, and so is larger than what was trained.

Source: Liu et al., Sparsely Shared LoRA on Whisper for Child Speech Recognition (arXiv 2309.11756, ICASSP 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from paring.core.coding import member
from paring.method import About, Method, Rate, check_common, check_gates, check_rank, part
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.parameterise.base import Role, Slot
from paring.parts.parameterise.gated import never_shrunk
from paring.parts.parameterise.low_rank import scale_of
from paring.parts.parameterise.shared import Shared, share
from paring.parts.shape import Shape
from paring.parts.update.proximal import Proximal
from paring.parts.update.revive import Never, Revive


@dataclass(frozen=True, kw_only=True)
class S2LoRA(Method):
    r"""Sparsely shared low-rank adaptation.

    Attributes:
        rank: :math:`r`, the ranks of a shared pair.
        alpha: :math:`\alpha`; the scale is :math:`s = \alpha/r`, whatever a module's live rank.
        dropout: probability of dropping an entry of a slot's input while training.
        penalty: :math:`\lambda`, in learning rates of the vectors, as SoRA's.
        fade: how far B may have travelled when the penalty has halved, as SoRA's; ``None`` keeps the penalty as it is.
        gate_rate: the vectors' own learning rate; ``None`` takes the main one.
        gate_memory: both of Adam's betas for the vectors; ``None`` takes the main ones.
        revive: when an entry at zero gets its gradient, and so may come back: ``Always()``, ``Every(period=8)`` or ``Never()``.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "s2_lora"
    about: ClassVar[About] = About(
        title="Sparsely shared low-rank adaptation",
        paper="arXiv 2309.11756 (ICASSP 2024)",
        kind="adaptive rank",
        parameters="r while training, and r (in + out) a shape; live rank x (in + out) exported",
        deviations=(
            "No released code was found. Where modules differ in shape, paring shares among those of one shape.",
            "The paper's start and optimizer were not read: proximal step, settings and start (e from N(0, 1), B = 0) are SoRA's.",
        ),
        verified=(
            "forward equals x (W + s B diag(e) A)^T with the shared A and B, and the update is zero at the start",
            "the gradient of e_i is s B_i^T G A_i^T, that of the shared factors the sum over the modules",
            "r (in + out) parameters a shape and r a module",
            "changing one module's vector changes that module alone",
            "the vectors take SoRA's proximal step, and the shared factors none",
            "the factors are in a state once, and stay shared in copies, casts, a fresh process and a run that goes on",
            "two adapters on one model do not share",
            "the export is a plain LoRA, equal to the live model to 1e-6",
        ),
        recipe="model = paring.adapt(model, S2LoRA(rank=16, alpha=16), task_type='SEQ_CLS')",
    )

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    penalty: float = 0.35
    fade: float | None = 0.15
    gate_rate: float | None = 0.025
    gate_memory: float | None = 0.98
    revive: Revive = part(Revive, default=Never())

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout)
        check_gates(penalty=self.penalty, fade=self.fade, gate_rate=self.gate_rate, gate_memory=self.gate_memory)
        member("revive", self.revive, Revive)

    @property
    def update(self) -> Proximal:
        """The proximal step on the vectors."""
        return Proximal(weight=self.penalty, fade=self.fade)

    def rates(self) -> Mapping[Role, Rate]:
        """The vectors step at their own rate, without weight decay: the penalty is their only shrinkage."""
        return {Role.GATE: Rate(fixed=self.gate_rate, decay=0.0, memory=self.gate_memory)}

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        check_rank(self.rank, shape)

    def slot(self, shape: Shape, generator: torch.Generator) -> Shared:
        """A vector between two factors, which are the slot's own until :meth:`join`."""
        self.check(shape)
        start = KaimingZero().factors(shape, self.rank, scale_of(self.alpha, self.rank, "standard"), generator)
        gate = torch.randn(self.rank, generator=generator, device="cpu")
        return Shared(replace(start, gate=gate), self.update, dropout=self.dropout, revive=self.revive, rate=self.gate_rate)

    def join(self, slots: Mapping[str, Slot]) -> None:
        """Modules of one shape get the factors of the first of them."""
        share(slot for slot in slots.values() if isinstance(slot, Shared))

    def unfinished(self, slots: Mapping[str, Slot]) -> str | None:
        """Whether the proximal step has ever run."""
        return never_shrunk(slots.values())

    def example(self) -> S2LoRA:
        """A rank that small modules have."""
        return replace(self, rank=8)
