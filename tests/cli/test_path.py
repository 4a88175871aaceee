"""``paring train --tolerance`` and ``paring path``: what is chosen, what is written, and that both go on where they were."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import paring
from paring.cli.data.metrics import estimated, estimated_language
from paring.cli.run.budgets import tolerated
from paring.core.errors import SettingError
from paring.core.records import RunRecord
from paring.train import StandardErrors, Within
from tests.cli.conftest import TRAIN

Run = Callable[..., int]
FLAGS = {key: value for key, value in TRAIN.items() if key != "penalty"} | {"choose_share": 0.25}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1se", StandardErrors(count=1.0)),
        ("0.5 se", StandardErrors(count=0.5)),
        ("0.5%", Within(share=0.005)),
        (" 2 % ", Within(share=0.02)),
        (".5%", Within(share=0.005)),
    ],
)
def test_how_a_tolerance_is_written(text: str, wanted: object) -> None:
    assert tolerated(text) == wanted


@pytest.mark.parametrize("text", ["", "1", "se", "one se", "-1%", "0.5", "1SE", "5%%", "101%"])
def test_what_is_no_tolerance(text: str) -> None:
    with pytest.raises(SettingError, match="--tolerance"):
        tolerated(text)


def test_standard_errors_are_those_of_repeated_samples() -> None:
    generator = np.random.default_rng(0)
    logits = np.stack([np.zeros(400), np.where(generator.random(400) < 0.8, 1.0, -1.0)], axis=1)
    value, error = estimated("classification", logits, np.ones(400, dtype=int))
    assert error == pytest.approx((value * (1 - value) / 399) ** 0.5)

    def correlation() -> tuple[float, float]:
        x = generator.normal(size=200)
        return estimated("regression", (0.8 * x + 0.6 * generator.normal(size=200))[:, None], x)

    repeated = [correlation() for _ in range(60)]
    assert np.mean([error for _, error in repeated]) == pytest.approx(np.std([value for value, _ in repeated]), rel=0.25)
    assert correlation()[1] > 0
    x = generator.normal(size=50)
    assert estimated("regression", x + 0.5, x * 2 + 0.1 * x**2) == estimated("regression", x + 0.5, x * 2 + 0.1 * x**2)  # seeded

    def language() -> tuple[float, float]:
        tokens = generator.integers(3, 30, size=150).astype(float)
        rows = generator.gamma(4.0, 0.25, size=150)
        return estimated_language(tokens * rows, tokens)

    repeated = [language() for _ in range(200)]
    assert np.mean([error for _, error in repeated]) == pytest.approx(np.std([value for value, _ in repeated]), rel=0.15)
    assert language()[0] == pytest.approx(np.exp(-1.0), rel=0.1)
    assert all(np.isnan(estimated_language(np.zeros(3), np.zeros(3))))


@pytest.fixture(scope="module")
def tolerant(bert: Path, moods: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("path") / "tolerant"
    flags = {**FLAGS, "model_name_or_path": bert, "dataset_name": moods}
    assert run("train", **flags, tolerance="100%", stages=3, output_dir=folder) == 0
    return folder


def record(folder: Path) -> RunRecord:
    return RunRecord.from_json((folder / "run.json").read_text(encoding="utf-8"))


def test_a_tolerance_is_all_that_has_to_be_said(tolerant: Path) -> None:
    done = record(tolerant)
    assert done.path is not None
    assert [stage.parameters for stage in done.path.stages] == sorted((stage.parameters for stage in done.path.stages), reverse=True)
    # Everything is inside 100%, so the smallest is chosen.
    assert done.path.chosen == 3
    assert done.parameters == done.path.stages[3].parameters <= done.start_parameters / 5
    assert paring.read(tolerant / "adapter").parameters == done.parameters
    assert json.loads((tolerant / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert done.metrics["accuracy"] == done.path.stages[3].metrics["accuracy"]
    assert done.settings["rows"] == {"train": 48, "eval": 32}
    assert done.settings["chosen_by"] == 16
    assert done.method["quicken"] == 0.0, "stages have rates of their own"
    assert done.path.stages[0].memorization == done.path.stages[0].generalization == 100.0


def test_the_family_is_there_and_loads(tolerant: Path) -> None:
    done = record(tolerant)
    assert done.path is not None
    for stage in done.path.stages:
        assert stage.folder is not None
        assert paring.read(tolerant / stage.folder).parameters == stage.parameters
    assert not list(tolerant.rglob("checkpoint-*"))


def test_the_steps_of_all_stages_are_one_history(tolerant: Path) -> None:
    steps = [point.step for point in record(tolerant).history]
    assert steps == sorted(set(steps))
    # Two epochs of 48 rows in batches of 16, then three stages of a quarter of that.
    assert steps[-1] == 6 + 3 * 2


def test_a_later_stage_is_shorter_in_all_that_has_a_length() -> None:
    from paring.cli.run.options import PathOptions, TrainingOptions
    from paring.cli.run.ways import shortened

    def of(**given: Any) -> TrainingOptions:
        options: Any = SimpleNamespace(training=TrainingOptions(**given), path=PathOptions(stage_share=0.25))
        return shortened(options, 3)

    found = of(num_train_epochs=4.0, warmup_steps=100.0, seed=7)
    assert (found.num_train_epochs, found.warmup_steps, found.seed, found.max_steps) == (1.0, 25, 10, -1)
    assert of(max_steps=10, warmup_steps=0.06).max_steps == 2
    assert of(max_steps=10, warmup_steps=0.06).warmup_steps == 0.06
    assert of(max_steps=1, warmup_steps=1.0).max_steps == of(max_steps=1, warmup_steps=1.0).warmup_steps == 1
    assert of(seed=2**32 - 1).seed == 2


def test_the_recorded_command_repeats_it(tolerant: Path, run: Run, tmp_path: Path) -> None:
    words = shlex.split(record(tolerant).command)
    assert words[:2] == ["paring", "train"]
    words[words.index("--output_dir") + 1] = str(tmp_path / "again")
    assert run(*words[1:]) == 0
    _same(tolerant, tmp_path / "again")


def _same(one: Path, other: Path) -> None:
    for place in ("adapter", *(f"family/stage-{index:02d}/adapter" for index in range(4))):
        first, again = (load_file(folder / place / "adapter_model.safetensors") for folder in (one, other))
        assert first.keys() == again.keys()
        assert all(torch.equal(first[key], again[key]) for key in first)


class Signal(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Interrupts the process, as Ctrl-C does, at a step of a stage."""

    stage, step = 0, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == f"stage-{self.stage:02d}" and state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("stage", "step"), [(0, 3), (2, 1)])
def test_an_interrupted_path_goes_on_with_the_same_bits(
    tolerant: Path, bert: Path, moods: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, step: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from paring.cli.run import descent

    make = descent.make_trainer

    def interrupted(*given: Any) -> Any:
        trainer = make(*given)
        watch = Signal()
        watch.stage, watch.step = stage, step
        trainer.add_callback(watch)
        return trainer

    folder = tmp_path / "on"
    flags = {**FLAGS, "model_name_or_path": bert, "dataset_name": moods, "tolerance": "100%", "stages": 3, "output_dir": folder}
    with monkeypatch.context() as patch:
        patch.setattr(descent, "make_trainer", interrupted)
        assert run("train", **flags) == 130
    said = capsys.readouterr().err
    assert "--resume_from_checkpoint last" in said
    assert not (folder / "adapter").exists()
    assert run("train", **flags, resume_from_checkpoint="last") == 0
    _same(tolerant, folder)
    assert [point.step for point in record(folder).history] == [point.step for point in record(tolerant).history]


def test_another_tolerance_is_asked_of_a_finished_path(
    tolerant: Path, bert: Path, moods: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**FLAGS, "model_name_or_path": bert, "dataset_name": moods, "stages": 3, "output_dir": tolerant}
    before = {path: path.stat().st_mtime_ns for path in (tolerant / "family").rglob("state.safetensors")}
    assert run("train", **flags, tolerance="0%", resume_from_checkpoint="last") == 0
    done = record(tolerant)
    assert done.path is not None
    assert done.path.floor == done.path.stages[0].held_out
    assert paring.read(tolerant / "adapter").parameters == done.parameters
    assert before == {path: path.stat().st_mtime_ns for path in (tolerant / "family").rglob("state.safetensors")}
    assert run("train", **flags, tolerance="100%", resume_from_checkpoint="last") == 0
    assert record(tolerant).path.chosen == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(("flag", "value"), [("max_length", 8), ("dtype", "bfloat16"), ("modules_to_save", "pooler")])
def test_a_path_does_not_go_on_with_other_data_or_another_model(
    flag: str, value: object, tolerant: Path, bert: Path, moods: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**FLAGS, "model_name_or_path": bert, "dataset_name": moods, "stages": 3, "output_dir": tolerant}
    assert run("train", **flags, tolerance="100%", resume_from_checkpoint="last", **{flag: value}) != 0
    assert "were trained with other settings" in capsys.readouterr().err


def test_a_path_alone_is_a_family_and_no_choice(
    bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "path"
    flags = {**FLAGS, "model_name_or_path": bert, "dataset_name": moods}
    assert run("path", **flags, stages=2, output_dir=folder) == 0
    done = record(folder)
    assert done.path is not None
    assert (done.path.chosen, len(done.path.stages)) == (None, 3)
    assert not (folder / "adapter").exists()
    assert done.command.startswith("paring path ")
    assert "family" in capsys.readouterr().out
    for place in (folder, folder / "family"):
        assert run("eval", place, moods) == 1
        assert "3 adapters" in (said := " ".join(capsys.readouterr().err.split()))
    assert run("eval", folder / "family" / "stage-02" / "adapter", moods) == 0
    assert said.endswith("stage-02/adapter'.")


def test_a_path_by_penalties_is_algorithm_one(bert: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "sora"
    flags = {**FLAGS, "model_name_or_path": bert, "dataset_name": moods, "method": "sora", "gate_rate": 0.05}
    assert run("path", **flags, penalties="0.1,2,8", output_dir=folder) == 0
    done = record(folder)
    assert done.path is not None
    assert [stage.goal for stage in done.path.stages] == [0.1, 2.0, 8.0]
    ranks = [stage.live_ranks for stage in done.path.stages]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] < ranks[0]


def test_a_language_model_is_chosen_by_the_probability_of_a_token(llama: Path, run: Run, jsonl: Any, tmp_path: Path) -> None:
    rows = jsonl(
        "texts.jsonl", *({"text": f"the film was {word} and the day was {word}"} for word in ("fine", "sad", "dull", "great") * 10)
    )
    flags = {**FLAGS, "model_name_or_path": llama, "dataset_name": rows, "tolerance": "50%", "stages": 1, "per_device_train_batch_size": 8}
    assert run("train", **flags, output_dir=tmp_path / "lm") == 0
    done = record(tmp_path / "lm")
    assert done.path is not None
    assert done.path.metric == "token probability"
    assert all(0 < stage.held_out < 1 and stage.error for stage in done.path.stages)
    # The same model on other rows of the same kind.
    assert done.path.stages[0].held_out == pytest.approx(1 / done.path.stages[0].metrics["perplexity"], rel=0.2)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"tolerance": "lots"}, "--tolerance lots"),
        ({"tolerance": "1se", "budget": "40k"}, "leave out --budget"),
        ({"tolerance": "1se", "method": "lora"}, "Only an adapter of method spectral"),
        ({"tolerance": "1se", "method": "sora"}, "--penalties"),
        ({"tolerance": "1se", "penalties": "0.2,0.1", "method": "sora"}, "larger than the one before"),
        ({"tolerance": "1se", "penalties": "a,b", "method": "sora"}, "give numbers"),
        ({"tolerance": "1se", "stages": 0}, "--stages 0"),
        ({"tolerance": "1se", "stage_share": 0}, "--stage_share"),
        ({"tolerance": "1se", "stage_factor": 1}, "factor"),
        ({"tolerance": "1se", "choose_share": 1.5}, "--choose_share"),
        ({"tolerance": "1se", "choose_share": 0.03}, "too few to choose"),
        ({"tolerance": "1se", "choose_share": 0, "eval_strategy": "no", "dataset_name": "train.tsv", "eval_share": 0}, "there are none"),
        ({"tolerance": "1se", "load_best_model_at_end": "true"}, "chooses among its stages"),
        ({"tolerance": "1se", "resume_from_checkpoint": "last"}, "holds no path"),
        ({"tolerance": "1se", "resume_from_checkpoint": "checkpoint-4"}, "give `last`"),
    ],
    ids=str,
)
def test_what_is_refused(
    flags: dict[str, object], said: str, bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    given = {**FLAGS, "model_name_or_path": bert, "dataset_name": moods, "output_dir": folder, **flags}
    if given["dataset_name"] == "train.tsv":
        given["dataset_name"] = moods / "train.tsv"
    assert run("train", **given) != 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()


def test_a_second_path_does_not_touch_the_first(
    tolerant: Path, bert: Path, moods: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**FLAGS, "model_name_or_path": bert, "dataset_name": moods, "tolerance": "1se", "output_dir": tolerant}
    assert run("train", **flags) != 0
    assert "not empty" in capsys.readouterr().err.replace("\n", " ")
    assert run("train", **{**flags, "learning_rate": 0.02}, resume_from_checkpoint="last") != 0
    assert "trained with other settings: training" in " ".join(capsys.readouterr().err.split())
