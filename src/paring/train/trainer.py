"""``transformers.Trainer`` with gates and heads in parameter groups of their own, and with the callback."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from paring.train.callback import ParingCallback
from paring.train.groups import separate, separate_heads
from paring.train.guards import recast, refuse_wrappers
from paring.train.saving import AtomicCheckpoints


class HeadTrainer(AtomicCheckpoints):
    """A trainer whose heads may have a learning rate of their own, for adapters of PEFT's own as well.

    Args:
        head_learning_rate: of what is trained fully beside the adapter (``modules_to_save``), a task's new head above all; ``None`` takes
            the main one. The schedule is the same for both. An optimizer that the caller passes is left as it is.
        args, kwargs: of the trainer.

    Raises:
        SettingError: the rate is no finite number above 0.
        TargetError: nothing is trained fully beside an adapter.
    """

    def __init__(self, *args: Any, head_learning_rate: float | None = None, **kwargs: Any) -> None:
        self.head_learning_rate = head_learning_rate
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimizer of the training arguments, with groups for what has a rate of its own."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        if not given:
            target = self.model if model is None else model
            assert target is not None
            self.regroup(optimizer, target)
        return optimizer

    def regroup(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Give what has a rate of its own groups of its own, in a fresh optimizer of the trainer's."""
        if self.head_learning_rate is not None:
            separate_heads(optimizer, model, lr=self.head_learning_rate)


class ParingTrainerMixin(HeadTrainer):
    """Put it before any trainer that descends from ``transformers.Trainer``.

    >>> from trl import SFTTrainer                                       # doctest: +SKIP
    >>> class ParingSFTTrainer(ParingTrainerMixin, SFTTrainer): ...      # doctest: +SKIP

    The optimizer is the one that the training arguments ask for (8-bit, layer-wise, fused ... included), built by the trainer itself; the
    gates are then moved into a group with the rate and decay of their method, and heads into one with ``head_learning_rate`` if it is
    given, before a scheduler sees it. An optimizer that the caller passes is left as it is.
    :class:`~paring.train.callback.ParingCallback` is added. Checkpoints appear whole or not at all.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.model, nn.Module):
            refuse_wrappers(self.args, self.model)
            # Here already: resuming writes into the gates before the optimizer is made.
            recast(self.model)
        given = [callback for callback in self.callback_handler.callbacks if isinstance(callback, ParingCallback)]
        (given[0] if given else ParingCallback()).add_to(self)

    def regroup(self, optimizer: Optimizer, model: nn.Module) -> None:
        """The gates as well."""
        super().regroup(optimizer, model)
        separate(optimizer, model)


class ParingTrainer(ParingTrainerMixin):
    """``transformers.Trainer`` for adapters whose ranks are found while they train. Takes what ``Trainer`` takes."""
