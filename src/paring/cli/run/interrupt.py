"""Ctrl-C while training: finish the step, save a checkpoint, stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paring.cli.console import say

PERIOD = 8
"""Steps after which processes that train together ask each other whether to stop."""


class Interruption(TrainerCallback):
    """A context that turns the first SIGINT (or SIGTERM) into a checkpoint at the end of the step; the second stops at once.

    >>> with Interruption() as interruption:          # doctest: +SKIP
    ...     trainer.add_callback(interruption)
    ...     trainer.train()
    >>> interruption.asked                            # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.asked = False
        self._agreed = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("paring: interrupted; saving a checkpoint at the end of this step (interrupt again to stop at once)")

    def _agree(self, args: TrainingArguments, state: TrainerState) -> None:
        """Processes that train together get the signal at different steps, but must stop at the same one."""
        if state.global_step % PERIOD == 0:
            asked = torch.tensor(int(self.asked), device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self._agreed = self.asked = bool(asked)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask the trainer to save and stop."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._agree(args, state)
        elif self.asked:
            self._agreed = True
        if self._agreed:
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True
