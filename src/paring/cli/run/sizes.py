"""How small a LoRA is to be made, as ``--rank``, ``--energy`` or ``--budget`` say, and what that has cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paring.core.errors import SettingError

if TYPE_CHECKING:
    from paring.parts.allocate.target import Loss, Target


@dataclass(frozen=True, kw_only=True)
class Size:
    """What the flags of that name say, of which one is given."""

    rank: int | None
    energy: float | None
    budget: str | None

    def target(self, each: int) -> Target:
        """What is asked for.

        Args:
            each: bytes of a parameter as it will be written.

        Raises:
            SettingError: not exactly one of the three, or none that can be.
        """
        from paring.cli.run.budgets import plain_data
        from paring.parts.allocate.budget import Budget
        from paring.parts.allocate.target import ToBudget, ToEnergy, ToRank

        given = [f"--{name}" for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            raise SettingError(f"Give one of --rank, --energy and --budget{', not ' + ' and '.join(given) if given else ''}.")
        if self.rank is not None:
            return ToRank(rank=self.rank)
        if self.energy is not None:
            return ToEnergy(share=self.energy)
        assert self.budget is not None
        return ToBudget(budget=Budget.decode(plain_data(self.budget, each)))

    def words(self) -> list[str]:
        """The flags that were given, as they are written."""
        return [word for name, value in vars(self).items() if value is not None for word in (f"--{name}", str(value))]


def told(losses: Mapping[str, Loss], parameters: int, before: int) -> Iterator[str]:
    """What was lost, a line for each thing."""
    worst = max(losses, key=lambda path: losses[path].relative)
    kept = 1 - sum(loss.error**2 for loss in losses.values()) / max(sum(loss.norm**2 for loss in losses.values()), 1e-300)
    empty = sum(loss.rank == 0 for loss in losses.values())
    yield f"{sum(loss.rank for loss in losses.values())} of {sum(loss.before for loss in losses.values())} ranks, {empty} modules empty"
    yield f"{parameters:,} of {before:,} parameters, {kept:.2%} of the squared norm of all updates"
    yield f"largest relative error of a module: {losses[worst].relative:.3f} ({worst})"
