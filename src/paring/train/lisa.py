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
import math
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paring.core.coding import natural, positive_int
from paring.core.errors import SettingError, StepError
from paring.core.records import WholeRecord
from paring.method import About
from paring.parts.update.closure import once_gradients_are_there
from paring.train.blocks import embeddings, find_blocks, own, refuse
from paring.train.guards import bare, diverged
from paring.train.whole import Whole


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
        return LISACallback(self)

    def trained(self, model: nn.Module, steps: int) -> WholeRecord:
        """What a training of so many optimizer steps has trained.

        Raises:
            SettingError: there are fewer blocks than are to train.
            TargetError: the blocks cannot be told.
        """
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
            follow: count the optimizer's steps; without, call :meth:`LayerSampler.go_to`.

        Raises:
            SettingError: fewer blocks than are to train, or a step below 0.
            StepError: the optimizer lacks parameters, or the model is spread over devices or processes.
            TargetError: the blocks cannot be told, one of them is frozen already, an adapter is on the model, or a weight is quantised.
        """
        return LayerSampler(self, model, optimizer, step=step, follow=follow)


class LayerSampler:
    """What :meth:`LISA.start` has started.

    Attributes:
        settings: how blocks are drawn.
        path: of the list of blocks.
        step: optimizer steps taken.
        active: the blocks that train now, by their place in the list.
    """

    def __init__(self, settings: LISA, model: nn.Module, optimizer: Any, *, step: int, follow: bool) -> None:
        natural("step", step)
        refuse(model)
        self.settings, self.step = settings, step
        self.path, blocks = find_blocks(model, settings.path)
        self._optimizer = _optimizer(optimizer)
        self._blocks = own(model, self.path, blocks)
        self._still = [] if settings.train_embeddings else list(embeddings(model, self.path))
        self.active = settings.drawn(step // settings.interval, len(self._blocks))
        self._check(model)
        for parameter in self._still:
            self._freeze(parameter)
        self._switch()
        self._proved = False
        self._handles: list[RemovableHandle] = [self._optimizer.register_step_pre_hook(self._before)]
        if follow:
            self._handles.append(self._optimizer.register_step_post_hook(self._after))

    def go_to(self, step: int) -> None:
        """Be at a number of optimizer steps; in another period other blocks train."""
        before, self.step = self.step // self.settings.interval, step
        period = step // self.settings.interval
        if period != before:
            self.active = self.settings.drawn(period, len(self._blocks))
            self._switch()

    def stop(self) -> None:
        """Leave the optimizer alone, and all parameters trainable that were so at the start."""
        while self._handles:
            self._handles.pop().remove()
        for parameter in (*self._still, *chain(*self._blocks)):
            parameter.requires_grad_(True)

    def _switch(self) -> None:
        active = {id(parameter) for index in self.active for parameter in self._blocks[index]}
        for parameter in chain(*self._blocks):
            if id(parameter) in active:
                parameter.requires_grad_(True)
            else:
                self._freeze(parameter)

    def _freeze(self, parameter: nn.Parameter) -> None:
        parameter.requires_grad_(False)
        parameter.grad = None
        if not self.settings.keep_state:
            self._optimizer.state.pop(parameter, None)

    def _check(self, model: nn.Module) -> None:
        """Refuse what would stay untrained without a word."""
        for index, block in enumerate(self._blocks):
            if not block:
                raise StepError(
                    f"Block {self.path}.{index} has no trainable parameter. LISA starts with all blocks trainable: unfreeze it, or stop() "
                    "the sampler that has frozen it."
                )
        held = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        held |= {id(parameter) for parameter in self._still}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and id(parameter) not in held:
                raise StepError(
                    f"{type(self._optimizer).__name__} does not hold {name!r}, which is to be trained. Make it from all parameters of the "
                    "model, while all are trainable, and start LISA after that."
                )

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return None if self._proved else once_gradients_are_there(self._prove, args, kwargs)

    def _prove(self) -> None:
        """Refuse a first step that trains no block."""
        if all(parameter.grad is None for index in self.active for parameter in self._blocks[index]):
            more = (
                ""
                if self.settings.train_embeddings
                else (
                    " Gradient checkpointing with use_reentrant=True has none where nothing before a block is trained: set it to False, or "
                    "train_embeddings=True."
                )
            )
            raise StepError(
                f"None of the blocks that are to train, {self.active} of {self.path!r}, has a gradient at the first step.{more}"
            )
        self._proved = True

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.go_to(self.step + 1)


def _optimizer(given: Any) -> Optimizer:
    found = bare(given)
    if not isinstance(found, Optimizer):
        raise StepError(f"LISA follows the steps of an optimizer of torch.optim's kind, and was given a {type(found).__name__}.")
    return found


class LISACallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """LISA in a ``transformers.Trainer``: ``Trainer(..., callbacks=[LISACallback(LISA(layers=2))])``.

    The model is given with all its weights trainable: Trainer makes the optimizer from what is so before the callback freezes blocks.
    Blocks change after optimizer steps alone, however many batches each accumulates. The step that draws follow from is the trainer's
    ``global_step``, which its checkpoints hold, so that a resumed run goes on with the same blocks. When training ends all are trainable
    again.

    Args:
        settings: how blocks are drawn.

    Raises:
        StepError: as :meth:`LISA.start`, when training begins; or the logged loss is not finite.
    """

    def __init__(self, settings: LISA) -> None:
        self.settings = settings
        self.sampler: LayerSampler | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Freeze all but the first period's blocks, or those of the step that is resumed from."""
        if args.n_gpu > 1:
            raise StepError(
                "DataParallel runs on copies of the model, which LISA has not been tried with. Set CUDA_VISIBLE_DEVICES to one GPU."
            )
        self._stop()
        self.sampler = self.settings.start(kwargs["model"], kwargs.get("optimizer"), step=state.global_step, follow=False)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw again where a period has ended."""
        assert self.sampler is not None
        self.sampler.go_to(state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Stop a training that has diverged."""
        if self.sampler is not None and not math.isfinite(float((logs or {}).get("loss", 0.0))):
            raise StepError(diverged(f"the loss is {(logs or {})['loss']}", state.global_step))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the model as it was given, but for its values."""
        self._stop()

    def _stop(self) -> None:
        if self.sampler is not None:
            self.sampler.stop()
            self.sampler = None
