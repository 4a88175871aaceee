"""A run is kept with what it had by default, and made again where that is something else today."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paring.cli.study.defaults import Defaults
from paring.cli.study.progress import Line
from paring.study.conduct import conduct
from paring.study.plan import Cell, Search, Study
from paring.study.records import Job, Metric, Outcome, State
from paring.study.search import Asked
from paring.study.store import opened
from tests.cli.studies import CONTESTANTS, job

CELL = Cell(contestant="LoRA", task="trec", budget=None, space={}, settings={})
STUDY = Study(
    name="s",
    cells=(CELL,),
    metrics={"trec": Metric(name="accuracy", larger_is_better=True, points=100.0)},
    seeds=(0, 1),
    search=Search(),
)


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_what_is_given_is_no_default(contestant: str, bert: Path, moods: Path) -> None:
    asked = job(bert, moods, contestant)
    found = Defaults(definitions={})(asked)
    assert not {*asked.settings["flags"], *asked.settings["values"], "seed", "metric"} & set(found)
    assert found["lr_scheduler_type"] == "linear"
    assert found["weight_decay"] == 0.0
    assert str(bert) not in str(found)
    assert str(moods) not in str(found)


def test_a_methods_own_settings_are_among_them(bert: Path, moods: Path) -> None:
    found = Defaults(definitions={})
    assert found(job(bert, moods, "spectral"))["quicken"] == 0.5
    assert "quicken" not in found(job(bert, moods, "spectral", quicken=0.0))
    assert found(job(bert, moods, "spectral", weight_decay=0.1)) != found(job(bert, moods, "spectral"))


def test_what_is_left_open_is_filled(bert: Path, moods: Path) -> None:
    asked = job(Path("$base"), Path("$data"), "lora")
    names = {"base": str(bert), "data": str(moods)}
    assert Defaults(definitions=names)(asked) == Defaults(definitions={})(job(bert, moods, "lora"))


def scored(asked: Asked) -> Outcome:
    return Outcome(state=State.FINISHED, metrics={"accuracy": 0.5}, defaults={"quicken": 0.0, "gone": 1})


def test_a_run_under_other_defaults_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(job: Job) -> dict[str, object]:
        return {"quicken": 0.5 if job.seed else 0.0, "new": 3}

    first, second = STUDY.final(CELL, 0, {}), STUDY.final(CELL, 1, {})
    with opened(tmp_path / "runs.db") as store:
        for asked in (first, second):
            store.put(asked, replace(scored(Asked(job=asked)), metrics={"accuracy": 0.25}))
        (entry,) = conduct(STUDY, store, scored, today=told, watch=Line(STUDY, {}, 1)).entries
    # What was added since, and what is not there any more, say nothing of a run.
    assert entry.scores == (0.25, 0.5)
    said = " ".join(capsys.readouterr().err.split())
    assert "LoRA on trec, seed 1 was made with the defaults of another release, quicken 0.0 (today 0.5); it is made again" in said
    assert "seed 0 was made" not in said


def test_a_run_that_noted_no_defaults_is_taken(tmp_path: Path) -> None:
    with opened(tmp_path / "runs.db") as store:
        for seed in STUDY.seeds:
            store.put(STUDY.final(CELL, seed, {}), replace(scored(Asked(job=STUDY.final(CELL, seed, {}))), defaults={}))
        (entry,) = conduct(STUDY, store, broken, today=lambda job: {"quicken": 0.5}).entries
    assert entry.scores == (0.5, 0.5)


def broken(asked: Asked) -> Outcome:
    raise AssertionError("no run is to be made")


def test_a_run_of_this_study_is_not_made_again(tmp_path: Path) -> None:
    """Two cells share it, and its process had other defaults than the one that asks, as after an upgrade in the midst of a study."""
    log = tmp_path / "log"
    cells = tuple(replace(CELL, contestant=name, settings={"log": str(log)}) for name in ("LoRA", "the same"))
    with opened(tmp_path / "runs.db") as store:
        conduct(replace(STUDY, cells=cells), store, counted, workers=1, today=lambda job: {"quicken": 0.5})
    assert log.read_text() == "0\n1\n"


def counted(asked: Asked) -> Outcome:
    with Path(asked.job.settings["log"]).open("a") as file:
        file.write(f"{asked.job.seed}\n")
    return scored(asked)
