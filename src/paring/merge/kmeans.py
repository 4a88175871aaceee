r"""k-means of few points in many dimensions: seeded, and the same for the same points in any order.

.. math:: \min_{c, \ell, \varepsilon} \sum_i \lVert \varepsilon_i u_i - c_{\ell_i} \rVert^2

k-means++ starts (Arthur and Vassilvitskii, 2007), Lloyd's iterations, the best of several starts. With ``either_sign`` a point and
its negative are the same point, :math:`\varepsilon_i = \pm 1`; without it :math:`\varepsilon_i = 1`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paring.core.errors import SettingError

ROUNDS = 300


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Points in groups, none of them empty.

    Attributes:
        labels: the group of each point, shape ``(n,)``.
        signs: 1 or -1 for each point, shape ``(n,)``.
        centres: the mean of each group's points times their signs, shape ``(k, width)``.
        inertia: the sum of squared distances to the centres.
    """

    labels: Tensor
    signs: Tensor
    centres: Tensor
    inertia: float

    @property
    def sizes(self) -> Tensor:
        """Number of points of each group."""
        return torch.bincount(self.labels, minlength=self.centres.shape[0])

    def mean(self, values: Tensor) -> Tensor:
        """The mean of one number for each point, by group."""
        return torch.zeros(self.centres.shape[0], dtype=values.dtype).index_add(0, self.labels, values) / self.sizes


def ordered(points: Tensor) -> Tensor:
    """The points sorted by their first entry, then the second, and so on."""
    _, place = torch.unique(points, dim=0, return_inverse=True)
    return points[place.argsort(stable=True)]


def positive(points: Tensor) -> Tensor:
    """Each point or its negative, so that its entry of the largest size is positive."""
    top = points.gather(1, points.abs().argmax(1, keepdim=True))
    return torch.where(top < 0, -points, points)


def kmeans(points: Tensor, count: int, *, generator: torch.Generator, restarts: int = 10, either_sign: bool = False) -> Clusters:
    """Group points around ``count`` means.

    Args:
        points: shape ``(n, width)``, on the CPU; sorted first, so that their order does not matter.
        count: k, at most n.
        generator: the only source of randomness.
        restarts: how many starts are tried.
        either_sign: whether a point and its negative are the same.

    Returns:
        Labels and signs in the order of ``ordered(points)``.

    Raises:
        SettingError: there are fewer points than groups.
    """
    if not 1 <= count <= points.shape[0]:
        raise SettingError(f"k-means of {points.shape[0]} points cannot have {count} groups; ask for 1 to {points.shape[0]}.")
    points = ordered(positive(points) if either_sign else points)
    found = [_lloyd(points, _start(points, count, generator, either_sign), either_sign) for _ in range(restarts)]
    return min(found, key=lambda clusters: clusters.inertia)


def _start(points: Tensor, count: int, generator: torch.Generator, either_sign: bool) -> Tensor:
    """Each next one with a chance in proportion to its squared distance to those chosen; of points that coincide, any that is left."""
    chosen = [int(torch.randint(points.shape[0], (), generator=generator))]
    far = torch.full((points.shape[0],), torch.inf, dtype=points.dtype)
    while True:
        # From the differences, since those of equal points must be exactly zero.
        last = points[chosen[-1]]
        near = (points - last).square().sum(1)
        far = far.minimum(near.minimum((points + last).square().sum(1)) if either_sign else near)
        far[chosen] = 0.0
        if len(chosen) == count:
            return points[chosen]
        if far.any():
            chosen.append(int(torch.multinomial(far, 1, generator=generator)))
        else:
            chosen.append(next(index for index in range(points.shape[0]) if index not in chosen))


def _lloyd(points: Tensor, centres: Tensor, either_sign: bool) -> Clusters:
    before = None
    for _ in range(ROUNDS):
        inner = points @ centres.T
        near = points.square().sum(1)[:, None] + centres.square().sum(1) - 2 * (inner.abs() if either_sign else inner)
        labels = _filled(near, near.argmin(1))
        signs = torch.ones_like(labels)
        if either_sign:
            signs[inner.gather(1, labels[:, None])[:, 0] < 0] = -1
        state = torch.stack([labels, signs])
        if before is not None and torch.equal(state, before):
            break
        before = state
        signed = points * signs[:, None]
        centres = torch.zeros_like(centres).index_add(0, labels, signed) / torch.bincount(labels, minlength=len(centres))[:, None]
    inertia = float((points * signs[:, None] - centres[labels]).square().sum())
    return Clusters(labels=labels, signs=signs, centres=centres, inertia=inertia)


def _filled(near: Tensor, labels: Tensor) -> Tensor:
    """Labels of which none is missing: an empty group gets the point that is farthest from its centre in a group of several."""
    labels = labels.clone()
    own = near.gather(1, labels[:, None])[:, 0]
    for empty in (torch.bincount(labels, minlength=near.shape[1]) == 0).nonzero().flatten().tolist():
        several = torch.bincount(labels, minlength=near.shape[1])[labels] > 1
        point = int(torch.where(several, own, -torch.inf).argmax())
        labels[point] = empty
    return labels
