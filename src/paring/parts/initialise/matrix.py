"""Starts that are read off a matrix of the module's own shape: its weight, or the gradient of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paring.core.coding import is_whole
from paring.core.errors import SettingError
from paring.core.factors import Factors
from paring.core.linalg import SVD, randomised_svd, truncated_svd
from paring.parts.parameterise.base import Source
from paring.parts.shape import Shape


class MatrixStart(ABC):
    """Gives a module's starting factors from a matrix (out, in).

    Attributes:
        source: which matrix that is.
    """

    source: ClassVar[Source]

    def check(self, shape: Shape, rank: int) -> None:  # noqa: B027 - most fit everywhere
        """Refuse a module that this start does not fit, before any module is touched.

        Raises:
            SettingError: names the module and what does not fit.
        """

    @abstractmethod
    def factors(self, matrix: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
        """Starting factors, in the matrix's type but at least float32, on its device.

        Args:
            matrix: the weight, or its gradient.
            rank: ranks to fill.
            scale: the scale that the slot will apply; the factors returned carry the same.
            generator: the only source of randomness.
        """


@dataclass(frozen=True, kw_only=True)
class Decomposed(MatrixStart):
    """A start from leading singular triplets.

    Attributes:
        iterations: power iterations of a randomised decomposition; ``None`` is exact.

    Raises:
        SettingError: ``iterations`` is no such number.
    """

    iterations: int | None = None

    def __post_init__(self) -> None:
        given: object = self.iterations
        if given is not None and not is_whole(given, 0):
            raise SettingError(f"iterations={given!r}: give a whole number of at least 0, or None for an exact decomposition.")

    def leading(self, matrix: Tensor, rank: int, generator: torch.Generator) -> SVD:
        """The leading triplets.

        The sketch of a randomised decomposition is four times as wide as what is asked for. The largest entry of each right vector is
        positive: signs are anybody's, and where A and B take their vectors from different triplets they make another start.
        """
        if self.iterations is None:
            svd = truncated_svd(matrix, rank)
        else:
            svd = randomised_svd(matrix, rank, oversample=3 * rank, iterations=self.iterations, generator=generator)
        signs = torch.sign(svd.vt.gather(1, svd.vt.abs().argmax(dim=1, keepdim=True))).squeeze(1)
        return svd._replace(u=svd.u * signs, vt=signs[:, None] * svd.vt)
