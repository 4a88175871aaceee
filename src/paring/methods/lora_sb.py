r"""LoRA-SB: a small core trained between frozen factors that come from the first step of full fine-tuning.

.. math::
    y = W x + s\,B R A\,x, \qquad -\eta_1\,\mathrm{sign}\Big(\sum_n \frac{\partial \mathcal L_n}{\partial W}\Big) \approx
    U_r\,\mathrm{diag}(\sigma)\,V_r^\top, \quad A = V_r^\top,\; B = U_r,\; R_0 = \mathrm{diag}(\sigma)/s

Only R (r x r) is trained. The update starts at Adam's first step itself, cut to rank r, and the weight is not shifted: so the first output
differs from the base's by that step. Training R moves W by :math:`s^2\,B B^\top G A^\top A`, the projection of the full gradient. The
gradient comes from :func:`paring.calibrate`, to be called once after the adapter is attached.

Source: Ponkshe et al., Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning
(arXiv 2411.19557); the parameterisation is that of LoRA-XS (arXiv 2405.17604).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from paring.core.coding import number
from paring.method import About, Method, check_common, check_rank
from paring.parts.initialise.gradient import FirstUpdate
from paring.parts.parameterise.core import Core
from paring.parts.parameterise.low_rank import scale_of
from paring.parts.shape import Shape


@dataclass(frozen=True, kw_only=True)
class LoRASB(Method):
    r"""A trained core between frozen factors of the first update.

    Attributes:
        rank: :math:`r`; :math:`r^2` parameters a module are trained.
        alpha: :math:`\alpha`; the scale is :math:`\alpha/r`. ``None`` takes r, so that :math:`s = 1`, as the authors have it.
        dropout: probability of dropping an entry of the slot's input while training.
        first_rate: :math:`\eta_1`, the learning rate of the step that is approximated: in the released code that of the first step of the
            warm-up, the main rate divided by the number of warm-up steps.
        iterations: power iterations of a randomised decomposition, much quicker for wide modules; ``None`` is exact.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "lora_sb"
    about: ClassVar[About] = About(
        title="LoRA Silver Bullet: update approximation on a trained core",
        paper="arXiv 2411.19557",
        kind="starting points",
        parameters="r^2; exported r (in + out)",
        deviations=(
            "The released code decomposes at random without oversampling; here it is exact (iterations=10 for the randomised one).",
            "The released code casts the factors to bfloat16, so that they are orthonormal to two or three digits; here they are float32.",
        ),
        verified=(
            "s B R A at the start is the truncated SVD of -rate x sign(G)",
            "A's rows and B's columns are orthonormal, also on a bfloat16 base",
            "only R is trained, r^2 parameters a module",
            "the first output differs from the base's by exactly s B R A x",
            "a step on R moves the weight by the two-sided projection of the full gradient",
            "the start does not change when the loss is multiplied",
            "training before calibration is refused",
        ),
        recipe="model = paring.adapt(model, LoRASB(rank=16), task_type='SEQ_CLS')\nparing.calibrate(model, batches)",
    )

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    first_rate: float = 1e-5
    iterations: int | None = None

    def __post_init__(self) -> None:
        check_common(rank=self.rank, alpha=1.0 if self.alpha is None else self.alpha, dropout=self.dropout)
        number("first_rate", self.first_rate, low=0.0, open_low=True)
        self._rule()

    def _rule(self) -> FirstUpdate:
        return FirstUpdate(rate=self.first_rate, iterations=self.iterations)

    def check(self, shape: Shape) -> None:
        """Refuse a rank above the module's size."""
        check_rank(self.rank, shape)

    def slot(self, shape: Shape, generator: torch.Generator) -> Core:
        """A core between two factors."""
        self.check(shape)
        scale = 1.0 if self.alpha is None else scale_of(self.alpha, self.rank, "standard")
        return Core(shape, torch.zeros(self.rank, self.rank), scale, self._rule(), self.dropout)
