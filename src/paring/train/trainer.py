"""``transformers.Trainer`` with the gates in a parameter group of their own, and with the callback."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from paring.train.callback import ParingCallback
from paring.train.groups import separate
from paring.train.guards import recast, refuse_wrappers
from paring.train.saving import AtomicCheckpoints


class ParingTrainerMixin(AtomicCheckpoints):
    """Put it before any trainer that descends from ``transformers.Trainer``.

    >>> from trl import SFTTrainer                                       # doctest: +SKIP
    >>> class ParingSFTTrainer(ParingTrainerMixin, SFTTrainer): ...      # doctest: +SKIP

    The optimizer is the one that the training arguments ask for (8-bit, layer-wise, fused ... included), built by the trainer itself; the
    gates are then moved into a group with the rate and decay of their method, before a scheduler sees it. An optimizer that the
    caller passes is left as it is. :class:`~paring.train.callback.ParingCallback` is added. Checkpoints appear whole or not at all.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.model, nn.Module):
            refuse_wrappers(self.args, self.model)
            # Here already: resuming writes into the gates before the optimizer is made.
            recast(self.model)
        given = [callback for callback in self.callback_handler.callbacks if isinstance(callback, ParingCallback)]
        (given[0] if given else ParingCallback()).add_to(self)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimizer of the training arguments, with the gates in a group of their own."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        if not given:
            target = self.model if model is None else model
            assert target is not None
            separate(optimizer, target)
        return optimizer


class ParingTrainer(ParingTrainerMixin):
    """``transformers.Trainer`` for adapters whose ranks are found while they train. Takes what ``Trainer`` takes."""
