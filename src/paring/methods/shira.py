r"""SHiRA: a few entries of each weight are trained, and nothing else.

.. math:: y = (W + \Delta W)\,x, \qquad \Delta W_{oi} = v_k \ \text{at } n \text{ places chosen before training, } 0 \text{ elsewhere}

No low rank: as many trained parameters as a LoRA of rank r has, :math:`n = r\,(\text{in} + \text{out})`, but on 1 to 5% of the weight's own
entries, which span it fully. Adapters of this kind are put into a weight and taken out again in place, by touching those entries
(:func:`paring.switch`), and several add up over the union of their places.

Source: Bhardwaj et al., Sparse High Rank Adapters (arXiv 2406.13175, NeurIPS 2024).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from paring.core.coding import choice, positive_int
from paring.core.errors import SettingError
from paring.method import About, Method
from paring.parts.initialise.mask import MASKS, Mask
from paring.parts.parameterise.sparse import Sparse
from paring.parts.shape import Shape


@dataclass(frozen=True, kw_only=True)
class SHiRA(Method):
    r"""Sparse entries of the weight.

    Attributes:
        rank: how many: :math:`r\,(\text{in} + \text{out})` in each module, as a LoRA of this rank has. It is no rank of the update.
        mask: where: ``"random"`` draws them; ``"structured"`` takes the diagonal and whole rows; ``"magnitude"`` the largest weights;
            ``"gradient"`` the largest gradients and ``"snip"`` the largest products of weight and gradient, both of which need
            :func:`paring.calibrate`.

    Raises:
        SettingError: a setting is out of range.
    """

    name: ClassVar[str] = "shira"
    about: ClassVar[About] = About(
        title="Sparse high-rank adapters",
        paper="arXiv 2406.13175 (NeurIPS 2024)",
        kind="sparse",
        parameters="r (in + out) entries of the weight",
        export="PEFT's SHiRA",
        deviations=(
            "The export is PEFT's SHiRA, not a LoRA: its update has no low rank. Engines that know LoRA alone want the merged model.",
            "transformers' own load_adapter loads the export's values but not their places; PeftModel.from_pretrained loads both.",
            "PEFT draws random masks only and asks for the others as code; here all five are settings.",
            "PEFT keeps a second weight of each module for the backward; here nothing dense is kept.",
            "PEFT has two indices of four bytes an entry on disk; a checkpoint here has two bytes.",
            "PEFT adds the values into a bfloat16 weight, which rounds small ones away; here they are then a product of their own.",
            "What the structured mask is made of in detail is ours: the diagonal, then whole rows drawn at random.",
        ),
        verified=(
            "output and gradients are those of the dense model, and PEFT's SHiRA has the same",
            "so many entries are trained as a LoRA of the rank has, and all others of the weight stay bit for bit",
            "each mask is what it says: the largest weights, gradients or products, or drawn by the seed",
            "two random masks overlap in the share that chance gives",
            "nothing dense is kept for the backward",
            "a checkpoint takes six bytes an entry, half of PEFT's, and reloads exactly",
            "the export loads in stock PEFT and gives the live model's outputs",
            "switching an adapter in and out leaves the base bit for bit",
            "training before calibration is refused",
        ),
        recipe="model = paring.adapt(model, SHiRA(rank=8), task_type='SEQ_CLS')",
    )

    rank: int = 8
    mask: Mask = "random"

    def __post_init__(self) -> None:
        positive_int("rank", self.rank)
        choice("mask", self.mask, MASKS)

    def example(self) -> SHiRA:
        """Few enough for small modules."""
        return replace(self, rank=3)

    def check(self, shape: Shape) -> None:
        """Refuse more entries than the module has."""
        size, wanted = shape.in_features * shape.out_features, self.rank * (shape.in_features + shape.out_features)
        if wanted > size:
            raise SettingError(
                f"rank={self.rank} is above what {shape.path!r} can use: it asks for {wanted:,} entries of a weight that is "
                f"{shape.out_features} x {shape.in_features}. Lower the rank, or leave the module out with exclude_modules."
            )

    def slot(self, shape: Shape, generator: torch.Generator) -> Sparse:
        """The entries."""
        self.check(shape)
        return Sparse(shape, self.rank * (shape.in_features + shape.out_features), self.mask, generator)
