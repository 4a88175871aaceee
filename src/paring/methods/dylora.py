r"""DyLoRA: one training of a LoRA whose first b ranks work for every b, so that the rank is chosen afterwards.

.. math:: y = W x + \frac \alpha b\,B_{:,:b}\,A_{:b}\,x, \qquad b \sim p \text{ anew for each optimizer step, the same for all modules}

Small ranks are trained at every step that draws a larger one, so the leading ranks come to hold the most. With ``alone`` only the last of
the b ranks is trained, the others being taken as they are. After training :func:`paring.set_rank`, or ``paring export --rank``, takes any b
from 1 to R; the scale is then :math:`\alpha / b`, so the export is the LoRA that was trained at that rank.

Source: Valipour et al., DyLoRA: Parameter-Efficient Tuning of Pretrained Models using Dynamic Search-Free Low Rank Adaptation (arXiv
2210.07558, EACL 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from paring.core.coding import member
from paring.core.errors import SettingError
from paring.lead.sampler import Sampler
from paring.method import About, Method, check_common, check_rank, part
from paring.parts.initialise.base import Initialiser
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.parameterise.base import Slot
from paring.parts.parameterise.low_rank import Scaling, scale_of
from paring.parts.parameterise.nested import Nested
from paring.parts.shape import Shape
from paring.parts.update.draw import Draw
from paring.parts.update.proximal import Update


@dataclass(frozen=True, kw_only=True)
class DyLoRA(Method):
    r"""Nested ranks.

    Attributes:
        rank: :math:`R`, the largest rank that can be chosen.
        alpha: :math:`\alpha`; the scale at rank b is :math:`\alpha / b` (or :math:`/\sqrt b`).
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"standard"`` or ``"rs"``.
        lowest: the smallest rank that is drawn.
        ratio: how much likelier each rank is than the one below it; 1 is uniform, less prefers small ranks.
        alone: whether a step trains the last of its b ranks alone; else all b.
        seed: of the draws.
        init: where the factors start.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "dylora"
    about: ClassVar[About] = About(
        title="Dynamic search-free low-rank adaptation",
        paper="arXiv 2210.07558 (EACL 2023)",
        kind="adaptive rank",
        parameters="r (in + out); exported b (in + out) for any b up to r",
        deviations=(
            "The released code trains the last rank alone (alone=True), hard-coded; the default here trains all b.",
            "Momentum and weight decay would move ranks that a step does not train; here they stay, with what is remembered of them.",
            "The released code draws uniformly; here ratio makes it geometric.",
        ),
        verified=(
            "the output at rank b is that of the first b ranks at the scale alpha / b",
            "no rank beyond b has a part in the output or a gradient; alone, only the last one has",
            "what a step does not train stays, bit for bit, and so does the optimizer's memory of it",
            "truncating the factors at b, exporting at b and setting the rank to b are the same",
            "the draws follow from the seed and the step, the same for all modules",
            "always drawing the largest rank is LoRA, bit for bit",
        ),
        recipe="model = paring.adapt(model, DyLoRA(rank=8, alpha=16), task_type='SEQ_CLS')",
    )

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: Scaling = "standard"
    lowest: int = 1
    ratio: float = 1.0
    alone: bool = False
    seed: int = 0
    init: Initialiser = part(Initialiser, default=KaimingZero())

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout, scaling=self.scaling)
        member("init", self.init, Initialiser)
        member("draw", self.draw, Update)
        if self.lowest > self.rank:
            raise SettingError(f"lowest={self.lowest} is above rank={self.rank}: no rank could be drawn.")

    @property
    def draw(self) -> Draw:
        """What rank each step gets."""
        return Draw(seed=self.seed, lowest=self.lowest, ratio=self.ratio)

    def lead(self, slots: Mapping[str, Slot], steps: int | None) -> Sampler:
        """What holds the ranks that a step does not train."""
        return Sampler({path: slot for path, slot in slots.items() if isinstance(slot, Nested)})

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        check_rank(self.rank, shape)
        self.init.check(shape, self.rank)

    def slot(self, shape: Shape, generator: torch.Generator) -> Nested:
        """Two factors with nested ranks."""
        self.check(shape)
        start = self.init.factors(shape, self.rank, scale_of(self.alpha, self.rank, self.scaling), generator)
        return Nested(start, self.alpha, self.scaling, self.draw, self.alone, self.dropout)
