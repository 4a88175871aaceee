r"""GS-LoRA: LoRA under a group lasso over the blocks of a model, so that most blocks end without an adapter.

.. math::
    y = W x + s\,B A x, \qquad
    \min_{A, B}\; \mathcal L(A, B) + \lambda \sum_g \lVert p_g \rVert_2

where :math:`p_g` are all entries of A and B of the modules of one block. After each step of the optimizer every group takes the proximal
step

.. math:: p_g \leftarrow p_g\,\max\bigl(0,\, 1 - \eta\lambda / \lVert p_g \rVert_2\bigr)

with :math:`\eta` the learning rate that it was stepped with. A group of norm :math:`\le \eta\lambda` is exactly zero from then on: both
gradients vanish with the factors. Its modules leave the export, and their part of the model is bit for bit the base's.

A counts although with B = 0 it has no effect yet: a group starts with the norm of its A, about :math:`\sqrt{r m / 3}` for m modules, and is
gone unless its loss pulls it back before :math:`\sum \eta` has come to that over :math:`\lambda`.

It was made to forget: the losses that go with it are in :mod:`paring.train.forget`.

Source: Zhao et al., Continual Forgetting for Pre-trained Vision Models (arXiv 2403.11530, CVPR 2024); Practical Continual Forgetting
for Pre-trained Vision Models (arXiv 2501.09705).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from paring.core.coding import member
from paring.lead.shrinker import Shrinker
from paring.method import About, Method, check_common, check_rank, part
from paring.parts.initialise.base import Initialiser
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.parameterise.base import Slot
from paring.parts.parameterise.grouped import Grouped
from paring.parts.parameterise.low_rank import Scaling, scale_of
from paring.parts.shape import Shape
from paring.parts.update.lasso import Grouping, GroupLasso
from paring.parts.update.proximal import Update


@dataclass(frozen=True, kw_only=True)
class GSLoRA(Method):
    r"""Group-sparse LoRA.

    Attributes:
        rank: :math:`r`, the number of ranks of every module.
        alpha: numerator of the scale :math:`\alpha / r`.
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"standard"`` or ``"rs"``.
        penalty: :math:`\lambda \ge 0`, the same for all groups. Adam moves a group of n entries by up to :math:`\eta \sqrt n` a step, and
            the proximal step moves it back by :math:`\eta\lambda`, so what is much depends on the size of the groups; 0 is plain LoRA.
        groups: what makes a group: ``"block"``, the modules of one block, told by their path up to its first number, where modules outside
            any block are groups of their own; ``"module"``; ``"matrix"``, A and B each.
        after: optimizer steps at the beginning without a penalty.
        init: where the factors start.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "gs_lora"
    about: ClassVar[About] = About(
        title="Group-sparse LoRA",
        paper="arXiv 2403.11530 (CVPR 2024); GS-LoRA++ arXiv 2501.09705",
        kind="adaptive rank",
        parameters="r (in + out); 0 for modules of a group that is gone",
        deviations=(
            "The released code adds the sum of norms to the loss: none becomes exactly zero, and at zero the gradient is 0/0.",
            "Here the penalty is a proximal step, so groups become exactly zero; penalties of the two are not to be compared.",
            "The released code averages weights over the late epochs (GS-LoRA++); here not: exact zeros do not survive averaging.",
            "One of the released engines starts the penalty after some epochs; here after=steps, none by default.",
            "The released code adapts the two linear layers of each feed-forward part; here whatever target_modules says.",
            "The released scale is 1 / r; here alpha / r with alpha = 16 as for the other methods.",
            "What an optimizer remembers could move a group off zero again; here it stays.",
        ),
        verified=(
            "the penalty is the sum of the norms of all blocks, modules or matrices, by hand",
            "the proximal step keeps a group's direction and takes rate x penalty off its norm, down to zero",
            "the order of modules and members makes no difference",
            "a group at zero stays there, whatever an optimizer remembers; without it the output is the same bits",
            "one proximal step for each optimizer step, in a loop and with Trainer, also with accumulated gradients",
            "a run that goes on at any step ends with the same bits",
            "without a penalty it is LoRA, bit for bit",
            "the loss to forget has no gradient once the cross-entropy has reached its bound",
            "the divergence from a prototype is zero where the output is the prototype",
        ),
        recipe="model = paring.adapt(model, GSLoRA(rank=8, penalty=10.0), task_type='SEQ_CLS')",
    )

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: Scaling = "standard"
    penalty: float = 10.0
    groups: Grouping = "block"
    after: int = 0
    init: Initialiser = part(Initialiser, default=KaimingZero())

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout, scaling=self.scaling)
        member("init", self.init, Initialiser)
        member("lasso", self.lasso, Update)

    @property
    def lasso(self) -> GroupLasso:
        """The proximal step on the groups."""
        return GroupLasso(weight=self.penalty, by=self.groups, after=self.after)

    def lead(self, slots: Mapping[str, Slot], steps: int | None) -> Shrinker:
        """What shrinks the groups."""
        return Shrinker({path: slot for path, slot in slots.items() if isinstance(slot, Grouped)}, self.lasso)

    def unfinished(self, slots: Mapping[str, Slot]) -> str | None:
        """Whether the proximal step has ever run."""
        taken = max((slot.taken for slot in slots.values() if isinstance(slot, Grouped)), default=0)
        if not self.penalty or taken > self.after:
            return None
        if not taken:
            return (
                "The proximal step never ran on this adapter: no group was ever shrunk, so it is plain LoRA. Train it with a torch.optim "
                "optimizer that holds all of its factors"
            )
        return f"The penalty begins after {self.after} steps and {taken} were taken, so this is plain LoRA. Train longer, or lower after"

    def example(self) -> GSLoRA:
        """A penalty for small modules and few steps."""
        return replace(self, penalty=8.0)

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        check_rank(self.rank, shape)
        self.init.check(shape, self.rank)

    def slot(self, shape: Shape, generator: torch.Generator) -> Grouped:
        """Two factors, part of a group."""
        self.check(shape)
        return Grouped(self.init.factors(shape, self.rank, scale_of(self.alpha, self.rank, self.scaling), generator), self.dropout)
