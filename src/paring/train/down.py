r"""How an adapter becomes smaller between two stages of training: by a cut of its smallest singular values, or by a larger penalty."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from paring.attach.find import slots
from paring.core.adapter import Adapter
from paring.core.coding import Coded, number, positive_int
from paring.core.errors import SettingError
from paring.core.linalg import product_svd
from paring.lead.cutter import Cutter
from paring.parts.allocate.knee import knee
from paring.parts.parameterise.ordered import Ordered
from paring.train.stages import check_penalties, set_penalty
from paring.train.tolerance import Tolerance, good_enough
from paring.train.walk import Stage


class Descent(Coded):
    """Family of the ways down: what each stage is trained under."""

    @abstractmethod
    def goal(self, model: nn.Module, stages: Sequence[Stage], adapter: str) -> float | None:
        """What the next stage is trained under, given those so far; ``None`` if there is none.

        Raises:
            SettingError: the adapter is not of a kind that can be made smaller so.
        """

    @property
    def lasting(self) -> dict[str, Any]:
        """What stages that are there already depend on, as plain data."""
        return self.encode()

    @abstractmethod
    def enter(self, model: nn.Module, goal: float, adapter: str) -> None:
        """Make the adapter ready for it."""


@dataclass(frozen=True, kw_only=True)
class Halve(Descent):
    r"""Each stage may have at most half of the parameters of the one before.

    Attributes:
        factor: not half, but f times fewer.
        stages: how many there are at most after the first, which has all parameters.
        knee: put the sizes where one of them is the knee of the full adapter's spectrum (:mod:`paring.parts.allocate.knee`): the second is
            the largest :math:`\text{knee} \cdot f^m`, m whole, of at most :math:`1/\sqrt f` of all parameters. A size that is right is
            then met, not straddled.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "halve"

    factor: float = 2.0
    stages: int = 6
    knee: bool = True

    def __post_init__(self) -> None:
        number("factor", self.factor, low=1.0, open_low=True)
        positive_int("stages", self.stages)

    @property
    def lasting(self) -> dict[str, Any]:
        """All but how many stages there will be, which a walk that goes on may change."""
        return {key: value for key, value in self.encode().items() if key != "stages"}

    def goal(self, model: nn.Module, stages: Sequence[Stage], adapter: str) -> float | None:
        """The most parameters; none if they would not pay for a single rank."""
        found = ordered(model, adapter).values()
        if not stages:
            return float(sum(slot.cost * slot.A.shape[0] for slot in found))
        goal = stages[-1].goal / self.factor
        if self.knee and len(stages) == 1 and (size := knee_of(stages[0].adapter)):
            most = stages[0].goal / math.sqrt(self.factor)
            goal = size * self.factor ** math.floor(math.log(most / size) / math.log(self.factor))
        return None if len(stages) > self.stages or goal < min(slot.cost for slot in found) else goal

    def enter(self, model: nn.Module, goal: float, adapter: str) -> None:
        """Cut."""
        shrink(model, goal, adapter)


@dataclass(frozen=True, kw_only=True)
class Rise(Descent):
    """Each stage has the next of some penalties.

    Attributes:
        penalties: ascending.

    Raises:
        SettingError: they do not ascend.
    """

    name: ClassVar[str] = "rise"

    penalties: tuple[float, ...]

    def __post_init__(self) -> None:
        check_penalties(self.penalties)

    def goal(self, model: nn.Module, stages: Sequence[Stage], adapter: str) -> float | None:
        """The penalty."""
        return self.penalties[len(stages)] if len(stages) < len(self.penalties) else None

    def enter(self, model: nn.Module, goal: float, adapter: str) -> None:
        """Set it on the gates."""
        set_penalty(model, goal, adapter)


def knee_of(adapter: Adapter) -> int:
    """The knee of an adapter's spectrum, in parameters; 0 if nothing stands out."""
    factors = adapter.modules.values()
    spectra = [product_svd(each.b.double(), each.a.double()).s * each.scale for each in factors]
    return knee(spectra, [each.in_features + each.out_features for each in factors])


def given_up(stages: Sequence[Stage], tolerance: Tolerance | None, patience: int = 2) -> bool:
    """Whether so many stages in a row were outside the tolerance, so that no smaller one will be inside; scores on few rows are noisy."""
    if tolerance is None or len(stages) <= patience:
        return False
    return not any(good_enough(stage, stages[0], tolerance) for stage in stages[-patience:])


def ordered(model: nn.Module, adapter: str = "default") -> dict[str, Ordered]:
    """The slots of an adapter that can be cut, by module path.

    Raises:
        SettingError: they cannot, or are to be cut by themselves while they train.
    """
    found = {path: slot for path, slot in slots(model, adapter).items() if isinstance(slot, Ordered)}
    if not found:
        raise SettingError(
            "Only an adapter of method spectral, Spectral(budget=Share(share=1.0)), is cut from stage to stage; one with gates, of method "
            "sora, is made smaller by ascending penalties, Rise(penalties=...) or --penalties."
        )
    for slot in found.values():
        start = sum(each.cost * each.A.shape[0] for each in found.values())
        if slot.update.budget.parameters(start) < start or not slot.update.budget.known:
            raise SettingError(
                f"The adapter is to be cut while it trains ({slot.update.budget}); on a path it is cut between the stages, so start with "
                "all: Spectral(budget=Share(share=1.0))."
            )
        if slot.update.score == "loss":
            raise SettingError("score='loss' looks at batches before cuts that are planned; on a path ranks are weighed by size, leave it.")
    return found


def shrink(model: nn.Module, parameters: float, adapter: str = "default") -> int:
    """Cut an adapter to at most so many parameters, all its modules together, by their singular values.

    The learning rate's schedule and the optimizer are the next stage's own, so nothing is remembered that could be turned.

    Args:
        model: a model with a :class:`~paring.methods.spectral.Spectral` adapter.
        parameters: the most that are left.
        adapter: its name.

    Returns:
        What is left.

    Raises:
        SettingError: the adapter cannot be cut, so few parameters do not pay for a single rank, or nothing has been learned.
    """
    cutter = Cutter(ordered(model, adapter), 1)
    cheapest = min(slot.cost for slot in cutter.slots.values())
    if parameters < cheapest:
        raise SettingError(f"{parameters:g} parameters do not pay for one rank: the cheapest of these modules takes {cheapest}.")
    if cutter.parameters > parameters and not cutter.cut(math.floor(parameters)):
        raise SettingError("All updates are zero, so there is nothing by which ranks could be chosen. Train the adapter first.")
    return cutter.parameters
