"""Planted ranks as a task of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from paring.cli.study.build import build
from paring.cli.study.made import make
from paring.cli.study.planted import Planting, places, plant, planting
from paring.cli.study.text import read_text
from paring.cli.study.work import Worker
from paring.core.errors import SettingError, TargetError
from paring.study.records import Job, Phase, State
from paring.study.search import Asked
from paring.train import Recorder

CONTESTANTS: dict[str, dict[str, Any]] = {
    "LoRA": {"method": "lora", "rank": 2},
    "cut": {"method": "spectral", "rank": 4, "budget": "50%"},
    "SHiRA": {"method": "shira", "rank": 1},
    "PEFT's LoRA": {"peft": {"peft_type": "LORA", "r": 2}},
    "PEFT's AdaLoRA": {"peft": {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "deltaT": 1}},
}


def job(
    bert: Path, moods: Path, contestant: str, *, phase: Phase = Phase.FINAL, planted: dict[str, Any] | None = None, **flags: Any
) -> Job:
    base = {"model_name_or_path": str(bert), "dataset_name": str(moods), "per_device_train_batch_size": 16, "num_train_epochs": 2}
    settings: dict[str, Any] = {
        "flags": {**base, **CONTESTANTS[contestant], **flags},
        "values": {"learning_rate": 1e-2},
        "planted": {"size": 0.5} if planted is None else planted,
    }
    if phase is Phase.SEARCH:
        settings["search"] = {"held": 0.25, "held_seed": 0, "evaluations": 2}
    return Job(contestant=contestant, task="planted", budget=None, phase=phase, seed=0, settings=settings)


def run(bert: Path, moods: Path, contestant: str, **more: Any) -> Any:
    return Worker(definitions={})(Asked(job=job(bert, moods, contestant, **more)))


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_every_kind_learns_what_was_planted(contestant: str, bert: Path, moods: Path) -> None:
    outcome = run(bert, moods, contestant, num_train_epochs=15)
    assert outcome.error is None
    assert outcome.state is State.FINISHED
    # 1 is the encoder as it is.
    assert outcome.metrics["relative_error"] < (1.2 if contestant == "PEFT's AdaLoRA" else 0.95)
    assert ("rank_error" in outcome.metrics) == (contestant != "SHiRA")


def test_a_trial_is_scored_on_texts_that_it_was_not_trained_on(bert: Path, moods: Path) -> None:
    outcome = run(bert, moods, "LoRA", phase=Phase.SEARCH)
    assert [point.step for point in outcome.history if "eval_relative_error" in point.values] == [3, 6]


def test_updates_have_their_rank_and_size(bert: Path) -> None:
    model, bare = AutoModel.from_pretrained(bert), AutoModel.from_pretrained(bert)
    ranks = plant(model, Planting(pattern=3, size=0.2))
    assert set(ranks) == set(places(bare))
    assert len(ranks) == 12
    assert len(set(ranks.values())) > 2
    for name, module in places(model).items():
        weight = places(bare)[name].weight
        update = (module.weight - weight).double()
        if ranks[name] == 0:
            assert torch.equal(module.weight, weight)
            continue
        assert int((torch.linalg.svdvals(update) > 1e-6).sum()) == ranks[name]
        assert (update.norm() / weight.double().norm()).item() == pytest.approx(0.2, rel=1e-4)
    other = AutoModel.from_pretrained(bert)
    assert plant(other, Planting(pattern=3, size=0.2)) == ranks
    assert torch.equal(places(other)["encoder.layer.0.output.dense"].weight, places(model)["encoder.layer.0.output.dense"].weight)


def test_errors_are_those_of_their_definitions(bert: Path, moods: Path, tmp_path: Path) -> None:
    made = make(job(bert, moods, "LoRA", planted={"size": 0.5, "pattern": 1}), {}, Recorder(), tmp_path)
    start = made.trainer.evaluate()
    assert start["eval_relative_error"] == pytest.approx(1.0)  # the update is zero
    made.trainer.train()
    found = made.trainer.evaluate()
    teacher, bare = AutoModel.from_pretrained(bert).eval(), AutoModel.from_pretrained(bert).eval()
    ranks = plant(teacher, Planting(size=0.5, pattern=1))
    model: Any = made.prepared.model.eval()
    rows = made.prepared.rows.held_out
    assert rows is not None
    far, whole = 0.0, 0.0
    with torch.inference_mode():
        for text in rows["text"]:
            inputs = made.prepared.base.tokenizer(text, return_tensors="pt")
            given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            wanted = teacher(**given).last_hidden_state
            far += float((model(**given).last_hidden_state - wanted).double().square().sum())
            whole += float((bare(**given).last_hidden_state - wanted).double().square().sum())
    assert found["eval_relative_error"] == pytest.approx(far / whole, rel=1e-4)
    assert found["eval_rank_error"] == pytest.approx(sum(abs(2 - rank) for rank in ranks.values()) / sum(ranks.values()))


def test_a_file_asks_for_it(tmp_path: Path) -> None:
    good = (
        "settings: {model_name_or_path: x, dataset_name: y}\ntasks:\n  planted:\n    planted: {pattern: 2, ranks: [0, 3]}\n"
        "    metric: relative_error\ncontestants: {LoRA: {method: lora, learning_rate: 1e-3}}\n"
    )

    def built(text: str) -> Any:
        (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
        return build(read_text(tmp_path / "study.yaml"), {}).study

    study = built(good)
    assert study.cells[0].settings["planted"] == {"pattern": 2, "ranks": [0, 3]}
    assert not study.metrics["planted"].larger_is_better
    for old, new, said in (
        ("pattern: 2", "patern: 2", "line 4: planted: unknown key 'patern'. Did you mean 'pattern'"),
        ("pattern: 2", "pattern: -2", "line 4: pattern=-2"),
        ("[0, 3]", "[0, x]", "line 4: ranks"),
        ("ranks: [0, 3]", "ranks: 3", "line 4: ranks"),
        ("ranks: [0, 3]", "size: 0", "line 4: size=0"),
        ("relative_error", "accuracy", "line 5: task 'planted': there is no metric 'accuracy'"),
    ):
        with pytest.raises(SettingError, match=said.replace("[", r"\[").replace("]", r"\]")):
            built(good.replace(old, new))


def test_what_cannot_be_planted(bert: Path, moods: Path) -> None:
    with pytest.raises(TargetError, match="a rank of 99 does not fit"):
        plant(AutoModel.from_pretrained(bert), planting({"ranks": [99]}))
    whole = Worker(definitions={})(Asked(job=job(bert, moods, "LoRA", method="lisa", rank=None)))
    assert whole.state is State.FAILED
