"""SoRA's Algorithm 1: warm starts, a schedule for each stage, falling ranks, scores against the first stage."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD
from transformers import TrainerCallback

from paring.attach.find import slots
from paring.core.errors import SettingError
from paring.core.schedules import penalty_list
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA
from paring.train import ParingTrainer, Scores, create_optimizer, run_stages, set_penalty, sparsify

Make = Callable[..., Any]


def test_stages_start_warm_and_ranks_never_rise_without_gradients(adapted: Make) -> None:
    model = adapted(SoRA(rank=4, penalty=7.0, gate_rate=0.25))
    with torch.no_grad():
        for slot in slots(model).values():
            slot.gate.copy_(torch.tensor([0.25, 0.75, -1.5, 9.0]))
    seen = []

    def train_stage(index: int, penalty: float) -> None:
        seen.append((index, penalty, [slot.gate.tolist() for slot in slots(model).values()], {s.penalty for s in slots(model).values()}))
        optimizer = create_optimizer(model, SGD, lr=0.25)
        for _ in range(2):
            (model(x=torch.ones(1, 6))["loss"] * 0.0).backward()
            optimizer.step()
            optimizer.zero_grad()

    model.train()
    stages = sparsify(model, (0.5, 1.0, 2.0), train_stage, lambda: Scores(train=1.0, validation=1.0))
    # Travel of the stages: 2 x 0.25 x penalty = 0.25, 0.5, 1.
    assert [item[2][0] for item in seen] == [[0.25, 0.75, -1.5, 9.0], [0.0, 0.5, -1.25, 8.75], [0.0, 0.0, -0.75, 8.25]]
    assert [item[3] for item in seen] == [{0.5}, {1.0}, {2.0}]
    assert [stage.adapter.ranks["first"] for stage in stages] == [3, 2, 1]
    assert [(stage.index, stage.goal) for stage in stages] == [(0, 0.5), (1, 1.0), (2, 2.0)]
    assert "out.weight" in stages[0].adapter.heads


def test_memorization_and_generalization_are_percentages_of_the_first_stage(adapted: Make) -> None:
    scores = iter([Scores(train=0.8, validation=0.5), Scores(train=0.6, validation=0.55), Scores(train=0.4, validation=0.0)])
    stages = sparsify(adapted(), (0.0, 0.1, 0.2), lambda index, penalty: None, lambda: next(scores))
    assert [stage.memorization for stage in stages] == pytest.approx([100.0, 75.0, 50.0])
    assert [stage.generalization for stage in stages] == pytest.approx([100.0, 110.0, 0.0])


def test_first_stage_is_100_by_definition_and_a_zero_reference_is_no_number(adapted: Make) -> None:
    stages = sparsify(adapted(), (0.0, 0.1), lambda index, penalty: None, lambda: Scores(train=0.0, validation=0.0))
    assert (stages[0].memorization, stages[0].generalization) == (100.0, 100.0)
    assert math.isnan(stages[1].memorization)


@pytest.mark.parametrize("penalties", [(), (0.2, 0.1), (0.1, 0.1)])
def test_penalties_that_do_not_ascend_are_refused_before_any_training(adapted: Make, penalties: tuple[float, ...]) -> None:
    with pytest.raises(SettingError, match="larger than the one before"):
        sparsify(adapted(), penalties, lambda index, penalty: pytest.fail("trained"), lambda: Scores(train=1.0, validation=1.0))


def test_set_penalty_counts_its_slots_and_refuses_what_cannot_be(adapted: Make) -> None:
    model = adapted()
    assert set_penalty(model, 0.5) == 2
    assert {slot.penalty for slot in slots(model).values()} == {0.5}
    with pytest.raises(SettingError, match=r"weight=-1"):
        set_penalty(model, -1.0)
    with pytest.raises(SettingError, match="without gates"):
        set_penalty(adapted(LoRA(rank=4)), 0.5)


class FirstRate(TrainerCallback):
    """Keeps the learning rate of the gates at each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.rates.append(optimizer.param_groups[-1]["lr"])


def test_every_stage_has_a_learning_rate_schedule_of_its_own(adapted: Make, arguments: Make, data: Any) -> None:
    model = adapted(SoRA(rank=4, gate_rate=1.0))
    watches = []

    def make(index: int, penalty: float) -> ParingTrainer:
        watches.append(FirstRate())
        args = arguments(max_steps=2, learning_rate=0.5, lr_scheduler_type="linear")
        return ParingTrainer(model=model, args=args, train_dataset=data, callbacks=[watches[-1]])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stages = run_stages(make, model, penalty_list(0.0, 0.2, 3), lambda: Scores(train=1.0, validation=1.0))
    assert [watch.rates for watch in watches] == [[1.0, 0.5]] * 3
    assert len(stages) == 3


def test_trainer_or_optimizer_that_comes_back_is_refused(adapted: Make, arguments: Make, data: Any) -> None:
    model = adapted()
    score = lambda: Scores(train=1.0, validation=1.0)  # noqa: E731
    once = ParingTrainer(model=model, args=arguments(max_steps=1), train_dataset=data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SettingError, match="trainer of an earlier stage for stage 1"):
            run_stages(lambda index, penalty: once, model, (0.1, 0.2), score)
        mine = create_optimizer(model, lr=1e-3)

        def same_optimizer(index: int, penalty: float) -> ParingTrainer:
            return ParingTrainer(model=model, args=arguments(max_steps=1), train_dataset=data, optimizers=(mine, None))

        with pytest.raises(SettingError, match="optimizer of an earlier stage"):
            run_stages(same_optimizer, model, (0.1, 0.2), score)
        with pytest.raises(SettingError, match="another model"):
            run_stages(lambda index, penalty: once, adapted(), (0.1, 0.2), score)
