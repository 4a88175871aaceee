r"""Losses for forgetting classes while all others stay, as GS-LoRA trains with them.

.. math::
    \mathcal L = \mathrm{CE}(\text{remain}) + \beta\,\bigl[\mathrm{BND} - \mathrm{CE}(\text{forget})\bigr]_+
    + w_f\,\bigl[\mathrm{BND}_p - \mathrm{KL}_f\bigr]_+ + w_r\,\mathrm{KL}_r

with means over the rows of the batch, and the last two terms those of GS-LoRA++. What is to be forgotten is pushed away only up to a bound,
from which on it has no gradient: a cross-entropy without a bound would be driven up for ever.

Sources: Zhao et al. (arXiv 2403.11530, CVPR 2024); for the prototypes arXiv 2501.09705.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paring.core.coding import number
from paring.core.errors import SettingError

IGNORED = -100
"""The label of a row that no loss counts."""


def mean_over(values: Float[Tensor, " rows"], rows: Bool[Tensor, " rows"]) -> Float[Tensor, ""]:
    """The mean over some of the rows; 0, with a gradient of 0, where there are none."""
    return torch.where(rows, values, torch.zeros_like(values)).sum() / rows.sum().clamp_min(1)


def pushed(distance: Float[Tensor, " rows"], rows: Bool[Tensor, " rows"], bound: float) -> Float[Tensor, ""]:
    r"""What is left to the bound, :math:`[\mathrm{bound} - \bar d]_+` over the mean of some rows; 0 where there are none."""
    left = torch.relu(bound - mean_over(distance, rows))
    return torch.where(rows.any(), left, torch.zeros_like(left))


def forgetting(
    logits: Float[Tensor, "rows classes"],
    labels: Int[Tensor, " rows"],
    forget: Bool[Tensor, " rows"],
    *,
    bound: float,
    weight: float,
) -> Float[Tensor, ""]:
    r""":math:`\mathrm{CE}(\text{remain}) + \beta\,[\mathrm{BND} - \mathrm{CE}(\text{forget})]_+`, each a mean over its rows.

    Args:
        logits: what the model says.
        labels: classes; rows of -100 are left out.
        forget: which rows are to be forgotten; the others are to stay. A part without rows adds nothing.
        bound: :math:`\mathrm{BND}`, the cross-entropy from which on a batch counts as forgotten, in nats.
        weight: :math:`\beta`.
    """
    loss = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    counted = labels != IGNORED
    return mean_over(loss, counted & ~forget) + weight * pushed(loss, counted & forget, bound)


def divergence(prototypes: Float[Tensor, "rows width"], outputs: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
    r"""Of each row, :math:`\mathrm{KL}(\mathrm{softmax}(p) \,\Vert\, \mathrm{softmax}(o))` in nats; 0 where the two are equal."""
    p, q = F.log_softmax(prototypes, dim=-1), F.log_softmax(outputs, dim=-1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)


def prototypical(
    outputs: Float[Tensor, "rows width"],
    labels: Int[Tensor, " rows"],
    forget: Bool[Tensor, " rows"],
    prototypes: Float[Tensor, "classes width"],
    *,
    bound: float,
    forget_weight: float,
    remain_weight: float,
) -> Float[Tensor, ""]:
    r""":math:`w_f\,[\mathrm{BND}_p - \mathrm{KL}_f]_+ + w_r\,\mathrm{KL}_r`, with means of :func:`divergence` over the rows of each kind.

    Args:
        outputs: what the model says.
        labels: classes; rows of -100 are left out.
        forget: which rows are to be forgotten.
        prototypes: of each class, from :func:`class_means` of the model before it forgets.
        bound: :math:`\mathrm{BND}_p`, the divergence from which on a batch is far enough from its prototypes, in nats.
        forget_weight: :math:`w_f`.
        remain_weight: :math:`w_r`.
    """
    counted = labels != IGNORED
    own = prototypes.to(outputs)[torch.where(counted, labels, torch.zeros_like(labels))]
    distance = divergence(own, outputs)
    return forget_weight * pushed(distance, counted & forget, bound) + remain_weight * mean_over(distance, counted & ~forget)


@torch.no_grad()
def class_means(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], classes: int) -> Tensor:
    """The mean of what a model says to the rows of each class, (classes, width) in float32: GS-LoRA++'s prototypes.

    Call it before forgetting begins, or inside ``with model.disable_adapter():``.

    Args:
        model: called with what is in a batch but for ``labels``; it is in evaluation mode meanwhile.
        batches: with ``labels``, on the model's device.
        classes: how many there are.

    Raises:
        SettingError: a class has no row, so it has no mean.
    """
    was_training = model.training
    model.eval()
    sums: Tensor | None = None
    counts = torch.zeros(classes)
    try:
        for batch in batches:
            labels = batch["labels"]
            outputs = _logits(model(**{key: value for key, value in batch.items() if key != "labels"})).float()
            kept = labels != IGNORED
            if sums is None:
                sums = outputs.new_zeros(classes, outputs.shape[-1])
            sums.index_add_(0, labels[kept], outputs[kept])
            counts += torch.bincount(labels[kept].cpu(), minlength=classes)
    finally:
        model.train(was_training)
    empty = (counts == 0).nonzero().flatten().tolist()
    if sums is None or empty:
        raise SettingError(
            f"The batches have no row of {len(empty)} of {classes} classes (first: {empty[0]}), so it has no mean. Give more."
        )
    return sums / counts.to(sums.device)[:, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Forgetting:
    r"""The loss of a batch, for Trainer's ``compute_loss_func`` and for a loop of one's own.

    >>> loss = Forgetting(classes=(3, 7), bound=10.0)                                              # doctest: +SKIP
    >>> ParingTrainer(model=model, args=args, train_dataset=data, compute_loss_func=loss).train()  # doctest: +SKIP

    In a loop: ``loss(model(**inputs), labels).backward()``.

    Attributes:
        classes: those to forget.
        bound: :math:`\mathrm{BND}`, in nats; guessing among C classes costs :math:`\ln C`, so it should lie above that.
        weight: :math:`\beta`.
        prototypes: of each class, (classes, width), from :func:`class_means`; ``None`` leaves out the terms of GS-LoRA++.
        prototype_bound: :math:`\mathrm{BND}_p`, in nats.
        forget_weight: :math:`w_f`.
        remain_weight: :math:`w_r`.

    Raises:
        SettingError: a setting is out of range, or nothing is to be forgotten.
    """

    classes: tuple[int, ...]
    bound: float = 10.0
    weight: float = 0.15
    prototypes: Tensor | None = None
    prototype_bound: float = 18.0
    forget_weight: float = 0.01
    remain_weight: float = 0.01

    def __post_init__(self) -> None:
        if not self.classes or any(type(one) is not int or one < 0 for one in self.classes):
            raise SettingError(f"classes={self.classes!r}: name at least one class to forget, each a whole number of at least 0.")
        for name in ("bound", "weight", "prototype_bound", "forget_weight", "remain_weight"):
            number(name, vars(self)[name], low=0.0)

    def rows(self, labels: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Which rows are to be forgotten."""
        return torch.isin(labels, torch.tensor(self.classes, device=labels.device))

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of one batch.

        Args:
            outputs: a model's, with ``logits``, or the logits themselves.
            labels: classes, one a row.
            num_items_in_batch: rows of all batches whose gradients are added up before a step, where Trainer says so: the loss is then
                this batch's share, since Trainer does not divide it.
        """
        logits, forget = _logits(outputs), self.rows(labels)
        loss = forgetting(logits, labels, forget, bound=self.bound, weight=self.weight)
        if self.prototypes is not None:
            loss = loss + prototypical(
                logits,
                labels,
                forget,
                self.prototypes,
                bound=self.prototype_bound,
                forget_weight=self.forget_weight,
                remain_weight=self.remain_weight,
            )
        return loss if num_items_in_batch is None else loss * ((labels != IGNORED).sum() / num_items_in_batch)


def _logits(outputs: Any) -> Tensor:
    found = outputs if isinstance(outputs, Tensor) else outputs["logits"]
    assert isinstance(found, Tensor)
    return found
