"""``paring study``: real runs on tiny models, kept, gone on with, and the same however often they were interrupted."""

from __future__ import annotations

import errno
import importlib
import json
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import Trainer, TrainerCallback

import paring
from paring.cli.study import contestants, digests, memory, told
from paring.cli.study.build import build
from paring.cli.study.code import source_digest
from paring.cli.study.digests import with_digests
from paring.cli.study.made import make, steps_of
from paring.cli.study.text import read_text
from paring.cli.study.work import Prober, Worker
from paring.core.errors import DataError, ExportError, SettingError
from paring.study.records import Fault, Job, Metric, Outcome, Phase, State
from paring.study.search import Asked, Cut
from paring.study.store import alone
from paring.train import Recorder
from tests.study import samples
from tests.study.samples import nothing

Run = Callable[..., int]

FILE = """\
settings:
  model_name_or_path: $base
  per_device_train_batch_size: 16
  num_train_epochs: 2
tasks:
  moods: {dataset_name: $data, metric: accuracy}
contestants:
  LoRA: {method: lora, rank: 2}
  SoRA: {method: sora, rank: 4}
search:
  learning_rate: [1e-3, 1e-2]
  evaluations: 2
  held: 0.25
seeds: 1
"""

CONTESTANTS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 2},
    "lora with dropout": {"method": "lora", "rank": 2, "dropout": 0.5},
    "spectral": {"method": "spectral", "rank": 4, "budget": "50%"},
    "lora_ga": {"method": "lora_ga", "rank": 2},
    "lisa": {"method": "lisa", "layers": 1, "interval": 2},
    "PEFT's LoRA": {"peft": {"peft_type": "LORA", "r": 2, "lora_dropout": 0.3}},
    "PEFT's AdaLoRA": {"peft": {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "deltaT": 1}},
    "PEFT's LoRA-GA": {"peft": {"peft_type": "LORA", "r": 2, "init_lora_weights": "lora_ga"}},
    "PEFT's EVA": {"peft": {"peft_type": "LORA", "r": 2, "init_lora_weights": "eva"}, "target_modules": ["query", "value"]},
    "PEFT's DoRA": {"peft": {"peft_type": "LORA", "r": 2, "use_dora": True}},
    "PEFT's VeRA": {"peft": {"peft_type": "VERA", "r": 4}, "target_modules": ["query", "value"]},
}


def job(bert: Path, moods: Path, contestant: str, *, phase: Phase = Phase.FINAL, seed: int = 0, **flags: Any) -> Job:
    base = {"model_name_or_path": str(bert), "dataset_name": str(moods), "per_device_train_batch_size": 16, "num_train_epochs": 2}
    settings: dict[str, Any] = {"flags": {**base, **CONTESTANTS[contestant], **flags}, "values": {"learning_rate": 3e-3}}
    if phase is Phase.SEARCH:
        settings["search"] = {"held": 0.25, "held_seed": 0, "evaluations": 2}
    return Job(contestant=contestant, task="moods", budget=None, phase=phase, seed=seed, settings=settings)


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_a_run_of_every_kind(contestant: str, bert: Path, moods: Path) -> None:
    outcome = Worker(definitions={})(Asked(job=job(bert, moods, contestant)))
    assert outcome.error is None
    assert (outcome.state, outcome.steps) == (State.FINISHED, 8)
    assert 0.0 <= outcome.metrics["accuracy"] <= 1.0
    assert outcome.seconds > 0
    assert outcome.setup_seconds is not None
    assert 0 < outcome.setup_seconds < 30
    assert outcome.parameters
    assert outcome.start_parameters
    assert outcome.file_bytes
    assert outcome.memory is None or outcome.memory > 10**8
    assert outcome.versions["torch"] == torch.__version__ or outcome.versions["torch"] in torch.__version__
    assert any("loss" in point.values for point in outcome.history)
    # Rows that nothing was chosen by are scored once.
    assert sum("eval_loss" in point.values for point in outcome.history) <= 1
    if contestant in ("spectral", "PEFT's AdaLoRA"):
        assert outcome.parameters <= 0.55 * outcome.start_parameters
    elif contestant != "lisa":
        assert outcome.parameters == outcome.start_parameters


def test_the_same_run_gives_the_same_numbers(bert: Path, moods: Path) -> None:
    first, second = (Worker(definitions={})(Asked(job=job(bert, moods, "lora with dropout"))) for _ in range(2))
    assert first.metrics == second.metrics
    losses = [[point.values["loss"] for point in outcome.history if "loss" in point.values] for outcome in (first, second)]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 1


@pytest.mark.parametrize(
    ("contestant", "place"),
    [
        ("lora_ga", "paring.cli.study.made.calibrate_for"),
        ("PEFT's LoRA-GA", "paring.cli.study.contestants.preprocess_loraga"),
        ("lora", "paring.adapt"),
    ],
)
def test_what_a_start_computes_is_counted(
    contestant: str, place: str, bert: Path, moods: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = place.rpartition(".")
    plain: Any = vars(importlib.import_module(module)).get(name) or paring.adapt

    def slow(*given: Any, **more: Any) -> Any:
        time.sleep(1.5)
        return plain(*given, **more)

    monkeypatch.setattr(place, slow)
    assert make(job(bert, moods, contestant), {}, Recorder(), tmp_path).seconds >= 1.5


class Order(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Notes which rows are trained on, in which order."""

    def __init__(self, trainer: Trainer) -> None:
        self.seen: list[list[int]] = []
        compute = trainer.compute_loss

        def noted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.seen.append(inputs["input_ids"].sum(1).tolist())
            return compute(model, inputs, *args, **kwargs)

        trainer.compute_loss = noted


def test_all_contestants_see_the_same_rows_in_the_same_order_and_begin_with_the_same_head(bert: Path, moods: Path, tmp_path: Path) -> None:
    orders, heads = {}, {}
    # What draws least and most: dropout, starts of their own, starts off batches, no adapter, PEFT's.
    for contestant in ("lora", "lora with dropout", "spectral", "lora_ga", "lisa", "PEFT's LoRA", "PEFT's EVA"):
        made = make(job(bert, moods, contestant), {}, Recorder(), tmp_path / contestant)
        found = [
            p.detach().clone() for name, p in made.prepared.model.named_parameters() if "classifier" in name and "original" not in name
        ]
        order = Order(made.trainer)
        made.trainer.train()
        orders[contestant], heads[contestant] = order.seen, found
    first = orders["lora"]
    assert len(first) == 8
    assert first[:4] != first[4:], "epochs are in one order"
    assert all(order == first for order in orders.values())
    assert all(torch.equal(a, b) for found in heads.values() for a, b in zip(found, heads["lora"], strict=True))
    made = make(job(bert, moods, "lora", seed=1), {}, Recorder(), tmp_path / "other")
    other = Order(made.trainer)
    made.trainer.train()
    assert other.seen != first


def test_a_trial_is_scored_on_training_rows_that_it_was_not_trained_on(bert: Path, moods: Path, tmp_path: Path) -> None:
    made = make(job(bert, moods, "lora", phase=Phase.SEARCH), {}, Recorder(), tmp_path)
    rows = made.prepared.rows
    assert rows.held_out is not None
    lines = set((moods / "train.tsv").read_text().splitlines()[1:])
    for part, count in ((rows.train, 48), (rows.held_out, 16)):
        assert len(part) == count
        assert {f"{text}\t{label}" for text, label in zip(part["text"], part["label"], strict=True)} <= lines
    numbers = [
        set(part["__row__"] if "__row__" in part.column_names else part[part.column_names[-1]]) for part in (rows.train, rows.held_out)
    ]
    assert not numbers[0] & numbers[1]
    again = make(job(bert, moods, "lora", phase=Phase.SEARCH, seed=1), {}, Recorder(), tmp_path)
    assert again.prepared.rows.held_out is not None
    assert again.prepared.rows.held_out["text"][:] == rows.held_out["text"][:]


def test_a_trial_is_cut_short_where_it_is_behind(bert: Path, moods: Path) -> None:
    metric = Metric(name="accuracy", larger_is_better=True, points=100.0)
    ahead = Cut(metric=metric, before=((2.0, 2.0), (2.0, 2.0)), first=2, evaluations=2)
    asked = job(bert, moods, "lora", phase=Phase.SEARCH)
    outcome = Worker(definitions={})(Asked(job=asked, cut=ahead))
    assert (outcome.state, outcome.steps, outcome.metrics) == (State.PRUNED, 3, {})
    whole = Worker(definitions={})(Asked(job=asked))
    assert (whole.state, whole.steps) == (State.FINISHED, 6)
    assert [point.step for point in whole.history if "eval_accuracy" in point.values] == [3, 6]


def test_what_goes_wrong_in_a_run_is_what_came_of_it(bert: Path, moods: Path) -> None:
    diverged = Worker(definitions={})(Asked(job=job(bert, moods, "lora", max_grad_norm=0.0, weight_decay=1e30)))
    assert diverged.state is State.FAILED
    assert diverged.error is not None
    assert "diverged" in diverged.error
    for contestant in ("PEFT's LoRA", "PEFT's AdaLoRA", "lisa"):
        for phase in Phase:
            asked = job(bert, moods, contestant, phase=phase, max_grad_norm=0.0)
            outcome = Worker(definitions={})(Asked(job=replace(asked, settings={**asked.settings, "values": {"learning_rate": 1e38}})))
            assert outcome.state is State.FAILED, contestant
            assert str(outcome.error).startswith("Training diverged: at step"), outcome.error
    nowhere = Worker(definitions={})(Asked(job=job(bert, moods, "PEFT's LoRA", target_modules=["nothing"])))
    assert nowhere.state is State.FAILED
    assert "No modules were targeted" in str(nowhere.error)
    assert nowhere.machine["cores"]
    pooled = Worker(definitions={})(Asked(job=job(bert, moods, "PEFT's EVA", target_modules="all-linear")))
    assert "poolers left out" in str(pooled.error)


@pytest.mark.parametrize(
    ("met", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "its disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), "its disk could not be used ([Errno 30] Read-only file system)"),
        (ConnectionResetError("reset by the hub"), "a connection was lost, or could not be made (reset by the hub)"),
        (RuntimeError("the head is missing"), None),
        (OSError("no file of that name"), None),
    ],
)
def test_a_fault_of_the_machine_is_no_outcome(
    met: Exception, said: str | None, bert: Path, moods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **more: Any) -> None:
        try:
            raise met
        except Exception as error:
            raise SettingError("The model could not be loaded.") from error

    for place in ("paring.cli.study.made.load", "paring.export"):
        with monkeypatch.context() as patch:
            patch.setattr(place, fail if place != "paring.export" else lambda *given, **more: refuse(met))
            found = Worker(definitions={})(Asked(job=job(bert, moods, "lora")))
        if said is not None:
            assert found == Fault(error=said)
        else:
            assert isinstance(found, Outcome)
            assert found.state is (State.FAILED if place != "paring.export" else State.FINISHED)
            assert found.file_bytes is None


def refuse(met: Exception) -> None:
    raise ExportError("It could not be written.") from met


def test_the_loss_that_adalora_is_scored_by_is_its_cross_entropy(bert: Path, moods: Path, tmp_path: Path) -> None:
    made = make(job(bert, moods, "PEFT's AdaLoRA"), {}, Recorder(), tmp_path)
    model: Any = made.prepared.model
    batch = {name: value.to(model.device) for name, value in next(iter(made.trainer.get_eval_dataloader())).items()}

    def plain(outputs: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.logits, batch["labels"])

    def check(training: bool) -> None:
        outputs = model.train(training)(**batch)
        term = contestants.extra_loss(model) if training else 0.0
        torch.testing.assert_close(outputs.loss, plain(outputs) + term)

    assert contestants.extra_loss(model) > 0.5
    for training in (False, True, False):
        check(training)
    logits = made.trainer.predict(made.trainer.eval_dataset)
    wanted = torch.nn.functional.cross_entropy(torch.tensor(logits.predictions), torch.tensor(logits.label_ids))
    assert made.trainer.evaluate()["eval_loss"] == pytest.approx(float(wanted), rel=1e-5)
    made.trainer.train()
    assert next(entry for entry in made.trainer.state.log_history if "loss" in entry)["loss"] > 1.2  # 0.69, and the term


def test_a_probe_times_a_run(bert: Path, moods: Path) -> None:
    estimate = Prober(definitions={})(job(bert, moods, "lora"))
    assert estimate.steps == 8
    assert 0 < estimate.step < 5
    assert estimate.seconds == pytest.approx(estimate.setup + 8 * estimate.step + estimate.score)


def test_what_earlier_runs_have_left_behind_is_not_counted() -> None:
    class Held:
        pass

    one = Held()
    vars(one)["itself"] = one
    seen = weakref.ref(one)
    del one
    memory.forget()
    assert seen() is None


def test_a_probe_tells_that_a_metric_is_not_measured(bert: Path, moods: Path, llama: Path) -> None:
    def probed(metric: str, asked: Job) -> None:
        Prober(definitions={}, metrics={"moods": Metric(name=metric, larger_is_better=True, points=1.0)})(asked)

    probed("f1", job(bert, moods, "lora"))
    with pytest.raises(SettingError, match=r"no 'pearson' of this; its metric may be accuracy, f1, f1_macro, loss, matthews\."):
        probed("pearson", job(bert, moods, "lora"))
    words = {"task": "causal-lm", "text_columns": "text"}
    probed("perplexity", job(llama, moods, "lora", **words))
    with pytest.raises(SettingError, match="no 'accuracy' of this; its metric may be entropy, loss, mean_token_accuracy, perplexity"):
        probed("accuracy", job(llama, moods, "lora", **words))


def test_steps_are_counted_as_transformers_does(bert: Path, moods: Path, tmp_path: Path) -> None:
    for flags in ({"gradient_accumulation_steps": 3}, {"num_train_epochs": 1.3}, {"per_device_train_batch_size": 24}, {"max_steps": 5}):
        made = make(job(bert, moods, "lora", **flags), {}, Recorder(), tmp_path)
        made.trainer.train()
        assert made.trainer.state.max_steps == made.steps == steps_of(made.run.options, 64), flags


def test_a_run_is_known_by_content_and_not_by_place(bert: Path, moods: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(FILE, encoding="utf-8")
    text = read_text(tmp_path / "study.yaml")

    def keys(base: Path, data: Path) -> list[str]:
        names = {"base": str(base), "data": str(data)}
        study = with_digests(build(text, names).study, names)
        return [study.final(cell, 0, {"learning_rate": 1e-3}).key for cell in study.cells]

    moved = tmp_path / "moved"
    shutil.copytree(moods, moved)
    assert keys(bert, moods) == keys(bert, moved)
    changed = tmp_path / "changed"
    shutil.copytree(moods, changed)
    (changed / "train.tsv").write_text((moods / "train.tsv").read_text() + "the day was fine\tgood\n")
    assert not set(keys(bert, moods)) & set(keys(bert, changed))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data"):
        keys(bert, tmp_path / "empty")


def test_what_the_command_line_says_is_a_setting_of_a_run(bert: Path, moods: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(FILE.replace("num_train_epochs: 2", "max_steps: $steps"), encoding="utf-8")
    text = read_text(tmp_path / "study.yaml")

    def keys(steps: str, base: Path | str = bert) -> list[str]:
        names = {"base": str(base), "data": str(moods), "steps": steps}
        study = with_digests(build(text, names).study, names)
        return [study.final(cell, 0, {"learning_rate": 1e-3}).key for cell in study.cells]

    assert keys("10") == keys("10")
    assert not set(keys("10")) & set(keys("1000"))
    # Two models of the hub, which are known by nothing but their names.
    assert not set(keys("10", "one/model")) & set(keys("10", "other/model"))


def test_files_that_are_the_runs_inputs_belong_to_what_it_is_known_by(bert: Path, moods: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(FILE, encoding="utf-8")
    text = read_text(tmp_path / "study.yaml")
    base, data = tmp_path / "base", tmp_path / "data"
    shutil.copytree(bert, base)
    rows = datasets.Dataset.from_dict({"text": ["a fine day", "a sad day"] * 4, "label": ["good", "bad"] * 4})
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(data)

    def key() -> str:
        digests._content.cache_clear()
        digests._model.cache_clear()
        names = {"base": str(base), "data": str(data)}
        study = with_digests(build(text, names).study, names)
        return study.final(study.cells[0], 0, {"learning_rate": 1e-3}).key

    before = key()
    (data / "train" / "cache-1234.arrow").write_bytes(b"what datasets leaves behind")
    (data / ".git").mkdir()
    (data / ".git" / "index").write_bytes(b"and git")
    assert key() == before
    arrow = next((data / "dev").glob("data-*.arrow"))
    arrow.write_bytes(arrow.read_bytes() + b"0")
    other = key()
    assert other != before
    (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text().replace("fine", "wine"))
    assert key() != other


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_study_from_its_file_to_its_report(
    file: Path, bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    define = f"base={bert},data={moods}"
    assert run("study", file, "--plan", define=define) == 0
    said = capsys.readouterr().err
    assert "at most 6 runs (4 to choose settings, 2 with 1 seed)" in said
    assert "hours of 1 core" in said
    folder = tmp_path / "small"
    assert not (folder / "results.json").exists()
    assert run("study", file, define=define, max_hours=1e-9) == 1
    assert "more than --max_hours" in capsys.readouterr().err
    assert run("study", file, "--no_probe", define=define) == 0
    outputs = capsys.readouterr()
    assert outputs.out.strip() == str(folder / "report.html")
    assert "6 of at most 6 runs" in outputs.err
    results = (folder / "results.json").read_bytes()
    assert str(bert) not in results.decode()
    with sqlite3.connect(folder / "runs.db") as connection:
        before = connection.execute("SELECT key, started FROM runs ORDER BY key").fetchall()
    assert len(before) == 6
    assert run("study", file, "--no_probe", define=define, workers=2) == 0
    with sqlite3.connect(folder / "runs.db") as connection:
        assert connection.execute("SELECT key, started FROM runs ORDER BY key").fetchall() == before
    assert (folder / "results.json").read_bytes() == results
    capsys.readouterr()
    assert run("study", "compare", "SoRA", "LoRA", output_dir=folder) == 0
    assert "SoRA" in capsys.readouterr().out
    assert run("study", "compare", "SoRA", "LoRa", output_dir=folder) == 1
    assert "Did you mean 'LoRA'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "flags", "said"),
    [
        ((), {}, "Give the study's YAML file"),
        (("compare", "a"), {}, "Give two contestants"),
        (("compare", "a", "b"), {"output_dir": "nowhere"}, "holds no findings.json"),
        (("FILE",), {"define": "base"}, "--define base: give NAME=VALUE"),
        (("FILE",), {}, "Give --define base=VALUE"),
        (("FILE", "--no_probe"), {"define": "base=BERT, data=MOODS,here"}, ",here'. Did you mean 'moods"),
        (("FILE", "--no_probe"), {"define": "base=BERTS,data=MOODS"}, "There is no file or folder"),
        (("FILE",), {"define": "base=BERT,data=MOODS", "reference": "LoRa"}, "Did you mean 'LoRA'"),
        (("FILE",), {"define": "base=BERT,data=MOODS", "workers": 0}, "--workers 0"),
        (("FILE", "--no_probe"), {"define": "base=BERT,data=MOODS", "max_hours": 1}, "leave one of them out"),
        (("FILE",), {"define": "base=BERT,data=MOODS", "output_dir": "FILE"}, "is a file"),
    ],
)
def test_a_wrong_command_is_refused(
    words: tuple[str, ...],
    flags: dict[str, Any],
    said: str,
    file: Path,
    bert: Path,
    moods: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def put(value: Any) -> Any:
        return str(value).replace("FILE", str(file)).replace("BERT", str(bert)).replace("MOODS", str(moods))

    assert run("study", *map(put, words), **{name: put(value) for name, value in flags.items()}) == 1
    assert said in capsys.readouterr().err
    assert not (file.parent / "small").exists()


def test_small_losses_are_told_with_the_digits_that_differ(capsys: pytest.CaptureFixture[str]) -> None:
    loss = Metric(name="loss", larger_is_better=False, points=1.0)
    rows = [samples.entry("SoRA", "t", [0.9179, 0.8939]), samples.entry("LoRA", "t", [0.9189, 0.9013])]
    found = samples.findings(*rows, metrics={"t": loss})
    told.results_told(found)
    assert "0.9059 (0.8939 to 0.9179)" in capsys.readouterr().err
    told.comparison_told(found, "SoRA", "LoRA")
    assert "+0.0042" in capsys.readouterr().out


def test_a_study_of_which_nothing_came_says_so(
    file: Path, bert: Path, moods: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("paring.study.conduct.conduct", lambda *given, **more: nothing())
    assert run("study", file, "--no_probe", define=f"base={bert},data={moods}") == 1
    assert "no run came to its end; " in capsys.readouterr().err
    assert "report.html" in {path.name for path in (file.parent / "small").iterdir()}


def test_a_study_that_is_being_conducted_is_left_alone_and_can_be_read(
    file: Path, bert: Path, moods: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("paring.study.conduct.conduct", lambda *given, **more: samples.usual())
    define = f"base={bert},data={moods}"
    assert run("study", file, "--no_probe", define=define) == 0
    folder = file.with_suffix("")
    before = (folder / "runs.db").read_bytes()
    with alone(folder / "runs.db"):
        capsys.readouterr()
        assert run("study", file, "--no_probe", define=define) == 1
        assert "is already being conducted by another process" in capsys.readouterr().err
        assert run("study", "compare", "SoRA", "LoRA", output_dir=folder) == 0
    assert (folder / "runs.db").read_bytes() == before


def test_runs_of_several_codes_are_told_apart(
    file: Path, bert: Path, moods: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outcome = Worker(definitions={})(Asked(job=job(bert, moods, "lora")))
    assert re.fullmatch(r".+\+src\.[0-9a-f]{8}", outcome.versions["paring"])
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "inner" / "rule.py").write_text("rate = 1")
    before = source_digest(tmp_path / "package")
    assert source_digest(tmp_path / "package") == before
    (tmp_path / "package" / "inner" / "rule.py").write_text("rate = 2")
    assert source_digest(tmp_path / "package") != before
    found = replace(samples.usual(), versions={"paring": ["0.1.0+src.00000000", outcome.versions["paring"]]})
    monkeypatch.setattr("paring.study.conduct.conduct", lambda *given, **more: found)
    assert run("study", file, "--no_probe", define=f"base={bert},data={moods}") == 0
    assert "several versions of paring" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_that_is_killed_three_times_finds_the_same(file: Path, bert: Path, moods: Path, tmp_path: Path) -> None:
    def command(folder: Path) -> list[str]:
        words = [sys.executable, "-m", "paring.cli", "study", str(file), "--define", f"base={bert},data={moods}", "--no_probe"]
        return [*words, "--workers", "2", "--output_dir", str(folder)]

    begun = time.perf_counter()
    subprocess.run(command(tmp_path / "alone"), check=True, capture_output=True, timeout=300)
    whole = time.perf_counter() - begun
    chooser = random.Random(20261128)
    for _ in range(3):
        process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * chooser.uniform(0.3, 0.9))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True, timeout=300)
    first, second = ((tmp_path / name / "results.json").read_bytes() for name in ("alone", "killed"))
    assert first == second
    assert json.loads(first)
