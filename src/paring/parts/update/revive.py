r"""Whether, and how often, a gate that is exactly zero is asked if it would leave zero again.

A dead rank costs nothing in the forward. What it costs in the backward is its gate's gradient,
:math:`\partial L/\partial g_k = s\,\langle A_k, (Z^\top X)_k\rangle` with :math:`Z = dY B`: two products of N rows. (The gradients of
its rows of A and columns of B are zero.)
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from paring.core.coding import Coded, positive_int

RECOUNT = 8
"""Steps from one count of live ranks to the next where none comes back."""


class Revive(Coded):
    """Family of the rules by which dead gates get their gradient.

    Attributes:
        returns: whether a gate that has died may ever come back, so that what an optimizer remembers of it matters.
    """

    returns: ClassVar[bool] = True

    @abstractmethod
    def checks(self, steps: int) -> bool:
        """Whether dead gates get their gradient in the backward passes that follow the ``steps``-th proximal step."""

    @abstractmethod
    def recounts(self, steps: int) -> bool:
        """Whether, after the step that follows, live ranks are counted anew where a look waits for the device."""


@dataclass(frozen=True, kw_only=True)
class Always(Revive):
    """Every step: the exact proximal gradient step on all gates."""

    name: ClassVar[str] = "always"

    def checks(self, steps: int) -> bool:
        """Always."""
        return True

    def recounts(self, steps: int) -> bool:
        """Never: with every gate free to come back, all ranks are computed."""
        return False


@dataclass(frozen=True, kw_only=True)
class Every(Revive):
    """One step in ``period``, as a Lasso solver looks at what is outside its working set now and then.

    In between, dead gates are held at zero and what the optimizer remembers of them is left as it is, so that its averages run over
    the gradients that were seen.

    Attributes:
        period: steps from one look to the next.
    """

    name: ClassVar[str] = "every"

    period: int = 8

    def __post_init__(self) -> None:
        positive_int("period", self.period)

    def checks(self, steps: int) -> bool:
        """At the last step of each period."""
        return (steps + 1) % self.period == 0

    def recounts(self, steps: int) -> bool:
        """After each look at the dead."""
        return self.checks(steps)


@dataclass(frozen=True, kw_only=True)
class Never(Revive):
    """Not at all: a rank that has died stays dead."""

    name: ClassVar[str] = "never"
    returns: ClassVar[bool] = False

    def checks(self, steps: int) -> bool:
        """Never."""
        return False

    def recounts(self, steps: int) -> bool:
        """Now and then, to leave out what has died since."""
        return (steps + 1) % RECOUNT == 0
