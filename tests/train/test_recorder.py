"""A run written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from paring.attach.find import slots
from paring.core.errors import TargetError
from paring.core.records import Point, RunRecord
from paring.methods.sora import SoRA
from paring.train import ParingTrainer, Recorder
from paring.train.recorder import points

Make = Callable[..., Any]


def test_points_merge_what_was_logged_at_one_step_and_keep_numbers_only() -> None:
    history = [
        {"step": 2, "loss": 1.5, "note": "text"},
        {"step": 1, "loss": 2},
        {"loss": 3.0},
        {"step": 2, "eval_loss": 0.5},
    ]
    assert points(history) == (Point(step=1, values={"loss": 2.0}), Point(step=2, values={"loss": 1.5, "eval_loss": 0.5}))


def test_record_of_a_run_holds_what_happened_and_survives_json(adapted: Make, arguments: Make, data: Any) -> None:
    model = adapted(SoRA(rank=4, penalty=0.25))
    with torch.no_grad():
        slots(model)["first"].gate[:3] = 0.0
    recorder = Recorder()
    trainer = ParingTrainer(
        model=model, args=arguments(max_steps=3, learning_rate=1e-6), train_dataset=data, eval_dataset=data, callbacks=[recorder]
    )
    trainer.train()
    trainer.evaluate()
    run = recorder.record(model, title="small", command="x", seed=3, metrics={"accuracy": 0.5}, files={"a": 7}, base_model="base")
    assert [point.step for point in run.history] == [1, 2, 3]
    assert all({"loss", "lambda", "live_ranks", "sparsity", "learning_rate"} <= set(point.values) for point in run.history)
    assert "eval_loss" in run.history[-1].values
    assert run.history[-1].values["live_ranks"] == run.live_ranks == 5
    assert [(m.path, m.start_rank, m.live_rank) for m in run.modules] == [("first", 4, 1), ("second", 4, 4)]
    assert run.head_parameters == 7 + 12
    assert run.base_parameters == 2 * 42 + 7 + 12
    assert run.method == model.peft_config["default"].method.encode()
    assert run.seconds > 0
    assert {"paring", "torch", "python"} <= set(run.versions)
    assert {"processor", "cores", "threads", "accelerator"} <= set(run.machine)
    assert RunRecord.from_json(run.to_json()) == run


def test_record_of_another_adapter_is_refused_with_near_names(adapted: Make) -> None:
    with pytest.raises(TargetError, match="defalt"):
        Recorder().record(adapted(), title="x", seed=0, adapter="defalt")
