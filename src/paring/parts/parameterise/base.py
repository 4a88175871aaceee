"""What every slot promises to those who host it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import Enum

import torch
from torch import Tensor, nn

from paring.core.entries import Entries
from paring.core.errors import SettingError
from paring.core.factors import Factors


class Role(Enum):
    """What a slot's parameter is, which decides its optimizer group."""

    FACTOR = "factor"
    UP = "up"
    """The factor that starts at zero and has the module's outputs; it is stepped as other factors unless a method asks otherwise."""
    GATE = "gate"
    MAGNITUDE = "magnitude"
    """The lengths of the adapted weight's rows: see :meth:`Slot.direct`."""
    FROZEN = "frozen"
    HEAD = "head"
    """Of no slot: a module that is trained fully beside the adapter, where it has a rate of its own."""

    @property
    def factor(self) -> bool:
        """Whether it is one of the factors."""
        return self in (Role.FACTOR, Role.UP)


class Source(Enum):
    """What a slot's start is made from, beside its shape."""

    WEIGHT = "weight"
    GRADIENT = "gradient"
    SALIENCE = "weight times gradient"
    """Entry by entry: how much the loss would change, to first order, if the entry of the weight were zero."""

    @property
    def calibrated(self) -> bool:
        """Whether it takes a look at the training data."""
        return self is not Source.WEIGHT


class Slot(nn.Module, ABC):
    """The trainable module beside one base layer.

    All state that changes the output is an ``nn.Parameter``, frozen where need be, so that whatever copies parameters copies
    the adapter.
    """

    magnitude: nn.Parameter | None
    """The length of each row of the adapted weight, (out,), where it is trained apart from the direction."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("magnitude", None)

    def direct(self) -> None:
        """From now on the update says the direction of the weight's rows alone, and their lengths are parameters of their own."""
        self.magnitude = nn.Parameter(torch.zeros(self.delta().out_features))

    @abstractmethod
    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Base output ``y`` plus the update at input ``x``; neither is changed."""

    def fuses(self, dtype: torch.dtype | None) -> bool:
        """Whether :meth:`fused` may be called now in place of the base layer and :meth:`add`.

        Args:
            dtype: type of input and weight; ``None`` where autocast chooses it.
        """
        return False

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A frozen linear and the update in one go, where :meth:`fuses` says so.

        Args:
            x: the input, of ``weight``'s type outside autocast.
            weight: the frozen weight, (out, in), any strides.
            bias: the frozen bias.
        """
        raise NotImplementedError(f"{type(self).__name__} does not fuse.")

    def delta(self) -> Factors | Entries:
        """A detached copy of the update as it is now; slots whose update is no product of factors have their own."""
        return self.factors()

    def factors(self) -> Factors:
        """A detached copy of the update as it is now, dead ranks included.

        Raises:
            SettingError: the update is no product of factors.
        """
        raise SettingError(f"The update of a {type(self).__name__} is no product of factors, so it has no ranks and is no plain LoRA.")

    @abstractmethod
    def update_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """Every parameter of the update with its name and role."""

    def roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """Every own parameter with its name and role."""
        yield from self.update_roles()
        if self.magnitude is not None:
            yield "magnitude", self.magnitude, Role.MAGNITUDE

    @property
    def wants(self) -> Source | None:
        """What :meth:`begin` has still to be given; ``None`` if nothing."""
        return None

    @property
    def wants_calibration(self) -> bool:
        """Whether it has still to be given what only a look at the training data tells: see :func:`paring.calibrate`."""
        wanted = self.wants
        return wanted is not None and wanted.calibrated

    def begin(self, matrix: Tensor, generator: torch.Generator) -> None:
        """Make the start from what :attr:`wants` asks for.

        Args:
            matrix: (out, in).
            generator: the only source of randomness.
        """
        raise NotImplementedError(f"{type(self).__name__} starts from its shape alone.")

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Same as :meth:`add`."""
        return self.add(y, x)
