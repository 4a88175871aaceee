"""Slots whose start waits for a matrix that the shape does not tell: the weight, or a gradient of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring.core.errors import StepError
from paring.core.factors import whole
from paring.parts.parameterise.base import Role, Slot, Source


class Waiting(Slot):
    """Zero until it has begun, and refuses to be trained before.

    A class that is more than this calls :meth:`wait` once its parameters are there.
    """

    def wait(self, source: Source | None) -> None:
        """Note what the start will be made from; ``None`` if it is there already."""
        self.source = source
        self._begun = source is None

    @property
    def has_begun(self) -> bool:
        """Whether the start has been made, loaded or copied in: whether what is frozen is not all zero. Looked at until it is."""
        if not self._begun:
            self._begun = any(bool(whole(parameter).any()) for _, parameter, role in self.roles() if role is Role.FROZEN)
        return self._begun

    @property
    def wants(self) -> Source | None:
        """What the start is made from, until it has been made."""
        return None if self.has_begun else self.source

    @torch.no_grad()
    def started(self, **values: Tensor) -> None:
        """Write a start, in float32 at least: orthonormal columns in bfloat16 are none."""
        for name, value in values.items():
            parameter = self.get_parameter(name)
            parameter.data = value.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32)).contiguous()

    def check_begun(self) -> None:
        """To be called in each forward.

        Raises:
            StepError: the slot is to be trained, and has not begun.
        """
        if self._begun or not self.training or not torch.is_grad_enabled():
            return
        if not self.has_begun and any(parameter.requires_grad for parameter in self.parameters()):
            raise StepError(
                "This adapter starts from gradients of the base model's weights, and has not been given them: call "
                "paring.calibrate(model, batches) after attaching it and before the first training step."
            )


def frozen(values: Tensor) -> nn.Parameter:
    """A parameter that is not trained, but copied and saved as others are."""
    return nn.Parameter(values, requires_grad=False)
