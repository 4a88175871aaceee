"""What stands around a step: the share of a Trainer's step that the proximal hooks, the callback and its log take, on MiniLM.

The hooks and every method of the callback are timed inside a real run of ParingTrainer that logs every tenth step.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from contestants import SHAPES, base
from environment import save
from transformers import TrainerCallback, TrainingArguments

import paring
from paring import step
from paring.methods.sora import SoRA
from paring.parts.update.revive import Always, Every, Never, Revive
from paring.train import ParingTrainer
from paring.train.callback import ParingCallback

spent: dict[str, float] = defaultdict(float)


def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its seconds added to ``spent``."""

    @functools.wraps(work)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - started

    return wrapper


class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Notes how long each step takes, and forgets what was spent before the first steps were over."""

    def __init__(self, warm: int) -> None:
        self.warm = warm
        self.started = 0.0
        self.steps: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the forward; the steps before are warm."""
        now = time.perf_counter()
        if state.global_step == self.warm:
            spent.clear()
        elif state.global_step > self.warm:
            self.steps.append(now - self.started)
        self.started = now


def run(revive: Revive, steps: int, warm: int = 10) -> dict[str, float]:
    """One run; shares of the whole of its steps."""
    torch.manual_seed(0)
    model = paring.adapt(base("minilm"), SoRA(rank=8, alpha=16, revive=revive), task_type="SEQ_CLS", seed=0)
    rows, width = SHAPES["minilm"]
    data = [{"input_ids": torch.randint(1, 8192, (width,)), "labels": torch.tensor(row % 2)} for row in range(rows * steps)]
    clock = Clock(warm)
    with tempfile.TemporaryDirectory() as place:
        args = TrainingArguments(
            output_dir=place,
            max_steps=steps,
            per_device_train_batch_size=rows,
            learning_rate=1e-3,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = ParingTrainer(model=model, args=args, train_dataset=data, callbacks=[clock])
        trainer.train()
    whole = sum(clock.steps)
    return {"step_seconds": float(np.median(clock.steps)), **{name: seconds / whole for name, seconds in sorted(spent.items())}}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    step.uninstall()
    step._before = timed("hook before the step", step._before)
    step._after = timed("hook after the step", step._after)
    step.install()
    for name in ("on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log"):
        if name in vars(ParingCallback):
            setattr(ParingCallback, name, timed(f"callback, {name}", vars(ParingCallback)[name]))
    found = {name: run(rule, given.steps) for name, rule in (("always", Always()), ("every 8", Every(period=8)), ("never", Never()))}
    for name, row in found.items():
        total = sum(value for key, value in row.items() if key != "step_seconds")
        print(f"{name}: {1e3 * row['step_seconds']:.0f} ms a step, {total:.2%} around it")
        for key, value in row.items():
            if key != "step_seconds":
                print(f"  {key:30} {value:.3%}")
    save("around", {"runs": found, "steps": given.steps, "logging_steps": 10})


if __name__ == "__main__":
    main()
