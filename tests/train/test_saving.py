"""Checkpoints that appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainerState

from paring.attach.find import slots
from paring.core.errors import SettingError
from paring.train import ParingTrainer
from paring.train.checkpoints import UNFINISHED, complete, last_checkpoint, numbered

Make = Callable[..., Any]
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8}


class Seen(TrainerCallback):
    """What has a name in the folder while checkpoints are written."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: list[list[str]] = []
        self.after: list[list[str]] = []
        self.folder = folder
        save = TrainerState.save_to_json

        def saving(state: TrainerState, path: str) -> None:
            self.before.append([item.name for item in numbered(folder)])
            save(state, path)

        monkeypatch.setattr(TrainerState, "save_to_json", saving)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.after.append([item.name for item in numbered(self.folder)])
        assert not (self.folder / UNFINISHED).exists()


def test_a_checkpoint_has_its_name_when_it_is_complete(
    adapted: Make, arguments: Make, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(tmp_path / "out", monkeypatch)
    trainer = ParingTrainer(model=adapted(), args=arguments(**SAVING, save_total_limit=2), train_dataset=data, callbacks=[seen])
    trainer.beside = {"task.json": b"{}"}
    trainer.train()
    names = [f"checkpoint-{step}" for step in (2, 4, 6, 8)]
    assert seen.before == [[], names[:1], names[:2], names[1:3]]
    assert seen.after == [names[:1], names[:2], names[1:3], names[2:]]
    assert all(complete(folder) and (folder / "task.json").read_bytes() == b"{}" for folder in numbered(tmp_path / "out"))


@pytest.mark.parametrize("best", [2, 6])
def test_the_best_checkpoint_is_kept_and_known_by_its_name(best: int, adapted: Make, arguments: Make, data: Any, tmp_path: Path) -> None:
    def scored(outputs: Any) -> dict[str, float]:
        return {"score": float(trainer.state.global_step == best)}

    keep = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "score"}
    args = arguments(**SAVING, **keep, save_total_limit=1, greater_is_better=True, label_names=["labels"])
    model = adapted()
    trainer = ParingTrainer(model=model, args=args, train_dataset=data, eval_dataset=data, compute_metrics=scored)
    trainer.train()
    place = tmp_path / "out" / f"checkpoint-{best}"
    assert trainer.state.best_model_checkpoint == str(place)
    assert [item.name for item in numbered(tmp_path / "out")] == [place.name]
    assert json.loads((place / "trainer_state.json").read_text())["best_model_checkpoint"] == str(place)
    assert all(slot.steps == best for slot in slots(model).values())


def test_a_save_that_fails_leaves_nothing(
    adapted: Make, arguments: Make, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = ParingTrainer._save_rng_state

    def failing(self: ParingTrainer, output_dir: str) -> None:
        if self.state.global_step == 4:
            raise OSError("gone")
        save(self, output_dir)

    monkeypatch.setattr(ParingTrainer, "_save_rng_state", failing)
    with pytest.raises(OSError, match="gone"):
        ParingTrainer(model=adapted(), args=arguments(**SAVING), train_dataset=data).train()
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["checkpoint-2"]


def test_resuming_passes_over_what_was_not_written_to_its_end(adapted: Make, arguments: Make, data: Any, tmp_path: Path) -> None:
    whole, args = adapted(), arguments(**SAVING)
    ParingTrainer(model=whole, args=args, train_dataset=data).train()
    # As a trainer leaves it that writes in place, and one in a folder of an earlier release that was killed.
    for step, name in ((8, "trainer_state.json"), (6, "scheduler.pt")):
        (tmp_path / "out" / f"checkpoint-{step}" / name).unlink()
    (tmp_path / "out" / UNFINISHED / "checkpoint-8").mkdir(parents=True)
    assert last_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-4"
    (tmp_path / "out" / "checkpoint-6" / "trainer_state.json").write_text('{"half')
    again = adapted()
    with pytest.warns(UserWarning, match="checkpoint-6, checkpoint-8 in .* not written to .* going on from checkpoint-4"):
        ParingTrainer(model=again, args=args, train_dataset=data).train(resume_from_checkpoint=True)
    assert all(torch.equal(mine, other) for mine, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert [item.name for item in numbered(tmp_path / "out") if not complete(item)] == []
    assert not (tmp_path / "out" / UNFINISHED).exists()


def test_resuming_from_nothing_is_refused(adapted: Make, arguments: Make, data: Any, tmp_path: Path) -> None:
    (tmp_path / "out" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(SettingError, match="holds no checkpoint that was written to its end"):
        ParingTrainer(model=adapted(), args=arguments(), train_dataset=data).train(resume_from_checkpoint=True)
