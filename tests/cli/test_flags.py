"""Flags out of dataclasses, and a method's settings as flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from jsonargparse import ArgumentParser

import paring.method
from paring.cli.commands.train import TAKEN
from paring.cli.flags import flags_first, hyphens, listed, option, simple
from paring.cli.run.checks import targets
from paring.cli.run.settings import add_settings, peek, take_settings
from paring.core.errors import SettingError
from paring.method import Method
from paring.methods.lora import LoRA
from paring.parts.initialise.base import Initialiser
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.update.revive import Every, Never


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A method that nobody told the command line of."""

    @dataclass(frozen=True, kw_only=True)
    class Invented(LoRA):
        r"""A method.

        Attributes:
            seed: a number whose name the run has taken.
            mode: a choice.
            budget: 50% of it, ``None`` for all; :math:`\lambda`.
        """

        name: ClassVar[str] = "invented"

        seed: int = 5
        mode: Literal["a", "b"] = "a"
        budget: float | None = None
        init: Initialiser = field(default=KaimingZero(), metadata={"family": "Initialiser"})

    names = paring.method.names()
    monkeypatch.setattr(paring.method, "names", lambda: (*names, "invented"))
    yield "invented"
    del Method.members["invented"]


def parsed(method: str, *words: str) -> Method:
    parser = ArgumentParser(exit_on_error=False)
    add_settings(parser, method, TAKEN)
    return take_settings(parser.parse_args(list(words)), method, TAKEN)


def test_a_new_method_brings_its_own_flags(invented: str) -> None:
    method: Any = parsed(invented, "--mode", "b", "--budget", "0.5", "--rank", "3", "--invented_seed", "7", "--init", "kaiming_zero")
    assert (method.mode, method.budget, method.rank, method.seed, method.init) == ("b", 0.5, 3, 7, KaimingZero())
    assert parsed(invented) == Method.members[invented]()


@pytest.mark.parametrize("spelling", ["never", "Never", "Never()", " never ( ) ", "{name: Never}"])
def test_a_part_as_the_help_spells_it(spelling: str) -> None:
    assert vars(parsed("sora", "--revive", spelling))["revive"] == Never()


@pytest.mark.parametrize("spelling", ["Every(period=4)", "every(period=4)", "{name: every, period: 4}"])
def test_a_part_with_a_setting(spelling: str) -> None:
    assert vars(parsed("sora", "--revive", spelling))["revive"] == Every(period=4)
    assert vars(parsed("sora", "--init", "KaimingZero"))["init"] == KaimingZero()


@pytest.mark.parametrize("spelling", ["Evry()", "Every(4)", "every(", "{name: evry}", "{period: 4}"])
def test_an_unknown_part_is_told_the_spellings_that_work(spelling: str) -> None:
    with pytest.raises(SettingError, match=r"Give one of Always\(\), Every\(period=8\), Never\(\)\.$"):
        parsed("sora", "--revive", spelling)


def test_no_number_is_none_as_in_python(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model_name_or_path", "x", "--dataset_name", "y", "--output_dir", "z", "--print_config"]
    (tmp_path / "c.yaml").write_text("max_length: None\nreport_to: none\n", encoding="utf-8")
    assert run("train", "--config", tmp_path / "c.yaml", "--fade", "None", "--gate_rate", "none", *words) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: null\n" in shown for name in ("fade", "gate_rate", "max_length"))
    assert "report_to: none\n" in shown
    assert run("train", "--fade", "nothing", *words) == 2
    assert "expected a number or none" in capsys.readouterr().err


def test_words_by_place_go_behind_all_flags() -> None:
    parser = ArgumentParser(exit_on_error=False)
    simple("c", "s", Options, lambda options: 0).fill(parser, [])
    words = ["here", "--names", "[a]", "-5", "--quick", "a - b", "--folder=x", "--", "--names"]
    assert flags_first(parser, words) == ["--names", "[a]", "--quick", "--folder=x", "--", "here", "-5", "a - b", "--names"]
    assert flags_first(parser, ["here", "--names"]) == ["--names", "--", "here"]
    assert flags_first(parser, ["--quick"]) == ["--quick"]


def test_help_is_the_docstring_without_its_markup(invented: str) -> None:
    parser = ArgumentParser()
    add_settings(parser, invented, TAKEN)
    shown = " ".join(parser.format_help().split())
    assert "50% of it, None for all; lambda." in shown


def test_the_method_is_known_before_the_flags_are(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("method: lora\n", encoding="utf-8")
    assert peek(["--rank", "3", "--method", "sora"], "method") == "sora"
    assert peek(["--config", str(config)], "method") == "lora"
    assert peek(["--config", str(config), "--method=sora"], "method") == "sora"
    assert peek(["--method"], "method") is None


def test_hyphens_are_underscores_in_flags_only() -> None:
    words = ["train", "--load-in-4bit", "--output-dir=my-dir", "a-b", "-x", "--", "--not-mine"]
    assert hyphens(words) == ["train", "--load_in_4bit", "--output_dir=my-dir", "a-b", "-x", "--", "--not-mine"]


@dataclass(frozen=True, kw_only=True)
class Options:
    folder: str = option("a folder", positional=True)
    quick: bool = option("be quick", default=False)
    names: list[str] = option("names", default=["x"])


@pytest.mark.parametrize("words", [["--quick", "here"], ["here", "--quick"]])
def test_a_switch_does_not_take_the_word_behind_it(words: list[str]) -> None:
    seen: list[Options] = []
    command = simple("c", "s", Options, lambda options: seen.append(options) or 0)
    parser = ArgumentParser(exit_on_error=False)
    command.fill(parser, words)
    assert command.run(parser.parse_args(words)) == 0
    assert seen == [Options(folder="here", quick=True, names=["x"])]


def test_lists_and_patterns_of_modules() -> None:
    assert listed("a, b,") == ["a", "b"]
    assert targets("query, value") == ["query", "value"]
    assert targets("query") == ["query"]
    assert targets("all-linear") == "all-linear"
    assert targets(r".*\.(query|value)") == r".*\.(query|value)"
    assert targets(["query"]) == ["query"]


def test_a_switch_of_a_run_may_be_spelled_out(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model_name_or_path", "x", "--dataset_name", "y", "--output_dir", tmp_path / "out", "--print_config"]
    assert run("train", "--bf16", "true", "--load-in-4bit", *words) == 0
    shown = capsys.readouterr().out
    assert "bf16: true" in shown
    assert "load_in_4bit: true" in shown
    assert "fp16: false" in shown
