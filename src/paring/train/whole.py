"""Training a model's own weights, without an adapter: what such a way is, and the table of them by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from paring.core.coding import Coded
from paring.core.records import WholeRecord
from paring.method import About

if TYPE_CHECKING:
    from transformers import TrainerCallback


@dataclass(frozen=True, kw_only=True)
class Whole(Coded, ABC):
    """A way to train a model's own weights: a frozen keyword-only dataclass that validates itself in ``__post_init__``.

    What leaves such a training is a whole model; :func:`paring.extract_lora` cuts a LoRA out of it.
    """

    about: ClassVar[About]

    @abstractmethod
    def callback(self) -> TrainerCallback:
        """What does it in a ``transformers.Trainer``, which is given the model with all its weights trainable."""

    @abstractmethod
    def trained(self, model: nn.Module, steps: int) -> WholeRecord:
        """What a training of so many optimizer steps has trained.

        Raises:
            TargetError: the model's blocks cannot be told.
        """
