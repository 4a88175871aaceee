r"""NOLA: factors that are mixes of random matrices, of which the coefficients alone are trained.

.. math::
    y = W x + s\,B A\,x, \qquad A = A_0 + \sum_{i=1}^{k} \alpha_i A_i, \quad B = \sum_{j=1}^{k} \beta_j B_j, \qquad
    (A_i)_{uv}, (B_j)_{uv} \sim \mathcal U(-1, 1) / \sqrt k

The bases are made again from seeds wherever they are needed and stored nowhere, so that 2k numbers and the seeds are the whole adapter of
a module, however wide it is and whatever its rank. :math:`A_0` is LoRA's start and frozen; all coefficients start at zero, and so does the
update.

Making the bases costs time in proportion to :math:`k\,r\,(\text{in} + \text{out})`, once in the forward of a step and once in its
backward, always on a CPU; where the coefficients have not changed, as in evaluation, nothing is made.

Source: Koohpayegani et al., NOLA: Compressing LoRA using Linear Combination of Random Basis (arXiv 2310.02556, ICLR 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from paring.core.coding import positive_int
from paring.core.errors import SettingError
from paring.method import About, Method, check_common, check_rank
from paring.parts.parameterise.low_rank import scale_of
from paring.parts.parameterise.mixed import Mixed
from paring.parts.shape import Shape


@dataclass(frozen=True, kw_only=True)
class NOLA(Method):
    r"""Trained mixes of seeded random bases.

    Attributes:
        bases: :math:`k`, random matrices for each of the two factors; 2k parameters a module are trained.
        rank: :math:`r`, which costs time and no parameters.
        alpha: :math:`\alpha`; the scale is :math:`s = \alpha/r`.
        dropout: probability of dropping an entry of the slot's input while training.
        keep: hold the bases in memory once they are made, :math:`2 k r (\text{in} + \text{out})` bytes a module: the same bits, sooner.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "nola"
    about: ClassVar[About] = About(
        title="NOLA, factors mixed from seeded random bases",
        paper="arXiv 2310.02556 (ICLR 2024)",
        kind="few parameters",
        parameters="2k; exported r (in + out)",
        deviations=(
            "The paper's equation has no A_0; the released code has, with all coefficients at zero, and so has paring: else no gradient.",
            "The released code divides the bases by sqrt(k) for language models, as paring does, but not in its README and for images.",
            "The released code seeds torch's global generator at each call, which changes dropout; paring's generators are its own.",
            "The entries of paring's bases are uniform on 65,536 values in (-1, 1), four to a draw: a third of the time.",
        ),
        verified=(
            "the update is zero at the start",
            "at the start alpha's gradient is exactly zero, and beta's is <s dL/dW A_0^T, B_j>",
            "the update and its gradients are those of materialised bases",
            "bases drawn in blocks, drawn at once and kept in memory give the same bits",
            "2k parameters a module, whatever its width and rank",
            "training touches no global generator",
            "a fresh process reloads the update to the bit, also after casts of the model",
            "the bases are made once a step in each direction, however often a module is called, and not at all in evaluation",
        ),
        recipe="model = paring.adapt(model, NOLA(bases=256, rank=8, alpha=8), task_type='SEQ_CLS')",
    )

    bases: int = 256
    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    keep: bool = False

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=self.alpha, dropout=self.dropout)
        positive_int("bases", self.bases)
        given: object = self.keep
        if not isinstance(given, bool):
            raise SettingError(f"keep={given!r}: give True or False.")

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        check_rank(self.rank, shape)

    def slot(self, shape: Shape, generator: torch.Generator) -> Mixed:
        """Two vectors of coefficients and three seeds."""
        self.check(shape)
        return Mixed(shape, self.rank, self.bases, scale_of(self.alpha, self.rank, "standard"), generator, self.keep, self.dropout)
