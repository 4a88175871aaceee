"""Training until the end or until somebody stops it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paring.cli.console import INTERRUPTED, say
from paring.cli.run.interrupt import Interruption
from paring.cli.run.progress import Bar
from paring.core.errors import ParingError, SettingError
from paring.train.checkpoints import complete


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A run that was interrupted.

    Attributes:
        checkpoint: where it can be resumed from; ``None`` if no step was saved.
        status: what the command exits with.
    """

    checkpoint: Path | None
    status: int = INTERRUPTED


class Begun(TrainerCallback):
    """Knows whether training has begun; what fails before that is the checkpoint that is resumed from.

    Args:
        resume: that checkpoint.
        over_is_fine: whether it may be one after the last step.
    """

    def __init__(self, resume: Path | None, *, over_is_fine: bool = False) -> None:
        self.resume = resume
        self.over_is_fine = over_is_fine
        self.begun = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The checkpoint has been read; refuse one with no step to follow, whose metrics would be passed off as this run's."""
        if self.resume is not None and not complete(self.resume):
            # Trainer does without what it does not find, and would go on with a new optimizer or from the first learning rate.
            raise SettingError(f"{str(self.resume)!r} has lost files while it was read; use another checkpoint-* folder, or start anew.")
        self.begun = True
        if self.resume is not None and not self.over_is_fine and state.global_step >= state.max_steps:
            asked = f"--max_steps {args.max_steps}" if args.max_steps > 0 else f"--num_train_epochs {args.num_train_epochs:g}"
            raise SettingError(
                f"{str(self.resume)!r} is at step {state.global_step}, and {asked} ends at step {state.max_steps}, so there is nothing "
                f"left to train. Give a larger one, or write the checkpoint as an adapter: paring export {self.resume} FOLDER."
            )


def attempt(trainer: Trainer, bar: Bar, resume: Path | None, *, over_is_fine: bool = False) -> bool:
    """Train to the end, or until somebody stops it.

    Args:
        trainer: a trainer that is ready to run.
        bar: its progress bar, which is given back in any case.
        resume: the checkpoint to go on from.
        over_is_fine: take a checkpoint with no step to follow for a training that is over, not for a mistake.

    Returns:
        Whether it was stopped before its end; a checkpoint has then been saved if there was a step to save.

    Raises:
        SettingError: the checkpoint cannot be read, or there is nothing left to train.
    """
    interruption = Interruption()
    trainer.add_callback(interruption)
    if resume is not None:
        say(f"resuming from {resume}")
    begun, stopped = Begun(resume, over_is_fine=over_is_fine), False
    trainer.add_callback(begun)
    try:
        with interruption:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        stopped = interruption.asked and trainer.state.global_step < trainer.state.max_steps
    except KeyboardInterrupt:
        stopped = True
    except (ParingError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if resume is None or begun.begun:
            raise
        # Nothing has run yet but reading the checkpoint; torch, safetensors and pickle each have errors of their own.
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise SettingError(
            f"The checkpoint {str(resume)!r} cannot be read, or does not fit the model ({said}). "
            "It is damaged, or from another run: use another checkpoint-* folder of this one, or start anew."
        ) from error
    finally:
        bar.stop()
    return stopped


def stopped_at(checkpoint: Path | None, onward: str) -> Stopped:
    """Say where an interrupted run can be gone on with, and by which command."""
    if checkpoint is None:
        say("paring: interrupted before the first checkpoint; there is nothing to resume.")
    else:
        say(f"paring: stopped; {checkpoint} holds everything. Go on with:\n  {onward}")
    return Stopped(checkpoint=checkpoint)
