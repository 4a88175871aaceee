r"""LISA: full training, of a few blocks at a time.

With N blocks, period p of ``interval`` optimizer steps trains a set :math:`S_p` of ``layers`` of them, drawn uniformly and without
replacement, and beside it all that is no block: embeddings, the last norm, the head. So a block is trained in a share ``layers / N`` of the
periods. What is frozen has no gradient, and with it no weight decay and, unless asked, no optimizer state.

Source: LISA, Layerwise Importance Sampled AdamW (arXiv 2403.17919). The released code (LMFlow) keeps the optimizer's state of blocks that
it freezes again (``keep_state=True``) and draws from a generator of the whole process; here the draw of a period follows from the seed and
the period's number, so a run that goes on draws the same blocks and only the step has to be saved.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from paring.core.coding import natural, positive_int
from paring.core.errors import SettingError
from paring.core.records import WholeRecord
from paring.method import About
from paring.train.whole import Whole

if TYPE_CHECKING:
    # What does it imports transformers, which takes seconds; what is known of it is wanted before, as in `paring methods`.
    from paring.train.layers import LayerSampler, LISACallback


@dataclass(frozen=True, kw_only=True)
class LISA(Whole):
    """How blocks are drawn.

    Attributes:
        layers: blocks that train at a time.
        interval: optimizer steps from one draw to the next.
        seed: of the draws, at least 0.
        train_embeddings: whether the embeddings outside of the blocks train all the time, as in the paper, or never. A head that is tied to
            them is one with them.
        keep_state: keep the optimizer's state of blocks that are frozen again, as the released code does. A block's moments then go on
            where they were when it is drawn again, and memory grows to that of all blocks.
        path: the list of blocks, ``"model.layers"``; ``None`` finds it (:func:`paring.train.blocks.find_blocks`).

    Raises:
        SettingError: a value is out of range.
    """

    name: ClassVar[str] = "lisa"
    about: ClassVar[About] = About(
        title="Layerwise importance sampled AdamW",
        paper="arXiv 2403.17919",
        kind="full training",
        parameters="its own weights, while its block is drawn",
        export="a whole model; `paring extract` cuts a LoRA out of it",
        deviations=(
            "LMFlow keeps the optimizer's state of blocks that it freezes again; here it is dropped, and `keep_state=True` keeps it.",
            "LMFlow draws from a generator of the whole process; here a period's draw follows from the seed and its number.",
        ),
        verified=(
            "so many blocks train, and they change at multiples of the interval only",
            "what is frozen stays to the bit, and all else moves at every step",
            "every block is drawn equally often, and so is every pair",
            "the optimizer holds the state of what trains, and moments begin again",
            "a run that goes on at any step ends with the same bits",
        ),
        recipe="sampler = LISA(layers=2, interval=20).start(model, optimizer)",
    )

    layers: int = 2
    interval: int = 20
    seed: int = 0
    train_embeddings: bool = True
    keep_state: bool = False
    path: str | None = None

    def __post_init__(self) -> None:
        positive_int("layers", self.layers)
        positive_int("interval", self.interval)
        natural("seed", self.seed)

    def drawn(self, period: int, count: int) -> tuple[int, ...]:
        """The blocks, of ``count``, that train in a period: a pure function of the seed and its number.

        Raises:
            SettingError: there are fewer blocks than are to train.
        """
        if self.layers > count:
            raise SettingError(f"layers={self.layers}: the model has {count} blocks; give at most so many.")
        # Generators whose seeds are neighbours begin alike in some of their bits; digests have no neighbours.
        digest = hashlib.sha256(f"LISA {self.seed} {period}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        return tuple(sorted(torch.randperm(count, generator=generator)[: self.layers].tolist()))

    def callback(self) -> LISACallback:
        """What does it in a ``transformers.Trainer``."""
        from paring.train.layers import LISACallback

        return LISACallback(self)

    def trained(self, model: nn.Module, steps: int) -> WholeRecord:
        """What a training of so many optimizer steps has trained.

        Raises:
            SettingError: there are fewer blocks than are to train.
            TargetError: the blocks cannot be told.
        """
        from paring.train.blocks import embeddings, find_blocks, own

        path, blocks = find_blocks(model, self.path)
        sizes = [sum(parameter.numel() for parameter in block) for block in own(model, path, blocks)]
        still = {id(parameter) for parameter in embeddings(model, path)} if not self.train_embeddings else set()
        always = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in still) - sum(sizes)
        counts: Counter[int] = Counter()
        most = 0
        for first in range(0, steps, self.interval):
            drawn = self.drawn(first // self.interval, len(sizes))
            most = max(most, sum(sizes[index] for index in drawn))
            for index in drawn:
                counts[index] += min(self.interval, steps - first)
        return WholeRecord(
            parameters=always + sum(sizes[index] for index in counts),
            at_once=always + most,
            steps=steps,
            blocks={f"{path}.{index}": counts[index] for index in range(len(sizes))},
        )

    def start(self, model: nn.Module, optimizer: Any, *, step: int = 0, follow: bool = True) -> LayerSampler:
        """Freeze all blocks but those of the period that a step lies in, and go on so after each of the optimizer's steps.

        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)                      # doctest: +SKIP
        >>> sampler = LISA(layers=2, interval=20).start(model, optimizer)                   # doctest: +SKIP

        Args:
            model: with all its blocks trainable.
            optimizer: an optimizer of ``torch.optim``'s kind over all its trainable parameters, made before.
            step: optimizer steps that were taken already, by a run that goes on. Load the optimizer's state before.
            follow: count the optimizer's steps; without, call :meth:`paring.train.layers.LayerSampler.go_to`.

        Raises:
            SettingError: fewer blocks than are to train, or a step below 0.
            StepError: the optimizer lacks parameters, or the model is spread over devices or processes.
            TargetError: the blocks cannot be told, one of them is frozen already, an adapter is on the model, or a weight is quantised.
        """
        from paring.train.layers import LayerSampler

        return LayerSampler(self, model, optimizer, step=step, follow=follow)
