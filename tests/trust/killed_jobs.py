"""What is killed: a training from Python, `paring train`, and `paring export`; each begins anew or goes on from what is there."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import paring
import paring.api
from paring.cli.main import main
from paring.exchange.layout import WEIGHTS
from paring.methods.sora import SoRA
from paring.train import ParingTrainer
from paring.train.checkpoints import complete, last_checkpoint, numbered
from tests.trust.forks import Phase, Teller

EXACT = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
"""Files of a checkpoint that must have the same bytes as those of the run that nobody killed."""


@contextmanager
def told(teller: Teller) -> Iterator[None]:
    """Tell of the phases of what runs in here. Only in a child: nothing is put back."""
    save, train, step, write = ParingTrainer._save_checkpoint, Trainer.train, Trainer.training_step, paring.api.write

    def saving(self: Any, *args: Any, **kwargs: Any) -> Any:
        teller.enter(Phase.SAVE)
        found = save(self, *args, **kwargs)
        teller.enter(Phase.TRAIN)
        return found

    def training(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint is not None:
            teller.enter(Phase.LOAD)
        return train(self, resume_from_checkpoint, *args, **kwargs)

    def stepping(self: Any, *args: Any, **kwargs: Any) -> Any:
        teller.enter(Phase.TRAIN)
        return step(self, *args, **kwargs)

    def writing(*args: Any, **kwargs: Any) -> Any:
        teller.enter(Phase.EXPORT)
        found = write(*args, **kwargs)
        teller.enter(Phase.END)
        return found

    vars_of: list[tuple[Any, str, Callable[..., Any]]] = [
        (ParingTrainer, "_save_checkpoint", saving),
        (Trainer, "train", training),
        (Trainer, "training_step", stepping),
        (paring.api, "write", writing),
    ]
    for owner, name, value in vars_of:
        setattr(owner, name, value)
    yield


class Job(ABC):
    """One kind of run, with a folder that it works in.

    Args:
        place: for what it leaves, and for what it needs.
    """

    name: str

    def __init__(self, place: Path) -> None:
        self.place = place

    @abstractmethod
    def run(self, folder: Path) -> int:
        """In a child: begin in a folder, or go on from what a killed run has left there."""

    def prepare(self) -> None:  # noqa: B027 - most need nothing
        """In the parent, once: make what it needs."""

    def before(self, folder: Path) -> None:  # noqa: B027 - most need nothing
        """In the parent: what lies there before the first run."""

    def __call__(self, folder: Path) -> Callable[[Teller], int]:
        """The job for a child."""

        def job(teller: Teller) -> int:
            torch.set_num_threads(1)
            with told(teller):
                return self.run(folder)

        return job

    def adapter(self, folder: Path) -> Path:
        """Where its export lies."""
        return folder / "adapter"

    def faults(self, folder: Path, reference: Path) -> list[str]:
        """What is wrong with what a killed run has left; each checkpoint is compared with that of the run that nobody killed."""
        found = []
        for checkpoint in numbered(folder):
            whole = reference / "all" / checkpoint.name
            found += [f"{checkpoint.name}: {fault}" for fault in _faults_of(checkpoint, whole)]
        place = self.adapter(folder)
        if place.exists():
            try:
                paring.read(place)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
                found.append(f"{place.name} does not load: {error}")
            if digest(place / WEIGHTS) not in (digest(self.adapter(reference) / WEIGHTS), *self.earlier()):
                found.append(f"{place.name} is neither the old nor the new one")
        return found

    def earlier(self) -> list[str]:
        """Digests of what may lie at the export's place before."""
        return []

    def differs(self, folder: Path, reference: Path) -> list[str]:
        """What differs at the end from the run that nobody killed."""
        found = self.faults(folder, reference)
        if not self.adapter(folder).exists() or digest(self.adapter(folder) / WEIGHTS) != digest(self.adapter(reference) / WEIGHTS):
            found.append("the adapter has other bits")
        if (names := [item.name for item in numbered(folder)]) != (wanted := [item.name for item in numbered(reference)]):
            found.append(f"checkpoints {names} in place of {wanted}")
        return found


def _faults_of(checkpoint: Path, whole: Path) -> Iterator[str]:
    if not complete(checkpoint):
        yield "not complete"
    there, wanted = ({item.name for item in folder.iterdir()} for folder in (checkpoint, whole))
    if there != wanted:
        yield f"files {sorted(there ^ wanted)} are missing or too many"
    for item in checkpoint.iterdir():
        try:
            if item.suffix == ".safetensors":
                load_file(item)
            elif item.suffix in (".pt", ".pth", ".bin"):
                assert zipfile.ZipFile(item).testzip() is None
            elif item.suffix == ".json":
                json.loads(item.read_text(encoding="utf-8"))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            yield f"{item.name} does not load: {error}"
        if item.name in EXACT and digest(item) != digest(whole / item.name):
            yield f"{item.name} has other bits"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Python(Job):
    """ParingTrainer with checkpoints at every second of eight steps, the last two and the best kept; then an export."""

    name = "python"

    def run(self, folder: Path) -> int:
        """Train, export."""
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=2)
        )
        adapted = paring.adapt(model, SoRA(rank=4, penalty=0.9, gate_rate=0.3, dropout=0.1), task_type="SEQ_CLS", seed=0)
        chooser = torch.Generator().manual_seed(1)
        rows = [{"input_ids": torch.randint(40, (6,), generator=chooser), "labels": torch.tensor(index % 2)} for index in range(32)]
        args = TrainingArguments(
            output_dir=str(folder), max_steps=8, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], disable_tqdm=True,
            use_cpu=True, seed=0, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, save_total_limit=2,
            load_best_model_at_end=True, metric_for_best_model="loss", logging_steps=1, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = ParingTrainer(model=adapted, args=args, train_dataset=rows, eval_dataset=rows[:8])
        trainer.train(resume_from_checkpoint=True if folder.is_dir() and numbered(folder) else None)
        paring.export(adapted, self.adapter(folder), overwrite=True)
        return 0


class CommandTrain(Job):
    """`paring train`, gone on with by `--resume_from_checkpoint last`, or by the command that a run names which was over already."""

    name = "train"

    def run(self, folder: Path) -> int:
        """Train by the command line."""
        from tests.cli.conftest import TRAIN

        flags: dict[str, object] = {
            **TRAIN,
            "penalty": 0.9,
            "gate_rate": 0.3,
            "model_name_or_path": self.place / "bert",
            "dataset_name": self.place / "moods",
        }
        flags |= {"output_dir": folder, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        words = ["train", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]
        last = last_checkpoint(folder) if folder.is_dir() else None
        if last is None:
            return main([*words, "--overwrite"])
        if json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))["global_step"] == 8:
            # All steps are done: this is what `train` would say.
            return main(["export", str(last), str(self.adapter(folder)), "--overwrite"])
        return main([*words, "--resume_from_checkpoint", "last"])


class CommandExport(Job):
    """`paring export` of a checkpoint over an earlier export of another one."""

    name = "export"

    def run(self, folder: Path) -> int:
        """Export by the command line."""
        return main(["export", str(self.place / "train" / "reference" / "all" / "checkpoint-8"), str(self.adapter(folder)), "--overwrite"])

    def prepare(self) -> None:
        """Make an earlier export, of another checkpoint."""
        if main(["export", str(self.place / "train" / "reference" / "all" / "checkpoint-2"), str(self.place / "earlier")]):
            raise RuntimeError("the earlier export failed")

    def before(self, folder: Path) -> None:
        """The earlier one."""
        folder.mkdir(parents=True)
        shutil.copytree(self.place / "earlier", self.adapter(folder))

    def earlier(self) -> list[str]:
        """Its digest."""
        return [digest(self.place / "earlier" / WEIGHTS)]


def keep_all(folder: Path) -> Callable[[], None]:
    """In the child of a reference run: copy every checkpoint as soon as it has its name, before it is deleted."""
    rename = Path.rename

    def renaming(self: Path, target: Any) -> Path:
        found = rename(self, target)
        if Path(target).parent == folder and Path(target).name.startswith("checkpoint-"):
            shutil.copytree(target, folder / "all" / Path(target).name)
        return found

    def put() -> None:
        (folder / "all").mkdir(parents=True, exist_ok=True)
        Path.rename = renaming  # type: ignore[method-assign]

    return put
