r"""DoRA: the weight's rows are adapted in direction and length apart.

.. math::
    y = \frac{m}{\lVert W + \Delta W \rVert} \odot (W + \Delta W)\,x + b, \qquad \Delta W = s\,B A

:math:`m` holds a length for each row (each output), begins at :math:`\lVert W \rVert`, and is trained; the length that it is divided by
follows the update and is held constant in the backward. Any method of paring may say :math:`\Delta W`: with SoRA's the directions have
ranks of their own, with SHiRA's they are sparse.

Source: Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation (arXiv 2402.09353, ICML 2024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from paring.core.coding import member
from paring.core.errors import SettingError
from paring.method import About, Method, Rate, part
from paring.methods.lora import LoRA
from paring.parts.parameterise.base import Role, Slot
from paring.parts.parameterise.followed import Leader
from paring.parts.shape import Shape
from paring.parts.update.proximal import Proximal


@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
    r"""Direction and length.

    Attributes:
        rank: :math:`r`, the number of ranks of every module.
        alpha: :math:`\alpha`, the numerator of the scale.
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"standard"`` for :math:`\alpha/r`, ``"rs"`` for :math:`\alpha/\sqrt r`.
        init: where the factors start.
        direction: another method that says the update in LoRA's place, ``SoRA(rank=8)``; the settings above are then its own to say.

    Raises:
        SettingError: a setting is out of range, or given beside ``direction``.
    """

    name: ClassVar[str] = "dora"
    about: ClassVar[About] = About(
        title="Weight-decomposed low-rank adaptation",
        paper="arXiv 2402.09353 (ICML 2024)",
        kind="direction and length",
        parameters="r (in + out) + out",
        export="PEFT's DoRA",
        deviations=(
            "PEFT forms B A for the lengths in each forward; here they come from products as thin as the rank.",
            "With dropout, PEFT drops entries of the frozen weight's input too; here of the update's alone.",
            "The magnitudes take no weight decay, which would pull every output towards zero.",
            "The export is PEFT's DoRA (use_dora); engines that serve plain LoRA alone want the merged model.",
        ),
        verified=(
            "outputs and gradients are those of PEFT's DoRA",
            "a run of 40 steps is PEFT's, step by step",
            "the lengths of the rows of the adapted weight are the magnitudes",
            "the length that is divided by has no gradient",
            "any method may say the direction, and keeps its own promises",
            "the export loads in stock PEFT, a module without a rank included",
        ),
        recipe="model = paring.adapt(model, DoRA(rank=8, alpha=16), task_type='SEQ_CLS')",
    )

    direction: Method | None = part(Method, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction is None:
            return
        member("direction", self.direction, Method)
        if isinstance(self.direction, DoRA):
            raise SettingError("direction=DoRA(...): a direction has no length of its own; give the method that says the update.")
        for item in dataclasses.fields(LoRA):
            value = vars(self)[item.name]
            if value != item.default:
                raise SettingError(
                    f"{item.name}={value!r} is a setting of LoRA, which {type(self.direction).__name__} stands in for: "
                    f"give it to that, direction={type(self.direction).__name__}({item.name}=...)."
                )

    def check(self, shape: Shape) -> None:
        """Refuse what the update's method refuses."""
        if self.direction is None:
            super().check(shape)
        else:
            self.direction.check(shape)

    def slot(self, shape: Shape, generator: torch.Generator) -> Slot:  # type: ignore[override]
        """The update's own slot, with magnitudes."""
        made: Slot = super().slot(shape, generator) if self.direction is None else self.direction.slot(shape, generator)
        made.direct()
        return made

    def rates(self) -> Mapping[Role, Rate]:
        """As the update's method has them; no decay of the magnitudes."""
        return {**({} if self.direction is None else self.direction.rates()), Role.MAGNITUDE: Rate(decay=0.0)}

    @property
    def update(self) -> Proximal | None:
        """That of the update's method."""
        return None if self.direction is None else self.direction.update

    def lead(self, slots: Mapping[str, Slot], steps: int | None) -> Leader | None:
        """As the update's method has it."""
        return None if self.direction is None else self.direction.lead(slots, steps)

    def join(self, slots: Mapping[str, Slot]) -> None:
        """As the update's method has it."""
        if self.direction is not None:
            self.direction.join(slots)

    @property
    def asks_for_steps(self) -> bool:
        """As the update's method does."""
        return self.direction is not None and self.direction.asks_for_steps

    def unfinished(self, slots: Mapping[str, Slot]) -> str | None:
        """What the update's method says."""
        return None if self.direction is None else self.direction.unfinished(slots)

    @property
    def budgeted(self) -> bool:
        """As the update's method is."""
        return self.direction is not None and self.direction.budgeted
