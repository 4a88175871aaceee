r"""The group lasso's proximal step: :math:`p_g \leftarrow p_g\,\max(0,\, 1 - \eta\lambda / \lVert p_g \rVert_2)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from paring.core.coding import choice, number
from paring.parts.update.proximal import Update

Grouping: TypeAlias = Literal["block", "module", "matrix"]
FACTORS = ("A", "B")


@dataclass(frozen=True, kw_only=True)
class GroupLasso(Update):
    r"""Block soft-threshold groups of factors after each optimizer step.

    With :math:`p_g` all entries of a group as the optimizer left them, :math:`\eta` the learning rate of their parameter group and
    :math:`\lambda` the penalty weight, the penalty is :math:`\lambda \sum_g \lVert p_g \rVert_2` and its proximal step

    .. math:: p_g \leftarrow p_g\,\max\bigl(0,\, 1 - \eta\lambda / \lVert p_g \rVert_2\bigr).

    Attributes:
        weight: :math:`\lambda \ge 0`, in the units of a gradient: the same for all groups, whatever their size.
        by: what makes a group: ``"block"``, all factors of a block (see :func:`block_of`); ``"module"``, both factors of a module;
            ``"matrix"``, each factor.
        after: steps at the beginning in which nothing is shrunk.
    """

    name: ClassVar[str] = "group_lasso"

    weight: float
    by: Grouping = "block"
    after: int = 0

    def __post_init__(self) -> None:
        number("weight", self.weight, low=0.0)
        choice("by", self.by, ("block", "module", "matrix"))
        number("after", self.after, low=0)

    def shrinks(self, taken: int) -> bool:
        """Whether the step that follows ``taken`` others is followed by a proximal step."""
        return self.weight > 0.0 and taken >= self.after

    def groups(self, paths: Iterable[str]) -> Mapping[str, tuple[tuple[str, str], ...]]:
        """Each group's name, and the module and the factor of each of its members."""
        found: dict[str, list[tuple[str, str]]] = {}
        for path in paths:
            for factor in FACTORS:
                name = {"block": block_of(path), "module": path, "matrix": f"{path}.{factor}"}[self.by]
                found.setdefault(name, []).append((path, factor))
        return {name: tuple(members) for name, members in found.items()}


def block_of(path: str) -> str:
    """The block that a module lies in: its path up to the first number; a module in no block is one of its own.

    >>> block_of("bert.encoder.layer.11.attention.self.query")
    'bert.encoder.layer.11'
    >>> block_of("lm_head")
    'lm_head'
    """
    parts = path.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: first + 1])
