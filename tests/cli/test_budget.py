"""``paring train --budget``: how a budget is written, and that it is kept."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import paring
from paring.cli.run.budgets import WAYS, plain_data, written
from paring.core.errors import SettingError
from paring.core.records import RunRecord
from tests.cli.conftest import TRAIN

Run = Callable[..., int]
FLAGS = {key: value for key, value in TRAIN.items() if key != "penalty"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("40k", {"name": "parameters", "count": 40_000}),
        ("40K", {"name": "parameters", "count": 40_000}),
        ("40000", {"name": "parameters", "count": 40_000}),
        ("40_000", {"name": "parameters", "count": 40_000}),
        (" 1.5 M ", {"name": "parameters", "count": 1_500_000}),
        ("30%", {"name": "share", "share": 0.3}),
        ("12.5 %", {"name": "share", "share": 0.125}),
        ("2MB", {"name": "bytes", "count": 2_000_000, "each": 4}),
        ("2MiB", {"name": "bytes", "count": 2 * 2**20, "each": 4}),
        ("500kB", {"name": "bytes", "count": 500_000, "each": 4}),
        ("900B", {"name": "bytes", "count": 900, "each": 4}),
    ],
)
def test_how_a_budget_is_written(text: str, wanted: dict[str, object]) -> None:
    assert written(text, each=4) == wanted


@pytest.mark.parametrize("text", ["share", "Share(share=0.5)", "many", "40 kilo", "-3", "", "2mb"])
def test_what_is_left_to_others(text: str) -> None:
    assert written(text, each=4) is None


@pytest.mark.parametrize("text", ["0%", "101%", "0", "0.0001k", "1e400", "0.3"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(SettingError, match="--budget"):
        written(text, each=4)


@pytest.mark.parametrize("text", ["-5", "nan", "2mb", "1,000", "1T", "", "30 percent", "Share(0.5)", "shares"])
def test_what_is_written_like_no_budget_is_told_how_one_is_written(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        plain_data(text, each=4)
    assert str(caught.value) == f"--budget {text!r}: there is no such size. {WAYS}"
    assert "40k" in WAYS
    assert "30%" in WAYS
    assert "2MB" in WAYS


def test_a_budget_by_its_name_in_pythons_spelling_and_as_a_mapping() -> None:
    assert plain_data("Knee", each=4) == {"name": "knee"}
    assert plain_data("Share(share=0.5)", each=4) == plain_data({"name": "share", "share": 0.5}, each=4) == {"name": "share", "share": 0.5}
    assert plain_data("1kB", each=2) == {"name": "bytes", "count": 1000, "each": 2}


def test_a_share_without_its_sign_is_guessed() -> None:
    with pytest.raises(SettingError, match=r"--budget 0\.3: that is less than one\. Did you mean 30%\?"):
        written("0.3", each=4)


@pytest.fixture(scope="module")
def half(bert: Path, moods: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget") / "half"
    assert run("train", **FLAGS, budget="50%", model_name_or_path=bert, dataset_name=moods, output_dir=folder) == 0
    return folder


def record(folder: Path) -> RunRecord:
    return RunRecord.from_json((folder / "run.json").read_text(encoding="utf-8"))


def test_a_budget_is_all_that_has_to_be_said(half: Path) -> None:
    done = record(half)
    assert 0.4 * done.start_parameters < done.parameters <= 0.5 * done.start_parameters
    assert done.method["quicken"] == 0.5
    assert paring.read(half / "adapter").parameters == done.parameters
    assert json.loads((half / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_a_budget_that_cuts_nothing_is_said(bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {**FLAGS, "model_name_or_path": bert, "dataset_name": moods, "max_steps": 1}
    assert run("train", **flags, budget="1G", output_dir=tmp_path / "whole") == 0
    done = record(tmp_path / "whole")
    assert done.parameters == done.start_parameters
    assert f"budget: no smaller than the {done.parameters:,} parameters" in capsys.readouterr().err


def test_without_a_budget_the_size_is_found(bert: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    assert run("train", **FLAGS, budget="knee", model_name_or_path=bert, dataset_name=moods, output_dir=folder) == 0
    done = record(folder)
    assert done.method["name"] == "spectral"
    assert 0 < done.parameters < done.start_parameters
    assert paring.read(folder / "adapter").parameters == done.parameters


def test_the_recorded_command_repeats_it(half: Path, run: Run, tmp_path: Path) -> None:
    words = shlex.split(record(half).command)
    assert words[words.index("--method") + 1] == "spectral"
    words[words.index("--output_dir") + 1] = str(tmp_path / "again")
    assert run(*words[1:]) == 0
    _same(half, tmp_path / "again")


@pytest.mark.parametrize("checkpoint", ["checkpoint-4"])
def test_it_goes_on_between_two_cuts(half: Path, checkpoint: str, bert: Path, moods: Path, run: Run, tmp_path: Path) -> None:
    flags = {**FLAGS, "model_name_or_path": bert, "dataset_name": moods, "budget": "50%"}
    assert run("train", **flags, output_dir=tmp_path / "on", resume_from_checkpoint=half / checkpoint) == 0
    _same(half, tmp_path / "on")


def _same(one: Path, other: Path) -> None:
    first, again = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"budget": "lots"}, "there is no such size"),
        ({"budget": "2MB", "layout": "uniform"}, "Leave out --layout"),
        ({"budget": "10"}, "does not pay for one rank"),
        ({"budget": "200%"}, "at most 100%"),
        ({"budget": "50%", "load_best_model_at_end": "true"}, "before the last cut"),
        ({"budget": "50%", "early_stopping_patience": 2}, "before the last cut"),
    ],
    ids=str,
)
def test_what_is_refused(
    flags: dict[str, object], said: str, bert: Path, moods: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run("train", **{**FLAGS, **flags, "model_name_or_path": bert, "dataset_name": moods, "output_dir": folder}) != 0
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not folder.exists()
