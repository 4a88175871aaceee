r"""LoRA-FA: LoRA whose A is frozen at its random start; B alone is trained.

.. math:: y = W x + s\,B A x, \qquad A \text{ frozen}

Half the trained parameters and, what matters more, no wide activation is kept: B's gradient needs :math:`A x`, which has r entries a row,
where A's would need x itself.

Source: Zhang et al., LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning (arXiv 2308.03303).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from paring.method import About
from paring.methods.lora import LoRA
from paring.parts.parameterise.up_only import UpOnly
from paring.parts.shape import Shape


@dataclass(frozen=True, kw_only=True)
class LoRAFA(LoRA):
    r"""LoRA with A frozen.

    Attributes:
        rank: :math:`r`, the number of ranks of every module.
        alpha: :math:`\alpha`, the numerator of the scale.
        dropout: probability of dropping an entry of the slot's input while training.
        scaling: ``"standard"`` for :math:`\alpha/r`, ``"rs"`` for :math:`\alpha/\sqrt r`.
        init: where the factors start.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "lora_fa"
    about: ClassVar[About] = About(
        title="LoRA with A frozen",
        paper="arXiv 2308.03303",
        kind="baseline",
        parameters="r out; exported r (in + out)",
        deviations=("PEFT's LoRA-FA is an optimizer that also turns B's gradient by (A A^T)^-1; here A is frozen, under any optimizer.",),
        verified=(
            "A never moves, and B's gradient is LoRA's",
            "nothing as wide as the input is kept for the backward",
        ),
        recipe="model = paring.adapt(model, LoRAFA(rank=8, alpha=16), task_type='SEQ_CLS')",
    )

    def slot(self, shape: Shape, generator: torch.Generator) -> UpOnly:
        """Two factors, of which one is trained."""
        return UpOnly(self.factors(shape, generator), self.dropout)
