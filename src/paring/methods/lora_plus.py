r"""LoRA+: LoRA whose B is stepped at a larger learning rate than A.

.. math:: y = W x + s\,B A x, \qquad \eta_B = \lambda\,\eta_A, \quad \lambda \ge 1

B starts at zero and A does not, and for a wide module the two should not be stepped alike: with one rate for both, either A learns too
little or B moves too far. Nothing else differs from LoRA. The main learning rate is that of A.

Source: Hayou, Ghosh and Yu, LoRA+ (arXiv 2402.12354, ICML 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from paring.core.coding import number
from paring.method import About, Rate
from paring.methods.lora import LoRA
from paring.parts.parameterise.base import Role


@dataclass(frozen=True, kw_only=True)
class LoRAPlus(LoRA):
    r"""LoRA with a rate of its own for B.

    Attributes:
        rank: :math:`r`, the number of ranks of every module.
        alpha: :math:`\alpha`, the numerator of the scale.
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"standard"`` for :math:`\alpha/r`, ``"rs"`` for :math:`\alpha/\sqrt r`.
        init: where the factors start.
        ratio: :math:`\lambda = \eta_B / \eta_A`, at least 1; 1 is LoRA. The default is ours: choose it together with the main rate.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "lora_plus"
    about: ClassVar[About] = About(
        title="LoRA+, B at a larger rate than A",
        paper="arXiv 2402.12354 (ICML 2024)",
        kind="learning rates",
        parameters="r (in + out)",
        deviations=(
            "PEFT's create_loraplus_optimizer gives the larger rate to every trained vector too (biases, norms); paring to B alone.",
        ),
        verified=(
            "B's rate is the ratio times A's under any schedule, in a plain loop and with Trainer",
            "the groups are those of PEFT's create_loraplus_optimizer, but for vectors",
            "an optimizer that steps both alike is told so",
        ),
        recipe="model = paring.adapt(model, LoRAPlus(rank=8, alpha=16, ratio=16), task_type='SEQ_CLS')",
    )

    ratio: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("ratio", self.ratio, low=1.0)

    def rates(self) -> Mapping[Role, Rate]:
        """B at so many times the main rate."""
        return {} if self.ratio == 1.0 else {Role.UP: Rate(multiple=self.ratio)}
