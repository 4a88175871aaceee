r"""How much quality may be given up for a smaller adapter."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from paring.core.coding import Coded, number
from paring.core.errors import DataError
from paring.train.walk import Scores, Stage


class Tolerance(Coded):
    """Family of the worst scores that are still good enough, given those of the full adapter."""

    @abstractmethod
    def floor(self, reference: Scores) -> float:
        """The lowest score on held-out rows."""


@dataclass(frozen=True, kw_only=True)
class Within(Tolerance):
    r"""A share of the metric, :math:`m_0 - s\,|m_0|`.

    Attributes:
        share: s, in [0, 1]; 0.005 is half a percent of the metric, not half a point.
    """

    name: ClassVar[str] = "within"

    share: float

    def __post_init__(self) -> None:
        number("share", self.share, low=0.0, high=1.0)

    def floor(self, reference: Scores) -> float:
        """Less a share of itself."""
        return reference.validation - self.share * abs(reference.validation)


@dataclass(frozen=True, kw_only=True)
class StandardErrors(Tolerance):
    r"""So many standard errors of the metric on the held-out rows, :math:`m_0 - c\,\mathrm{se}(m_0)`.

    Attributes:
        count: c, at least 0; 1 is the rule of one standard error.
    """

    name: ClassVar[str] = "standard_errors"

    count: float = 1.0

    def __post_init__(self) -> None:
        number("count", self.count, low=0.0)

    def floor(self, reference: Scores) -> float:
        """Less so many standard errors.

        Raises:
            DataError: the scores have none.
        """
        if reference.error is None or not math.isfinite(reference.error):
            raise DataError(
                f"A tolerance in standard errors needs one, and the scores of the full adapter have error={reference.error}: return it "
                "from evaluate, Scores(..., error=...), or ask for a share of the metric, Within(share=0.005)."
            )
        return reference.validation - self.count * reference.error


def good_enough(stage: Stage, reference: Stage, tolerance: Tolerance) -> bool:
    """Whether a stage is inside the tolerance; one without a rank never is, since there would be nothing to export."""
    return stage.parameters > 0 and (stage.index == reference.index or stage.scores.validation >= tolerance.floor(reference.scores))


def check_reference(reference: Stage, tolerance: Tolerance) -> None:
    """Refuse a first stage that no later one can be compared with.

    Raises:
        DataError: it has no rank, or its score, or the standard error that the tolerance asks for, is no number.
    """
    if not reference.parameters:
        raise DataError(
            "The first stage has no rank left, so there is no full adapter to compare smaller ones with; begin with less penalty."
        )
    if not math.isfinite(reference.scores.validation):
        raise DataError(
            f"The full adapter's score on the held-out rows is {reference.scores.validation}, so no smaller one can be compared with it: "
            "give more rows, or another metric."
        )
    tolerance.floor(reference.scores)


def choose(stages: Sequence[Stage], tolerance: Tolerance) -> Stage:
    """The smallest adapter inside the tolerance; the full one, which the first stage is, always is inside.

    Raises:
        DataError: as :func:`check_reference`.
    """
    reference = stages[0]
    check_reference(reference, tolerance)
    inside = [stage for stage in stages if good_enough(stage, reference, tolerance)]
    return min(inside, key=lambda stage: (stage.parameters, -stage.scores.validation))
