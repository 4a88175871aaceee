"""The callback that watches a Trainer: guards, the log, and the outlook at a tenth of the steps."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import nn
from transformers import DefaultFlowCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paring.core.errors import StepError
from paring.parts.parameterise.base import Slot
from paring.parts.parameterise.gated import Gated
from paring.train import guards, travel
from paring.train.look import gated, is_finite, tally, trained
from paring.train.planning import plan_unplanned

EARLY = 0.1
"""The share of the steps after which the outlook is taken."""


class ParingCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Watches the proximal step in a ``transformers.Trainer``, and logs what is left of the adapter.

    ``ParingTrainer`` and ``ParingTrainerMixin`` add it by themselves. With another trainer, ``ParingCallback().add_to(trainer)``;
    ``callbacks=[ParingCallback()]`` guards as well, but its values reach only the log history and the console, because a trainer calls
    its reporters first. The gates then move at the main learning rate unless the optimizer comes from
    :func:`paring.train.create_optimizer`.

    * Before training: cuts to a budget are spread over the steps (:func:`paring.train.plan`); gates back to float32; FSDP1, DeepSpeed,
      DataParallel, averaged models, optimizers whose rate is not the length of their step, and models of which nothing is trained are
      refused.
    * After the first real step: an error if no proximal step ran. Steps that fp16 skipped do not count.
    * At every log of the training loss: ``lambda``, ``live_ranks``, ``live_parameters`` and ``sparsity``, added to what the trainer logs.
    * At 10% of the steps: a warning if the travel left cannot kill 1% of the gates, or will kill all.
    * Before a log, an evaluation or a checkpoint: an error if the adapter is no longer finite.

    Nothing is read on the host in between.

    Raises:
        StepError: as above.
        TargetError: nothing is trainable, or the model has no paring adapter.
    """

    def __init__(self) -> None:
        self._slots: dict[str, Slot] = {}
        self._gated: dict[str, Gated] = {}
        self._proved = False

    def add_to(self, trainer: Trainer) -> ParingCallback:
        """Add this callback to a trainer, ahead of those that send logs to TensorBoard, W&B or trackio, so that they see its values.

        Takes the place of another ``ParingCallback``.
        """
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, ParingCallback)]
        # Right after the one that decides whether this step logs, evaluates or saves.
        flow = [index for index, callback in enumerate(callbacks) if isinstance(callback, DefaultFlowCallback)]
        callbacks.insert(flow[-1] + 1 if flow else 0, self)
        return self

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Recast gates before a checkpoint is loaded into them, and refuse what is known to be wrong already."""
        model = kwargs.get("model")
        if isinstance(model, nn.Module):
            guards.refuse_wrappers(args, model)
            guards.recast(model)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Run the guards that need the optimizer."""
        model, optimizer = kwargs["model"], guards.bare(kwargs.get("optimizer"))
        guards.refuse_wrappers(args, model)
        guards.refuse_frozen(model)
        guards.recast(model, optimizer)
        guards.check_optimizer(optimizer, model)
        plan_unplanned(model, steps=state.max_steps)
        self._slots = trained(model)
        self._gated = gated(self._slots)
        self._proved = False

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After the first real step: has the proximal step run?"""
        if self._proved or guards.was_skipped(kwargs.get("optimizer")):
            return
        if all(slot.gate.grad is None for slot in self._gated.values()):
            return
        lost = guards.missed(self._gated)
        if lost:
            held = {path for path, _, _ in guards.homes(kwargs.get("optimizer"), self._gated)}
            kind = type(guards.bare(kwargs.get("optimizer"))).__name__
            why = (
                f"{kind} does not hold them: build it after the adapter was attached, from all trainable parameters "
                "(paring.train.create_optimizer(model, lr=...) does)."
                if not held.issuperset(lost)
                else f"{kind} does not call torch.optim's step hooks: use an optimizer of torch.optim, "
                "or call paring.step.watch(optimizer) before the run."
            )
            raise StepError(
                f"An optimizer step went by and no proximal step ran on {len(lost)} of {len(self._gated)} gates (first: {lost[0]!r}). {why}"
            )
        self._proved = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop before a broken adapter is evaluated or saved; take the outlook once."""
        if control.should_log or control.should_evaluate or control.should_save:
            self._check_finite(state.global_step)
        if self._gated and state.global_step == max(1, math.ceil(EARLY * state.max_steps)):
            steps = state.max_steps - state.global_step
            view = travel.outlook(self._gated, kwargs.get("optimizer"), kwargs.get("lr_scheduler"), steps)
            said = None if view is None or not steps else travel.warning(view, steps)
            if said is not None:
                warnings.warn(said, stacklevel=2)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop before a broken adapter is evaluated or saved."""
        if control.should_log or control.should_evaluate or control.should_save:
            self._check_finite(state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Add what is left of the adapter to the log of the training loss, and to the trainer's log history."""
        if logs is None or "loss" not in logs or not self._slots:
            return
        if not math.isfinite(float(logs["loss"])):
            raise StepError(guards.diverged(f"the loss is {logs['loss']}", state.global_step))
        values = tally(self._slots).values()
        logs.update(values)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(values)

    def _check_finite(self, step: int) -> None:
        # Trainer leaves a non-finite loss out of what it logs, so the weights are what tells.
        if not is_finite(self._slots.values()):
            broken = [path for path, slot in self._slots.items() if not is_finite([slot])]
            raise StepError(guards.diverged(f"the adapter holds NaN or infinity in {len(broken)} modules (first: {broken[0]!r})", step))
