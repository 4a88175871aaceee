"""LISA at work: what freezes all blocks but the drawn ones, in any loop and in a ``transformers.Trainer``."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paring.core.coding import natural
from paring.core.errors import StepError
from paring.parts.update.closure import once_gradients_are_there
from paring.train.blocks import embeddings, find_blocks, own, refuse
from paring.train.guards import bare, diverged
from paring.train.lisa import LISA


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
