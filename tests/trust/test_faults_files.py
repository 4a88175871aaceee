"""Files that vanish while they are wanted, and two exports to one place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

import paring
from paring.core.errors import AdapterError
from paring.exchange import settings
from paring.exchange.folder import digest
from paring.exchange.layout import CONFIG, SIDE, WEIGHTS
from paring.exchange.provenance import Provenance
from tests.attach.processes import environment
from tests.cli.conftest import TRAIN, plain_report  # noqa: F401 - a fixture that is used by itself
from tests.cli.test_bad_input import Refused, Run
from tests.exchange.helpers import contents
from tests.trust.grids import cell

# Together they take minutes.
pytestmark = pytest.mark.slow

Property = Callable[[str, object], None]

gone = cell("faults", "a file that vanishes", "one sentence, no work lost")
RACES = 40
RARE = ("scheduler.pt", "trainer_state.json", "rng_state.pth")
WORKER = Path(__file__).with_name("race_worker.py")


@pytest.fixture
def flags(bert: Path, moods: Path, tmp_path: Path) -> dict[str, object]:
    """A run that would work, on a copy of the data and of the model."""
    for source, name in ((bert, "bert"), (moods, "moods")):
        shutil.copytree(source, tmp_path / name)
    return {**TRAIN, "model_name_or_path": tmp_path / "bert", "dataset_name": tmp_path / "moods", "output_dir": tmp_path / "out"}


@gone
@pytest.mark.parametrize("name", [WEIGHTS, SIDE])
def test_an_adapters_file_between_listing_and_reading(
    name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    folder = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    load = settings.load

    def loading(path: Path) -> Any:
        found = load(path)
        (folder / name).unlink(missing_ok=True)
        return found

    monkeypatch.setattr(settings, "load", loading)
    with pytest.raises(AdapterError, match=name):
        paring.read(folder)
    shutil.copy(trained / "adapter" / name, folder / name)
    assert name in refused("inspect", folder)


@gone
def test_an_adapters_configuration(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    load = settings.load

    def loading(path: Path) -> Any:
        path.unlink()
        return load(path)

    monkeypatch.setattr(settings, "load", loading)
    with pytest.raises(AdapterError, match=CONFIG):
        paring.read(folder)


@gone
def test_adapter_weights_while_their_digest_is_taken(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    checking = Provenance.checking

    def vanishing(self: Provenance, path: Path) -> Any:
        path.unlink()
        return checking(self, path)

    monkeypatch.setattr(Provenance, "checking", vanishing)
    with pytest.raises(AdapterError, match=WEIGHTS):
        paring.read(folder)


@gone
@cell("faults", "a file that vanishes", "resumes to the same bits")
def test_the_data_before_a_run_is_gone_on_with(flags: dict[str, object], trained: Path, run: Run, refused: Refused, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoint-4", tmp_path / "out" / "checkpoint-4")
    # What a run is gone on with must be of the same model.
    task = json.loads((tmp_path / "out" / "checkpoint-4" / "paring_task.json").read_text())
    task["base"]["model_name_or_path"] = str(flags["model_name_or_path"])
    (tmp_path / "out" / "checkpoint-4" / "paring_task.json").write_text(json.dumps(task))
    before = contents(tmp_path / "out")
    (tmp_path / "moods" / "train.tsv").rename(tmp_path / "kept.tsv")
    assert "moods" in refused("train", **flags, resume_from_checkpoint="last")
    assert contents(tmp_path / "out") == before
    (tmp_path / "kept.tsv").rename(tmp_path / "moods" / "train.tsv")
    assert run("train", **flags, resume_from_checkpoint="last") == 0
    assert digest(tmp_path / "out" / "adapter" / WEIGHTS) == digest(trained / "adapter" / WEIGHTS)


@gone
@pytest.mark.parametrize("name", [WEIGHTS, "optimizer.pt", *(pytest.param(name, marks=pytest.mark.slow) for name in RARE)])
def test_a_checkpoints_file_between_listing_and_reading(
    name: str, flags: dict[str, object], trained: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    checkpoint = Path(shutil.copytree(trained / "checkpoint-4", tmp_path / "out" / "checkpoint-4"))
    train = Trainer.train

    def training(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        (checkpoint / name).unlink()
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", training)
    said = refused("train", **{**flags, "model_name_or_path": bert}, resume_from_checkpoint="last")
    assert "checkpoint-4" in said
    assert not (tmp_path / "out" / "adapter").exists()


@gone
def test_data_and_model_while_a_run_trains(
    flags: dict[str, object], trained: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.training_step

    def stepping(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        shutil.rmtree(tmp_path / "bert", ignore_errors=True)
        shutil.rmtree(tmp_path / "moods", ignore_errors=True)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", stepping)
    assert run("train", **flags) == 0
    assert digest(tmp_path / "out" / "adapter" / WEIGHTS) == digest(trained / "adapter" / WEIGHTS)


@cell("faults", "two exports to one place", "nothing half-written at a final path")
@cell("faults", "two exports to one place", "one sentence, no work lost")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_two_exports_to_one_place(tmp_path: Path, record_property: Property) -> None:
    done = subprocess.run(
        [sys.executable, WORKER, tmp_path, str(RACES), "0"], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == [], done.stderr[-2000:]
    assert found["keep"] == {"1": RACES}
    both = found["overwrite"].get("2", 0)
    record_property("trust", f"{2 * RACES} races, both wrote in {both} of {RACES} that overwrite, one in {RACES} that do not, seed 0")
