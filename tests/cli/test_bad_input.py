"""Bad input: one sentence, a status, no traceback, and nothing lost."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import TRAIN, sentences

Run = Callable[..., int]


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail; returns the one sentence that it says."""

    def command(*words: object, **flags: object) -> str:
        assert run(*words, **flags) in (1, 2)
        said = capsys.readouterr().err.strip().splitlines()
        assert "Traceback" not in "\n".join(said)
        complaints = [line for line in said if line.startswith("paring: error: ")]
        assert len(complaints) == 1
        assert said[-1] == complaints[0]
        return complaints[0]

    return command


Refused = Callable[..., str]


@pytest.fixture
def flags(bert: Path, moods: Path, tmp_path: Path) -> dict[str, object]:
    """A run that would work."""
    return {**TRAIN, "model_name_or_path": bert, "dataset_name": moods, "output_dir": tmp_path / "out"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_modules": "query,vaule"}, ["vaule", "value"]),
        ({"target_modules": r".*\.nothing"}, ["nothing"]),
        ({"exclude_modules": ".*"}, []),
        ({"rank": 0}, ["rank=0", "at least 1"]),
        ({"rank": -3}, ["rank=-3"]),
        ({"rank": 17}, ["rank=17", "16"]),
        ({"rank": "many"}, ["--rank", "many", "whole number"]),
        ({"penalty": -1}, ["penalty=-1"]),
        ({"method": "soar"}, ["soar", "sora"]),
        ({"init": "kaiming_one"}, ["kaiming_one", "kaiming_zero"]),
        ({"eval_strategy": "sometimes"}, ["eval_strategy", "sometimes", "epoch"]),
        ({"dataset_name": "nowhere/train.tsv"}, ["nowhere/train.tsv"]),
        ({"model_name_or_path": "./nowhere"}, ["./nowhere"]),
        ({"text_columns": "txt"}, ["txt", "text"]),
        ({"label_column": "mood"}, ["mood", "label"]),
        ({"eval_share": 1.5, "dataset_name": "FILE"}, ["eval_share", "1.5"]),
        ({"resume_from_checkpoint": "last"}, ["resume_from_checkpoint", "no complete checkpoint"]),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, ["early_stopping_patience"]),
        ({"training_arguments": '{"lr": 1}'}, ["lr"]),
        ({"label_names": "one,two,three"}, ["label_names", "2"]),
        ({"chat_template_path": "nowhere.jinja"}, ["nowhere.jinja"]),
    ],
)
def test_bad_settings(change: dict[str, object], words: list[str], flags: dict[str, object], moods: Path, refused: Refused) -> None:
    if change.get("dataset_name") == "FILE":
        change = {**change, "dataset_name": moods / "train.tsv"}
    said = refused("train", **{**flags, **change})
    assert all(word in said for word in words), said
    assert not Path(str(flags["output_dir"])).exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"text\tlabel\n", ["no rows"]),
        (b"text\tlabel\nthe caf\xe9\tgood\nfine\tbad\n", ["UTF-8", "0xe9", "line 2", "iconv"]),
        (b"text\tlabel\nfine\tgood\nawful\t\n", ["Row 2 of ", "train.tsv", "no label"]),
        (b"text\tlabel\nfine\tgood\ngreat\tgood\n", ["same label"]),
        (b"text\tmood\nfine\tgood\nawful\tbad\n", ["no column with labels", "mood"]),
        (b"words\tlabel\nfine\tgood\nawful\tbad\n", ["No column with text", "words"]),
        (b"text\tlabel\nfine\tgood\textra\nawful\tbad\n", ["could not be read", "train.tsv", "3 fields", "hold no tab"]),
        (b"text\tlabel\nfine\tgood\nawful\n", ["could not be read", "line 3 has 1 field,", "too few"]),
        (b"text\ttext\nfine\tgood\n", ["twice"]),
    ],
)
def test_bad_data(content: bytes, words: list[str], flags: dict[str, object], tmp_path: Path, refused: Refused) -> None:
    data = tmp_path / "train.tsv"
    data.write_bytes(content)
    said = refused("train", **{**flags, "dataset_name": data})
    assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


def test_a_column_s_name_of_several_lines_is_told_in_one(flags: dict[str, object], tmp_path: Path, refused: Refused) -> None:
    data = tmp_path / "train.csv"
    data.write_text('text,"label of\nthe row"\nfine\n', encoding="utf-8")
    assert "the header 2 (text, label of the row)" in refused("train", **{**flags, "dataset_name": data})


def test_labels_that_training_has_not_seen(flags: dict[str, object], tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "dev.tsv").write_text("text\tlabel\nfine\tgood\nfair\tso-so\n", encoding="utf-8")
    said = refused("train", **flags, eval_dataset_name=tmp_path / "dev.tsv")
    assert "'so-so' (row 2)" in said
    assert not (tmp_path / "out").exists()


def test_a_broken_json_line(flags: dict[str, object], tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "fine", "label": "good"}\n{"text": "awful", "lab\n', encoding="utf-8")
    assert "rows.jsonl" in refused("train", **{**flags, "dataset_name": tmp_path / "rows.jsonl"})


def test_a_conversation_without_an_answer(llama: Path, jsonl: Callable[..., Path], tmp_path: Path, refused: Refused) -> None:
    data = jsonl("chat.jsonl", {"messages": [{"role": "user", "content": "fine?"}]}, {"messages": [{"role": "user", "content": "great?"}]})
    said = refused("train", model_name_or_path=llama, dataset_name=data, output_dir=tmp_path / "out", rank=2, eval_share=0)
    assert "row 1" in said
    assert "assistant" in said


def test_a_model_folder_without_weights(flags: dict[str, object], bert: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(bert, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    said = refused("train", **{**flags, "model_name_or_path": tmp_path / "bare"})
    assert "no weights" in said


def test_damaged_base_weights(flags: dict[str, object], bert: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(bert, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged" in refused("train", **{**flags, "model_name_or_path": tmp_path / "cut"})


def test_an_output_folder_that_is_in_use(flags: dict[str, object], tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    assert "not empty" in refused("train", **flags)
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_loss_that_is_not_finite(flags: dict[str, object], tmp_path: Path, refused: Refused) -> None:
    said = refused("train", **{**flags, "learning_rate": 1e30, "max_grad_norm": 0})
    assert "diverged" in said
    assert "learning rate" in said
    assert not (tmp_path / "out" / "adapter").exists()


def test_every_gate_at_zero(flags: dict[str, object], tmp_path: Path, refused: Refused) -> None:
    said = refused("train", **{**flags, "penalty": 1000.0, "step_size": "constant"})
    assert "Lower the penalty" in said
    # The run itself is not lost.
    assert (tmp_path / "out" / "checkpoint-8").is_dir()
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_full_disk_at_export(flags: dict[str, object], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import paring.exchange.write

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paring.exchange.write, "save", full)
    said = refused("train", **flags)
    assert "No space left" in said
    assert (tmp_path / "out" / "checkpoint-8").is_dir()
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_full_disk_at_a_checkpoint(flags: dict[str, object], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainerState

    save = TrainerState.save_to_json

    def full(state: TrainerState, path: str) -> None:
        if state.global_step == 8:
            Path(path).write_text('{"half', encoding="utf-8")
            raise OSError(errno.ENOSPC, "No space left on device", path)
        save(state, path)

    monkeypatch.setattr(TrainerState, "save_to_json", full)
    said = refused("train", **flags)
    assert "no space left" in said
    assert "--resume_from_checkpoint last" in said
    monkeypatch.undo()
    from paring.train.checkpoints import last_checkpoint

    # Of what it was writing nothing is left; what it goes on from is whole.
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["checkpoint-4"]
    assert last_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-4"


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))


def test_truncated_adapter_weights(adapter: Path, refused: Refused) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated or damaged" in refused("predict", adapter, "fine")
    assert "truncated or damaged" in refused("inspect", adapter)


def test_tampered_adapter_weights(adapter: Path, refused: Refused) -> None:
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    key = next(key for key in tensors if "lora_A" in key)
    save_file({**tensors, key: torch.full_like(tensors[key], float("nan"))}, weights)
    assert "not the file that was exported" in refused("predict", adapter, "fine")
    (adapter / "paring.json").unlink()
    assert "NaN" in refused("predict", adapter, "fine")


def test_a_few_bytes_changed_inside_the_weights(adapter: Path, refused: Refused) -> None:
    weights = adapter / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-40:-36] = b"\x00\x00\x80\x3f"
    weights.write_bytes(data)
    for command in (["inspect", adapter], ["verify", adapter], ["predict", adapter, "fine"]):
        assert "damaged or changed since" in refused(*command)


def test_an_adapter_for_another_base(trained: Path, bert: Path, tmp_path: Path, refused: Refused) -> None:
    other = Path(shutil.copytree(bert, tmp_path / "wide"))
    from transformers import BertConfig, BertModel

    config = BertConfig.from_pretrained(bert)
    config.hidden_size = 32
    BertModel(config).save_pretrained(other)
    for command in (["predict", trained / "adapter", "fine"], ["fuse", trained / "adapter", tmp_path / "fused"]):
        assert "another base model" in refused(*command, model_name_or_path=other)
    assert not (tmp_path / "fused").exists()


@pytest.mark.parametrize("key", ["rnak", "spectral_norm"])
def test_an_unknown_key_in_a_configuration(key: str, trained: Path, tmp_path: Path, refused: Refused) -> None:
    checkpoint = Path(shutil.copytree(trained / "checkpoint-8", tmp_path / "checkpoint-8"))
    config = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    config["method"][key] = 3
    (checkpoint / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    said = refused("export", checkpoint, tmp_path / "out")
    assert key in said
    assert ("'rank'" in said) == (key == "rnak")
    assert not (tmp_path / "out").exists()


def test_a_configuration_of_a_newer_release(trained: Path, tmp_path: Path, refused: Refused) -> None:
    checkpoint = Path(shutil.copytree(trained / "checkpoint-8", tmp_path / "checkpoint-8"))
    config = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    config["method"]["version"] = 99
    (checkpoint / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "Upgrade paring" in refused("export", checkpoint, tmp_path / "out")


def test_an_export_where_a_checkpoint_is_asked_for(trained: Path, tmp_path: Path, refused: Refused) -> None:
    assert "no training checkpoint" in refused("export", trained / "adapter", tmp_path / "out")
    assert "no complete training checkpoint" in refused(
        "train", model_name_or_path="x", dataset_name="y", output_dir=tmp_path / "out", resume_from_checkpoint=trained / "adapter"
    )


def test_nothing_is_overwritten_unasked(trained: Path, adapter: Path, refused: Refused) -> None:
    before = {item.name: item.read_bytes() for item in adapter.iterdir()}
    assert "--overwrite" in refused("export", trained / "checkpoint-8", adapter)
    assert "--overwrite" in refused("fuse", trained / "adapter", adapter)
    assert {item.name: item.read_bytes() for item in adapter.iterdir()} == before


def test_unknown_flags_commands_and_keys(flags: dict[str, object], tmp_path: Path, refused: Refused) -> None:
    assert "'rnk'" in refused("train", **flags, rnk=4)
    assert "'rank'" in refused("train", **flags, rnk=4)
    assert "'train'" in refused("trian")
    (tmp_path / "run.yaml").write_text("learning_rat: 1\n", encoding="utf-8")
    said = refused("train", config=tmp_path / "run.yaml", **flags)
    assert "'learning_rat'" in said
    assert "'learning_rate'" in said
    assert "--output_dir" in refused("train", model_name_or_path="x", dataset_name="y")
    assert "predict" in refused("predict")


def test_debug_shows_the_traceback(run: Run) -> None:
    from paring.core.errors import AdapterError

    with pytest.raises(AdapterError):
        run("--debug", "inspect", "./nowhere")


def test_predicting_nothing(trained: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n"))
    assert "no texts" in refused("predict", trained / "adapter")
    (tmp_path / "rows.csv").write_text("\n".join(["words,label", *(f"{text},{label}" for text, label in sentences(3))]), encoding="utf-8")
    assert "'text'" in refused("predict", trained / "adapter", file=tmp_path / "rows.csv")


def test_a_model_without_its_tokenizer(flags: dict[str, object], bert: Path, tmp_path: Path, refused: Refused) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(bert / name, bare / name)
    assert "has no tokenizer" in refused("train", **{**flags, "model_name_or_path": bare})


def test_a_rate_for_a_head_where_there_is_none(llama: Path, jsonl: Callable[..., Path], tmp_path: Path, refused: Refused) -> None:
    flags = {
        "model_name_or_path": llama,
        "dataset_name": jsonl("plain.jsonl", *({"text": text} for text, _ in sentences(8))),
        "output_dir": tmp_path / "out",
        "rank": 2,
    }
    said = refused("train", **flags, head_learning_rate=1e-2)
    assert "--head_learning_rate 0.01: nothing is trained fully beside an adapter here" in said
    assert "--modules_to_save" in said


def test_an_encoder_cannot_continue_text(flags: dict[str, object], tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "plain.tsv").write_text("text\n" + "".join(f"{text}\n" for text, _ in sentences(20)), encoding="utf-8")
    said = refused("train", **{**flags, "dataset_name": tmp_path / "plain.tsv"})
    assert "is an encoder (bert)" in said
    assert "--label_column" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps 0"),
        ({"max_steps": 0}, "--max_steps 0"),
        ({"num_train_epochs": 0}, "--num_train_epochs 0"),
        ({"max_length": 0}, "--max_length 0"),
        ({"max_train_samples": 0}, "--max_train_samples 0: give at least 1"),
        ({"max_eval_samples": -1}, "--max_eval_samples -1: give at least 1"),
        ({"logging_steps": 0}, "--logging_steps 0: give at least 1"),
        ({"save_total_limit": 0}, "--save_total_limit 0: give at least 1"),
        ({"learning_rate": -1}, "--learning_rate -1.0: give a finite number of at least 0"),
        ({"learning_rate": ".nan"}, "--learning_rate nan: give a finite number"),
        ({"head_learning_rate": 0}, "--head_learning_rate 0.0: give a finite number above 0"),
        ({"warmup_steps": -3}, "--warmup_steps -3.0: give a finite number of at least 0"),
        ({"weight_decay": -1}, "--weight_decay -1.0: give a finite number of at least 0"),
        ({"max_grad_norm": -1}, "--max_grad_norm -1.0: give a finite number of at least 0"),
        ({"seed": -1}, "--seed -1: give a whole number from 0"),
        ({"lr_scheduler_type": "lnear"}, "--lr_scheduler_type lnear: there is no such one. Did you mean 'linear'"),
        ({"optim": "adamww"}, "--optim adamww: there is no such one. Did you mean"),
        ({"report_to": "tensorbord"}, "--report_to tensorbord: there is no such one. Did you mean 'tensorboard'"),
        ({"target_modules": "["}, "--target_modules '[' is no valid regular expression"),
        ({"target_modules": ".*(query"}, "--target_modules '.*(query' is no valid regular expression"),
        ({"exclude_modules": "*query"}, "--exclude_modules '*query' is no valid regular expression"),
        ({"early_stopping_patience": 1, "metric_for_best_model": "acuracy"}, "Did you mean 'accuracy'"),
    ],
)
def test_numbers_and_names_that_would_fail_later(change: dict[str, object], words: str, flags: dict[str, object], refused: Refused) -> None:
    assert words in refused("train", **{**flags, **change})
    assert not Path(str(flags["output_dir"])).exists()


def test_a_tracker_that_is_not_installed(flags: dict[str, object], refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paring.cli.run.checks.get_available_reporting_integrations", lambda: ["trackio"])
    assert "pip install azureml-core" in refused("train", **flags, report_to="trackio,azure_ml")
    assert "pip install wandb" in refused("train", **flags, report_to="wandb")
    assert not Path(str(flags["output_dir"])).exists()


def test_what_fails_late_leaves_no_empty_folder(flags: dict[str, object], refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from paring.core.errors import SettingError
    from paring.train import ParingTrainer

    out = Path(str(flags["output_dir"]))

    def fails(*args: Any, **kwargs: Any) -> None:
        out.mkdir(exist_ok=True)
        raise SettingError("no.")

    monkeypatch.setattr(ParingTrainer, "train", fails)
    refused("train", **flags)
    assert not out.exists()
    out.mkdir()
    refused("train", **flags)
    assert out.is_dir(), "a folder that was there stays"


def test_a_start_in_two_places(flags: dict[str, object], trained: Path, refused: Refused) -> None:
    said = refused("train", **flags, init_adapter=trained / "adapter", init="kaiming_zero")
    assert "--init 'kaiming_zero' and --init_adapter both say where the adapter starts" in said


def test_a_label_among_the_texts(flags: dict[str, object], refused: Refused) -> None:
    said = refused("train", **{**flags, "text_columns": "text,label"})
    assert "text_columns=text,label has column 'label', which is the label" in said


def test_questions_and_answers_without_a_label(
    llama: Path, jsonl: Callable[..., Path], tmp_path: Path, refused: Refused, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    data = jsonl("math.jsonl", *({"question": f"{text}?", "answer": mood, "id": 1} for text, mood in sentences(8)))
    flags = {"model_name_or_path": llama, "dataset_name": data, "output_dir": tmp_path / "out", "rank": 2, "eval_share": 0}
    assert "--task causal-lm" in (said := refused("train", **flags))
    assert "--text_columns PROMPT,COMPLETION, such as question,answer" in said
    # A model that is not there: what is read of the data is said before it is loaded.
    flags["model_name_or_path"] = "nobody/nothing"
    assert run("train", **flags, task="causal-lm") == 1
    assert "columns that are not read: answer, id (--text_columns PROMPT,COMPLETION reads two)\n" in capsys.readouterr().err
    assert run("train", **flags, task="causal-lm", text_columns="question,answer") == 1
    assert "columns that are not read: id\n" in capsys.readouterr().err


def test_an_adapter_for_a_model(flags: dict[str, object], bert: Path, trained: Path, refused: Refused) -> None:
    said = refused("train", **{**flags, "model_name_or_path": trained / "adapter"})
    assert "is an adapter, not a model" in said
    assert f"its base {str(bert)!r} as --model_name_or_path" in said
    assert "--init_adapter" in said


@pytest.mark.parametrize("command", ["predict", "verify", "inspect", "eval", "fuse"])
def test_a_run_for_its_adapter(command: str, trained: Path, moods: Path, tmp_path: Path, refused: Refused) -> None:
    more = {"predict": ["fine"], "eval": [moods], "fuse": [tmp_path / "fused"]}.get(command, [])
    assert f"its adapter is {str(trained / 'adapter')!r}, give that" in refused(command, trained, *more)
    shutil.copytree(trained / "checkpoint-8", tmp_path / "run" / "checkpoint-8")
    assert f"paring export {tmp_path / 'run' / 'checkpoint-8'} FOLDER" in refused(command, tmp_path / "run", *more)
    assert not (tmp_path / "fused").exists()


def test_a_checkpoint_for_an_adapter(flags: dict[str, object], trained: Path, refused: Refused) -> None:
    checkpoint = trained / "checkpoint-8"
    cure = f"paring export {checkpoint} FOLDER"
    assert cure in refused("predict", checkpoint, "fine")
    assert cure in refused("verify", checkpoint)
    assert cure in refused("train", **flags, init_adapter=checkpoint)


def test_a_checkpoint_that_is_not_there(trained: Path, tmp_path: Path, refused: Refused) -> None:
    said = refused("export", trained / "checkpoint-5", tmp_path / "out")
    assert f"There is no folder {str(trained / 'checkpoint-5')!r}" in said
    assert "checkpoint-4, checkpoint-8" in said
    assert "give one of those in it: checkpoint-4, checkpoint-8" in refused("export", trained, tmp_path / "out")


@pytest.mark.parametrize("end", [{}, {"max_steps": 4}])
def test_resuming_where_nothing_is_left(end: dict[str, object], flags: dict[str, object], trained: Path, refused: Refused) -> None:
    said = refused("train", **{**flags, **end}, resume_from_checkpoint=trained / "checkpoint-8")
    asked = "--max_steps 4 ends at step 4" if end else "--num_train_epochs 2 ends at step 8"
    assert f"is at step 8, and {asked}" in said
    assert f"paring export {trained / 'checkpoint-8'} FOLDER" in said
    assert not Path(str(flags["output_dir"])).exists()


def test_every_gate_at_zero_keeps_the_record(flags: dict[str, object], refused: Refused) -> None:
    said = refused("train", **{**flags, "penalty": 0.99, "gate_rate": 9.0})
    assert "No rank is left" in said
    out = Path(str(flags["output_dir"]))
    assert json.loads((out / "run.json").read_text())["metrics"]
    assert (out / "report.html").is_file()
    assert not (out / "adapter").exists()


def test_a_failing_run_that_overwrites_keeps_the_earlier_one(
    flags: dict[str, object], trained: Path, refused: Refused, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(str(flags["output_dir"]))
    shutil.copytree(trained, out)
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run("train", "--overwrite", **{**flags, "learning_rate": 1e30}) == 1
    assert f"the earlier run are in {out / 'replaced-1'}" in capsys.readouterr().err
    kept = {path.relative_to(out / "replaced-1"): path.read_bytes() for path in (out / "replaced-1").rglob("*") if path.is_file()}
    assert {**kept, **{name: data for name, data in before.items() if name.parts[0] == "adapter"}} == before
    assert all((out / name).read_bytes() == data for name, data in before.items() if name.parts[0] == "adapter")
    shutil.rmtree(out)
    shutil.copytree(trained, out)
    assert run("train", "--overwrite", **flags) == 0
    assert not list(out.glob("replaced-*")), "a run that succeeds takes the place of the earlier one"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_resuming_from_a_damaged_checkpoint(name: str, flags: dict[str, object], trained: Path, tmp_path: Path, refused: Refused) -> None:
    checkpoint = Path(shutil.copytree(trained / "checkpoint-4", tmp_path / "checkpoint-4"))
    data = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(data[: len(data) // 2])
    said = refused("train", **flags, resume_from_checkpoint=checkpoint)
    assert "checkpoint-4" in said
    assert "damaged" in said


def test_resuming_on_other_labels_modules_or_models(
    flags: dict[str, object], trained: Path, bert: Path, tmp_path: Path, refused: Refused
) -> None:
    resume = {"resume_from_checkpoint": trained / "checkpoint-4"}
    lines = ["text\tlabel", *(f"{text}\t{'ok' if mood == 'good' else mood}" for text, mood in sentences(64))]
    (tmp_path / "other.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert "names is ('bad', 'ok') but was ('bad', 'good')" in refused(
        "train", **{**flags, "dataset_name": tmp_path / "other.tsv"}, **resume
    )
    assert "trained on other modules" in refused("train", **flags, target_modules="query,value", **resume)
    other = Path(shutil.copytree(bert, tmp_path / "twin"))
    assert "the model is" in refused("train", **{**flags, "model_name_or_path": other}, **resume)


def test_the_base_model_is_found_from_another_folder(
    trained: Path, bert: Path, moods: Path, tmp_path: Path, run: Run, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bert.parent)
    out = tmp_path / "out"
    assert run("train", **{**TRAIN, "max_steps": 1}, model_name_or_path=bert.name, dataset_name=moods, output_dir=out) == 0
    monkeypatch.chdir(tmp_path)
    assert run("predict", out / "adapter", "fine") == 0
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    (out / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/away"}))
    assert "--model_name_or_path" in refused("predict", out / "adapter", "fine")


def test_resuming_with_other_settings(trained: Path, bert: Path, moods: Path, tmp_path: Path, refused: Refused) -> None:
    flags = {**TRAIN, "model_name_or_path": bert, "dataset_name": moods, "output_dir": tmp_path / "out"}
    said = refused("train", **{**flags, "rank": 6}, resume_from_checkpoint=trained / "checkpoint-4")
    assert "rank is 6 but was 4" in said


def test_an_upload_that_fails_loses_nothing(
    flags: dict[str, object], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    def offline(*args: Any, **kwargs: Any) -> None:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(HfApi, "create_repo", offline)
    said = refused("train", "--push_to_hub", **{**flags, "max_steps": 1}, hub_model_id="me/moods")
    assert "hf upload me/moods" in said
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
