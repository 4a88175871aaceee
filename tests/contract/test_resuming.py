"""A run that was cut off and goes on ends where the uninterrupted one does, bit for bit: at any step, with dead ranks, with dropout."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from paring import train
from paring.attach.find import slots
from paring.parts.parameterise.gated import Gated
from tests.contract.cases import Case, adapter_state, gated_slots, names_that_differ, roughen, scratch, trained_names
from tests.contract.training import trainer, with_dropout

STEPS = 3


def _start(case: Case) -> PeftModel:
    """A model with dropout; in each module, one rank has died already and one is about to, both without a gradient."""
    model = case.adapted(method=with_dropout(case.method))
    roughen(model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for slot in slots(model).values():
            if isinstance(slot, Gated):
                slot.A[-2:] = slot.B[:, -2:] = 0.0
                slot.gate[-2], slot.gate[-1] = 0.0, 1e-4
    return model


def _optimizer_state(run: train.ParingTrainer) -> dict[str, Tensor]:
    assert run.optimizer is not None
    state = run.optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items() if isinstance(value, Tensor)}


@functools.cache
def _uninterrupted(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor], Path]:
    """Adapter and optimizer at the end of the whole run, and the folder with its checkpoints."""
    model, folder = _start(case), Path(scratch()) / f"run-{case}"
    run = trainer(case, model, folder, STEPS, kind=train.ParingTrainer, save_strategy="steps", save_steps=1)
    run.train()
    return adapter_state(model), _optimizer_state(run), folder


@pytest.mark.parametrize("step", [1, 2])
def test_resumed_equals_uninterrupted(case: Case, step: int) -> None:
    whole, optimizer, folder = _uninterrupted(case)
    again = _start(case)
    # Another start, and another state of the generator: all of it has to come from the checkpoint.
    roughen(again, torch.Generator().manual_seed(5))
    torch.manual_seed(99)
    resumed = trainer(case, again, folder / f"again-{step}", STEPS, kind=train.ParingTrainer)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert resumed.state.global_step == STEPS
    assert names_that_differ(adapter_state(again), whole) == []
    assert names_that_differ(_optimizer_state(resumed), optimizer) == []


def test_the_run_changes_every_kind_of_parameter(case: Case) -> None:
    # What the test above leans on.
    start = _start(case)
    changed = names_that_differ(adapter_state(start), _uninterrupted(case)[0])
    assert {name.rsplit(".", 1)[-1] for name in changed} >= trained_names(start)


def test_ranks_die_in_the_run_and_stay_dead_over_a_restart(case: Case) -> None:
    before, folder = _start(case), _uninterrupted(case)[2]
    assert all(slot.gate[-1] != 0 and slot.gate[-2] == 0 for slot in gated_slots(before).values())
    for step in range(1, STEPS + 1):
        again = PeftModel.from_pretrained(case.base(), str(folder / f"checkpoint-{step}"), is_trainable=True)
        for slot in gated_slots(again).values():
            assert slot.gate[-1] == slot.gate[-2] == 0, "an exact zero is in the checkpoint as such"
            assert int(slot.steps) == step, "the count of proximal steps is in the checkpoint"
