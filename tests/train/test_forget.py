"""Losses to forget with: what a batch without one kind of rows gives, shares of a sum, and means of classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paring.core.errors import SettingError
from paring.train.forget import Forgetting, class_means, forgetting, prototypical


def some(rows: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64, requires_grad=True)
    return logits, torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("forgotten", [True, False])
def test_batches_of_one_kind_are_finite(forgotten: bool) -> None:
    logits, labels = some()
    forget = torch.full((6,), forgotten)
    prototypes = torch.zeros(4, 4, dtype=torch.float64)
    plain = forgetting(logits, labels, forget, bound=9.0, weight=2.0)
    pulled = prototypical(logits, labels, forget, prototypes, bound=9.0, forget_weight=2.0, remain_weight=1.0)
    entropy = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(plain, 2.0 * (9.0 - entropy) if forgotten else entropy, rtol=1e-12, atol=0)
    for loss in (plain, pulled):
        (gradient,) = torch.autograd.grad(loss, logits)
        assert bool(torch.isfinite(loss))
        assert bool(torch.isfinite(gradient).all())
        assert bool(gradient.any())


def test_a_batch_that_counts_nothing_is_zero() -> None:
    logits, _ = some()
    labels = torch.full((6,), -100)
    forget = torch.tensor([True, False] * 3)
    loss = forgetting(logits, labels, forget, bound=9.0, weight=2.0)
    loss = loss + prototypical(logits, labels, forget, torch.ones(4, 4), bound=9.0, forget_weight=2.0, remain_weight=1.0)
    loss.backward()
    assert loss == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_rows_without_a_label_make_no_difference() -> None:
    logits, labels = some(rows=8)
    loss = Forgetting(classes=(0, 1), prototypes=torch.eye(4, dtype=torch.float64))
    whole = loss(logits[:6], labels[:6])
    masked = torch.cat([labels[:6], torch.tensor([-100, -100])])
    torch.testing.assert_close(loss(logits, masked), whole, rtol=1e-12, atol=0)


def test_the_rows_of_its_classes_are_forgotten() -> None:
    loss = Forgetting(classes=(1, 3))
    assert loss.rows(torch.tensor([0, 1, 2, 3, -100])).tolist() == [False, True, False, True, False]
    logits, labels = some()
    wanted = forgetting(logits, labels, (labels == 1) | (labels == 3), bound=10.0, weight=0.15)
    assert loss({"logits": logits}, labels) == loss(logits, labels) == wanted


def test_shares_of_batches_that_are_added_up() -> None:
    """What Trainer does with accumulated gradients: each batch counts by its rows."""
    loss = Forgetting(classes=(0,))
    first, second = some(rows=6), some(rows=2, seed=1)
    total = sum(loss(*part, num_items_in_batch=8) for part in (first, second))
    torch.testing.assert_close(total, (6 * loss(*first) + 2 * loss(*second)) / 8, rtol=1e-12, atol=0)


class Table(nn.Module):
    """Says what it is given."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """A row for each row, and something else in training."""
        return {"logits": x + 100.0 * self.training}


def test_class_means() -> None:
    model = Table().train()
    x, labels = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    labels[0] = -100
    batches = [{"x": x[at : at + 5], "labels": labels[at : at + 5]} for at in (0, 5, 10)]
    means = class_means(model, batches, 3)
    for one in range(3):
        torch.testing.assert_close(means[one], x[labels == one].mean(0), rtol=1e-5, atol=1e-6)
    assert model.training
    with pytest.raises(SettingError, match=r"no row of 2 of 5 classes \(first: 3\)"):
        class_means(model, batches, 5)
    with pytest.raises(SettingError, match="no row"):
        class_means(model, [], 2)


@pytest.mark.parametrize(
    "settings",
    [{"classes": ()}, {"classes": (-1,)}, {"classes": (1.5,)}, {"bound": -1.0}, {"weight": -1.0}, {"prototype_bound": -1.0}],
)
def test_settings_that_are_none(settings: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        Forgetting(**{"classes": (0,), **settings})
