r"""LoRA-LEGO: all ranks of all adapters as single units, grouped by k-means; each group's mean is a rank of the merged adapter.

A unit is :math:`u = (a, b)`, a row of A and the column of B that goes with it; :math:`\Delta = \sum_u b\,a^\top`, in any order, and
the sum of two updates is the units of both. In each module

.. math:: u_1, \dots, u_N \;\to\; k\text{-means} \;\to\; c_j = \frac{1}{|C_j|} \sum_{u \in C_j} u, \qquad
    c_j \leftarrow c_j\,\frac{\frac{1}{|C_j|} \sum_{u \in C_j} \lVert u \rVert}{\lVert c_j \rVert}, \qquad
    \Delta = \sqrt{r / k}\,\sum_j b_{c_j} a_{c_j}^\top

the two factors being the paper's dual reweighting: a mean of vectors is shorter than they are, and more ranks have a larger output.
What is alike is averaged, what is not is kept beside it: merging copies of an adapter with k = r gives it back, and with k = N and
``reweight_output=False`` the result is the sum of all updates.

Source: LoRA-LEGO (arXiv 2409.16167, ICLR 2025); no code of the authors' was found. The following is our reading. r in
:math:`\sqrt{r/k}` is the mean rank of the adapters that have the module. Each adapter's scale s goes into its units, by default its
root into either side, which changes no group where all have the same; with ``absorb="b"`` it goes into b. A unit is also
:math:`(-a, -b)`, and :math:`(c\,a, b / c)`, which k-means does not know: ``sign_align`` and ``balance`` take care of it, and are not
in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from paring.core.coding import choice, positive_int
from paring.core.errors import SettingError
from paring.core.factors import Factors
from paring.merge.kmeans import kmeans, ordered, positive
from paring.merge.rule import Rule
from paring.merge.svd import largest

Absorb: TypeAlias = Literal["both", "b"]


@dataclass(frozen=True, kw_only=True)
class Lego(Rule):
    r"""Ranks as units, grouped by k-means.

    Attributes:
        rank: k, the ranks of every merged module, at most as many as all adapters have in it; ``None`` for the largest that one has
            in it.
        seed: of k-means.
        reweight_parameters: give each mean the mean norm of its group.
        reweight_output: multiply the update with :math:`\sqrt{r/k}`.
        absorb: an adapter's scale goes by its root into both sides of its units, or into b.
        balance: make the two sides of each unit equally long first; its product stays. The scale then goes into both, whatever
            ``absorb`` says.
        sign_align: take a unit and its negative for the same.
        restarts: how many starts of k-means are tried.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "lego"

    rank: int | None = None
    seed: int = 0
    reweight_parameters: bool = True
    reweight_output: bool = True
    absorb: Absorb = "both"
    balance: bool = False
    sign_align: bool = False
    restarts: int = 10

    def __post_init__(self) -> None:
        if self.rank is not None:
            positive_int("rank", self.rank)
        choice("absorb", self.absorb, ("both", "b"))
        positive_int("restarts", self.restarts)

    def check(self, ranks: Mapping[str, Sequence[int]]) -> None:
        """Refuse more groups than there are units.

        Raises:
            SettingError: names the module that has the fewest.
        """
        if self.rank is None or not ranks:
            return
        counts = {path: sum(found) for path, found in ranks.items()}
        path = min(counts, key=counts.__getitem__)
        if counts[path] < self.rank:
            raise SettingError(
                f"rank={self.rank}: all adapters together have only {counts[path]} ranks in {path!r}, which makes at most as many groups. "
                f"Give a rank of at most {counts[path]}, or none: each module then gets the largest that an adapter has in it."
            )

    def combine(self, parts: Sequence[Factors], weights: Sequence[float], generator: torch.Generator) -> Factors:
        """Group the units, and weigh the groups."""
        # Few and small, so float64 on the CPU.
        units = torch.cat([self.units(part.to(device="cpu", dtype=torch.float64)) for part in parts])
        rank = self.rank or largest(parts)
        clusters = kmeans(units, rank, generator=generator, restarts=self.restarts, either_sign=self.sign_align)
        centres = clusters.centres
        if self.reweight_parameters:
            lengths = ordered(positive(units) if self.sign_align else units).norm(dim=1)
            now = centres.norm(dim=1)
            # A mean of zero has no direction to be made longer in.
            centres = centres * torch.where(now > 0, clusters.mean(lengths) / now, 1.0)[:, None]
        width = parts[0].in_features
        scale = math.sqrt(len(units) / len(parts) / rank) if self.reweight_output else 1.0
        a, b = centres[:, :width], centres[:, width:].T
        return Factors(a=a.to(parts[0].a), b=b.to(parts[0].b), scale=scale)

    def units(self, part: Factors) -> Tensor:
        """One row ``(a, b)`` for each rank, shape ``(r, in + out)``, the scale in it."""
        a, b = part.a, part.b.T
        if self.absorb == "both" or self.balance:
            root = math.sqrt(abs(part.scale))
            a, b = a * root, b * math.copysign(root, part.scale)
        else:
            b = b * part.scale
        if self.balance:
            longer = (b.norm(dim=1) / a.norm(dim=1)).sqrt()[:, None]
            # Where one side is zero there is no product, so nothing to balance.
            some = torch.isfinite(longer) & (longer > 0)
            a, b = torch.where(some, a * longer, 0.0), torch.where(some, b / longer, 0.0)
        return torch.cat([a, b], dim=1)

    def generator(self) -> torch.Generator:
        """Seeded."""
        return torch.Generator().manual_seed(self.seed)
