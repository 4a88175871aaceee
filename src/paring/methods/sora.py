r"""SoRA: a gate between LoRA's factors, pushed to exact zeros, so that each module finds its own rank.

.. math::
    y = W x + s\,B\,(g \odot A x), \qquad
    \min_{A, B, g}\; \mathcal L(A, B, g) + \lambda \sum_m \lVert g^{(m)} \rVert_1

A, B and the gates take a step of the optimizer; then the gates alone take the proximal step

.. math:: g \leftarrow \operatorname{sign}(v)\,\max(|v| - t,\, 0), \qquad t = \eta\lambda,

with :math:`v` the gates after the optimizer and :math:`\eta` their learning rate. A rank whose gate is exactly zero is gone; what
is left is a plain LoRA of rank :math:`|\{i : g_i \neq 0\}|` per module. The scale :math:`s = \alpha / r_\max` stays as it was.

Source: Ding et al., Sparse Low-rank Adaptation of Pre-trained Language Models (arXiv 2311.11696, EMNLP 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from paring.core.adapter import Adapter
from paring.core.coding import choice, member, number
from paring.core.errors import SettingError
from paring.method import About, Method, Rate, check_common, check_gates, check_rank, part
from paring.parts.initialise.base import Initialiser
from paring.parts.initialise.from_adapter import FromAdapter
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.parameterise.base import Role, Slot
from paring.parts.parameterise.gated import Gated, never_shrunk
from paring.parts.parameterise.low_rank import Scaling, scale_of
from paring.parts.shape import Shape
from paring.parts.update.proximal import Operator, Proximal, StepSize
from paring.parts.update.revive import Never, Revive


@dataclass(frozen=True, kw_only=True)
class SoRA(Method):
    r"""Sparse low-rank adaptation.

    Attributes:
        rank: :math:`r_\max`, the ranks that every module starts with.
        alpha: :math:`\alpha`; the scale is :math:`\alpha / r_\max` (or :math:`/\sqrt{r_\max}`), whatever the live rank.
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"standard"`` or ``"rs"``.
        penalty: :math:`\lambda`. Adam moves a gate by at most about one rate per step, and the proximal step moves it back by
            :math:`\lambda` rates, so with ``step_size="rate"`` a value in (0, 1) decides who survives.
        fade: how far B may have travelled when the penalty has halved: :math:`\lambda_k = \lambda / (1 + T_k / f)`, where
            :math:`T_k` is the sum of B's learning rates so far, which bounds how far Adam can have moved an entry of it; ``None``
            keeps the penalty as it is, as in the paper. Ranks are chosen early, while B is small and their loss costs little; later
            those that are left train almost free of the penalty's pull. So the share that is left depends less on the number of
            steps and on the rate, while a constant penalty goes on lowering it.
        gate_rate: the gates' own learning rate; it decides how far a gate can travel. It is a number of its own and no multiple of
            the main rate: gates start at size 1 whatever rate the factors need. ``None`` takes the main rate, as the released code
            does.
        gate_memory: both of Adam's betas for the gates; ``None`` takes the main ones. With the two alike Adam's step is a running
            mean over its own root mean square, never longer than one rate, and the longer the memory the less of it is chance:
            with (0.9, 0.999) the gates' gradients, which grow from nothing since B starts at zero, first throw every gate
            outwards by several rates, and later whole ranks die and come back by chance.
        gates: ``"normal"`` draws them from N(0, 1) as the authors do, ``"ones"`` starts from LoRA itself.
        step_size: ``"rate"`` thresholds at rate x penalty, as the paper has it; ``"constant"`` at the penalty itself, as
            the released code does.
        operator: ``"exact"`` soft-thresholding or what the ``"released"`` optimizer does.
        l1: weight of the released code's extra L1 term in the loss (the mean over all gate entries); 0 is off.
        revive: when a gate at zero gets its gradient, and so may come back: ``Always()``, ``Every(period=8)`` or ``Never()``. The rarer,
            the less dead ranks cost. Under a penalty that fades to little everyone comes back who may, so then ``Never()`` is the
            one that prunes; with ``fade=None`` ``Always()`` is the exact proximal gradient step of the paper.
        init: where A and B start.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "sora"
    about: ClassVar[About] = About(
        title="Sparse low-rank adaptation",
        paper="arXiv 2311.11696 (EMNLP 2023)",
        kind="adaptive rank",
        parameters="r (in + out) + r while training; live rank x (in + out) exported",
        deviations=(
            "The released optimizer's operator has a dead zone of 2t and keeps +-t (operator='released'); ours is soft-thresholding.",
            "The released threshold leaves out the learning rate (step_size='constant'); ours is rate x penalty, as in the paper.",
            "The released trainer also adds the mean of |g| to the loss (l1=...); ours does not.",
            "Where l1 is asked for, its gradient is added right before the optimizer's step, so after gradient clipping.",
            "The later stages of the released schedule run at learning rate 0; paring rebuilds the schedule for each stage.",
            "The released script seems to leave the task head at its random start; paring trains it.",
            "The gates have a learning rate and betas of their own (gate_rate, gate_memory); the released code uses the main ones.",
            "The penalty fades (fade); in the paper and the released code it is constant: fade=None.",
            "A dead gate stays dead (revive); in the paper and the released code it may come back at any step: revive=Always().",
        ),
        verified=(
            "forward equals x (W + s B diag(g) A)^T, at the first step only B moves, gradients equal their closed forms",
            "the proximal step equals soft-thresholding, and the released operator its own table",
            "pruning, export and merging leave the output as it is; permuting or rescaling ranks does too",
            "parameter counts before and after pruning",
            "a gate without gradient dies after exactly ceil(|g| / t) steps, in every way of training",
            "the penalty lists, warm starts and rebuilt learning rates of the sparsifying schedule",
        ),
        recipe="model = paring.adapt(model, SoRA(rank=8, alpha=16), task_type='SEQ_CLS')",
    )

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: Scaling = "standard"
    penalty: float = 0.35
    fade: float | None = 0.15
    gate_rate: float | None = 0.025
    gate_memory: float | None = 0.98
    gates: Literal["normal", "ones"] = "normal"
    step_size: StepSize = "rate"
    operator: Operator = "exact"
    l1: float = 0.0
    revive: Revive = part(Revive, default=Never())
    init: Initialiser = part(Initialiser, default=KaimingZero())

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout, scaling=self.scaling)
        check_gates(penalty=self.penalty, fade=self.fade, gate_rate=self.gate_rate, gate_memory=self.gate_memory)
        choice("gates", self.gates, ("normal", "ones"))
        choice("step_size", self.step_size, ("rate", "constant"))
        choice("operator", self.operator, ("exact", "released"))
        number("l1", self.l1, low=0.0)
        member("revive", self.revive, Revive)
        member("init", self.init, Initialiser)

    @property
    def update(self) -> Proximal:
        """The proximal step on the gates."""
        return Proximal(weight=self.penalty, operator=self.operator, step_size=self.step_size, fade=self.fade)

    def rates(self) -> Mapping[Role, Rate]:
        """The gates step at their own rate, without weight decay: the penalty is their only shrinkage."""
        return {Role.GATE: Rate(fixed=self.gate_rate, decay=0.0, memory=self.gate_memory)}

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size, and gates that would change an adapter to start from."""
        check_rank(self.rank, shape)
        self.init.check(shape, self.rank)
        if isinstance(self.init, FromAdapter) and self.gates != "ones":
            raise SettingError(
                f"gates={self.gates!r} would change the update that the adapter has learned; start from it with gates='ones'."
            )

    def slot(self, shape: Shape, generator: torch.Generator) -> Gated:
        """Two factors with a gate between them."""
        self.check(shape)
        start = self.init.factors(shape, self.rank, scale_of(self.alpha, self.rank, self.scaling), generator)
        gate = torch.randn(self.rank, generator=generator, device="cpu") if self.gates == "normal" else torch.ones(self.rank, device="cpu")
        return Gated(replace(start, gate=gate), self.update, self.l1, self.dropout, self.revive, self.gate_rate)

    def unfinished(self, slots: Mapping[str, Slot]) -> str | None:
        """Whether the proximal step has ever run."""
        return never_shrunk(slots.values())

    @classmethod
    def from_adapter(cls, adapter: Adapter, source: str | None = None, **settings: Any) -> SoRA:
        """Start from a trained LoRA: the first forward equals the adapter's, and ranks die from there.

        Args:
            adapter: what :func:`paring.read` returns.
            source: where it was read from, for the record.
            settings: any setting of SoRA. ``rank`` defaults to the adapter's largest, ``gates`` to ``"ones"``: other gates
                would change the update that the adapter has learned.
        """
        settings.setdefault("rank", max(adapter.max_rank, 1))
        settings.setdefault("gates", "ones")
        return cls(init=FromAdapter(source=source, adapter=adapter), **settings)
