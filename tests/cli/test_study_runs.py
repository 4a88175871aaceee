"""Single runs of a study: of every kind, alike in all but their contestant, and honest about what went wrong."""

from __future__ import annotations

import errno
import importlib
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

import paring
from paring.cli.study import contestants, memory
from paring.cli.study.made import make, steps_of
from paring.cli.study.work import Prober, Worker
from paring.core.errors import ExportError, SettingError
from paring.study.records import Fault, Job, Metric, Outcome, Phase, State
from paring.study.search import Asked, Cut
from paring.train import Recorder
from tests.cli.studies import CONTESTANTS, job


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
