"""``paring train`` from data to files, for every task."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import paring
from paring.core.records import RunRecord
from tests.cli.conftest import TRAIN, sentences

Run = Callable[..., int]


def record(folder: Path) -> RunRecord:
    return RunRecord.from_json((folder / "run.json").read_text(encoding="utf-8"))


def test_a_run_leaves_adapter_checkpoint_record_and_report(trained: Path) -> None:
    run = record(trained)
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "tokenizer.json"} <= {
        p.name for p in (trained / "adapter").iterdir()
    }
    assert (trained / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (trained / "checkpoint-8" / "trainer_state.json").is_file()
    assert 0 < run.live_ranks < run.start_ranks
    assert {"accuracy", "f1_macro", "matthews", "loss"} <= set(run.metrics)
    assert any("lambda" in point.values and "live_ranks" in point.values for point in run.history)
    assert paring.read(trained / "adapter").ranks == {module.path: module.live_rank for module in run.modules}
    assert run.files["adapter_model.safetensors"] == (trained / "adapter" / "adapter_model.safetensors").stat().st_size
    assert len(run.settings["sha256"]) == 2


def test_the_recorded_command_repeats_the_run_bit_for_bit(trained: Path, run: Run, tmp_path: Path) -> None:
    words = shlex.split(record(trained).command)
    assert words[:2] == ["paring", "train"]
    words[words.index("--output_dir") + 1] = str(tmp_path / "again")
    assert run(*words[1:]) == 0
    first, again = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (trained, tmp_path / "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_resuming_ends_where_the_whole_run_ended(trained: Path, bert: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    flags = {**TRAIN, "model_name_or_path": bert, "dataset_name": moods}
    assert run("train", **flags, output_dir=tmp_path / "on", resume_from_checkpoint=trained / "checkpoint-4") == 0
    whole, resumed = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (trained, tmp_path / "on"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_two_accumulated_batches_train_as_one_of_their_size(trained: Path, bert: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    flags = {**TRAIN, "model_name_or_path": bert, "dataset_name": moods, "per_device_train_batch_size": 8}
    assert run("train", **flags, gradient_accumulation_steps=2, output_dir=tmp_path / "halves") == 0
    whole, halves = record(trained), record(tmp_path / "halves")
    for key in ("loss", "grad_norm"):
        wanted = {point.step: point.values[key] for point in whole.history if key in point.values}
        assert len(wanted) == 8
        assert {point.step: point.values[key] for point in halves.history if key in point.values} == pytest.approx(wanted, rel=0.02)
    assert [module.live_rank for module in halves.modules] == [module.live_rank for module in whole.modules]


def test_flags_from_a_file_with_flags_on_top(bert: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"method: lora\nrank: 3\nalpha: 6\nmax_steps: 2\nmodel_name_or_path: {bert}\ndataset_name: {moods}\n", encoding="utf-8"
    )
    assert run("train", "--config", config, rank=2, output_dir=tmp_path / "out") == 0
    done = record(tmp_path / "out")
    assert done.method["name"] == "lora"
    assert (done.method["rank"], done.method["alpha"]) == (2, 6.0)
    assert done.history[-1].step == 2


@pytest.fixture(scope="session")
def stars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 40 sentences with a number for each, 2.875 on average."""
    data = tmp_path_factory.mktemp("stars") / "stars.csv"
    rows = "".join(f'"{text}",{4.5 if mood == "good" else 1.25}\n' for text, mood in sentences(40))
    data.write_text("text,score\n" + rows, encoding="utf-8")
    return data


def test_regression_by_float_labels(bert: Path, stars: Path, run: Run, tmp_path: Path) -> None:
    assert run("train", **TRAIN, model_name_or_path=bert, dataset_name=stars, output_dir=tmp_path / "out") == 0
    done = record(tmp_path / "out")
    assert {"pearson", "spearman", "mse"} <= set(done.metrics)
    assert done.settings["rows"] == {"train": 36, "eval": 4}
    assert json.loads((tmp_path / "out" / "adapter" / "config.json").read_text())["problem_type"] == "regression"


STILL = {"max_steps": 1, "learning_rate": 1e-12, "eval_share": 0}


@pytest.mark.parametrize("flags", [{"method": "lora", "rank": 2}, {"method": "lisa", "layers": 1}])
def test_a_new_regression_head_starts_at_the_mean(
    flags: dict[str, Any], bert: Path, stars: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", **STILL, **flags, model_name_or_path=bert, dataset_name=stars, output_dir=tmp_path / "out") == 0
    assert "head: starts at the mean of the training labels, 2.875" in capsys.readouterr().err
    out = tmp_path / "out"
    heads = paring.read(out / "adapter").heads if flags["method"] == "lora" else load_file(out / "model" / "model.safetensors")
    assert heads["classifier.bias"].item() == pytest.approx(2.875)


def test_a_head_may_learn_at_a_rate_of_its_own(bert: Path, stars: Path, run: Run, tmp_path: Path) -> None:
    flags = {**STILL, "method": "lora", "head_learning_rate": 0.5}
    assert run("train", **flags, model_name_or_path=bert, dataset_name=stars, output_dir=tmp_path / "out") == 0
    # The first step of Adam is the rate itself; at the main one the head would stand still.
    assert abs(paring.read(tmp_path / "out" / "adapter").heads["classifier.bias"].item() - 2.875) == pytest.approx(0.5, rel=1e-3)
    assert record(tmp_path / "out").settings["head_learning_rate"] == 0.5
    assert "--head_learning_rate 0.5" in record(tmp_path / "out").command


@pytest.mark.parametrize(("times", "said"), [(1, False), (1000, True)])
def test_labels_that_spread_far_are_said(
    times: int, said: bool, bert: Path, stars: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line.rsplit(",", 1) for line in stars.read_text().splitlines()]
    data = tmp_path / "far.csv"
    data.write_text("text,score\n" + "".join(f"{text},{float(score) * times}\n" for text, score in lines[1:]), encoding="utf-8")
    assert run("train", **STILL, method="lora", model_name_or_path=bert, dataset_name=data, output_dir=tmp_path / "out") == 0
    assert ("better divide them" in capsys.readouterr().err) is said


def test_a_regression_head_starts_as_that_of_the_adapter(
    bert: Path, stars: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**STILL, "method": "lora", "model_name_or_path": bert, "dataset_name": stars}
    assert run("train", **{**given, "learning_rate": 1e-2, "max_steps": 4}, output_dir=tmp_path / "first") == 0
    before = paring.read(tmp_path / "first" / "adapter").heads["classifier.bias"]
    assert before.item() != pytest.approx(2.875, abs=1e-4)
    capsys.readouterr()
    assert run("train", **given, init_adapter=tmp_path / "first" / "adapter", output_dir=tmp_path / "second") == 0
    said = capsys.readouterr().err
    assert "head: starts as that of" in said
    assert "the mean" not in said
    assert torch.allclose(paring.read(tmp_path / "second" / "adapter").heads["classifier.bias"], before)


def test_a_regression_head_that_is_found_stays(
    bert: Path, stars: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=1)
    torch.nn.init.constant_(model.classifier.bias, -7.0)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "base")
    assert run("train", **STILL, method="lora", model_name_or_path=tmp_path / "base", dataset_name=stars, output_dir=tmp_path / "out") == 0
    assert "head: starts" not in capsys.readouterr().err
    assert paring.read(tmp_path / "out" / "adapter").heads["classifier.bias"].item() == pytest.approx(-7.0)


def test_a_regression_head_without_bias_is_left_alone(
    llama: Path, stars: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", **STILL, method="lora", model_name_or_path=llama, dataset_name=stars, output_dir=tmp_path / "out") == 0
    assert "head: starts" not in capsys.readouterr().err
    assert set(paring.read(tmp_path / "out" / "adapter").heads) == {"score.weight"}


def test_pairs_keep_both_texts_and_label_names(bert: Path, run: Run, jsonl: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"premise": text, "hypothesis": "it was fine", "label": int(mood == "good")} for text, mood in sentences(24)]
    data = jsonl("pairs.jsonl", *rows)
    out = tmp_path / "out"
    flags = {"max_steps": 2, "label_names": "sad,happy", "target_modules": "query,value"}
    assert run("train", "--no_load_best_model_at_end", **flags, model_name_or_path=bert, dataset_name=data, output_dir=out) == 0
    config = json.loads((out / "adapter" / "config.json").read_text())
    assert config["id2label"] == {"0": "sad", "1": "happy"}
    assert set(paring.read(out / "adapter").modules) == {
        f"bert.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")
    }


@pytest.mark.parametrize("form", ["messages", "prompt", "text"])
def test_language_models(form: str, llama: Path, run: Run, jsonl: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("trl")
    rows = {
        "messages": [
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": mood}]} for text, mood in sentences(16)
        ],
        "prompt": [{"prompt": f"{text} =>", "completion": f" {mood}"} for text, mood in sentences(16)],
        "text": [{"text": text} for text, _ in sentences(16)],
    }[form]
    out = tmp_path / "out"
    data = jsonl("rows.jsonl", *rows)
    assert run("train", max_steps=3, rank=4, model_name_or_path=llama, dataset_name=data, output_dir=out) == 0
    done = record(out)
    assert done.metrics["perplexity"] > 1.0
    adapter = paring.read(out / "adapter")
    assert adapter.metadata.task_type == "CAUSAL_LM"
    assert any(bool(factors.b.any()) for factors in adapter.modules.values())


def test_early_stopping_exports_the_best_checkpoint(
    bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**TRAIN, "learning_rate": 1e-3, "num_train_epochs": 6, "early_stopping_patience": 1, "metric_for_best_model": "accuracy"}
    assert run("train", **flags, model_name_or_path=bert, dataset_name=moods, output_dir=tmp_path / "out") == 0
    # So little changes no prediction, so the second evaluation is the last.
    done = record(tmp_path / "out")
    assert done.history[-1].step == 8
    assert "the run ended at step 8; what is saved is that of step 4, the best by accuracy" in capsys.readouterr().err
    assert done.settings["exported_step"] == 4
    losses = {point.step: point.values["eval_loss"] for point in done.history if "eval_loss" in point.values}
    assert done.metrics["loss"] == losses[4] != losses[8]
    state = json.loads((tmp_path / "out" / "checkpoint-8" / "trainer_state.json").read_text(encoding="utf-8"))
    assert losses[8] == next(entry["eval_loss"] for entry in state["log_history"] if entry["step"] == 8 and "eval_loss" in entry)


def test_starting_from_a_trained_adapter(trained: Path, bert: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    source = paring.read(trained / "adapter")
    path, factors = next((path, factors) for path, factors in source.modules.items() if factors.rank)
    flags = {"max_steps": 1, "learning_rate": 1e-12, "model_name_or_path": bert, "dataset_name": moods, "output_dir": tmp_path / "out"}
    assert run("train", **flags, init_adapter=trained / "adapter", target_modules=",".join(source.modules)) == 0
    done = record(tmp_path / "out")
    assert (done.method["rank"], done.method["gates"]) == (source.max_rank, "ones")
    again, before = paring.read(tmp_path / "out" / "adapter").modules[path].materialise(), factors.materialise()
    # One step, in which the gates may move a little; another start would be off by all of its size.
    assert float((again - before).norm() / before.norm()) < 0.1


def test_overwriting_replaces_the_run_and_nothing_else(bert: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    flags = {"max_steps": 2, "rank": 2, "model_name_or_path": bert, "dataset_name": moods, "output_dir": tmp_path}
    assert run("train", **flags) == 0
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    before = (tmp_path / "run.json").read_bytes()
    assert run("train", **flags) == 1
    assert (tmp_path / "run.json").read_bytes() == before
    assert run("train", "--overwrite", **{**flags, "max_steps": 1}) == 0
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.parametrize("flag", ["--load_in_4bit", "--load_in_8bit"])
def test_a_classifier_on_a_quantised_base(flag: str, wide_bert: Path, moods: Path, tmp_path: Path, run: Callable[..., int]) -> None:
    # Its new head must stay in full precision: there is nothing to quantise, and it is trained.
    pytest.importorskip("bitsandbytes")
    out = tmp_path / "out"
    flags = {**TRAIN, "max_steps": 2, "model_name_or_path": wide_bert, "dataset_name": moods, "output_dir": out}
    assert run("train", flag, **flags) == 0
    assert set(paring.read(out / "adapter").heads) == {"classifier.weight", "classifier.bias"}
    assert run("predict", out / "adapter", "the film was fine") == 0
