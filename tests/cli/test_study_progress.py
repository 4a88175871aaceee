"""What is said while a study runs."""

from __future__ import annotations

from paring.cli.study.progress import Line
from paring.study.plan import Cell, Listed, Search, Study
from paring.study.records import Metric, Outcome, State
from paring.study.search import Asked

RATE = 1e-3
CELL = Cell(contestant="LoRA", task="trec", budget=None, space={"learning_rate": Listed(values=(RATE, 3e-3))}, settings={})
STUDY = Study(
    name="s",
    cells=(CELL,),
    metrics={"trec": Metric(name="accuracy", larger_is_better=True, points=100.0)},
    seeds=(0, 1),
    search=Search(widen=3),
)
SETTING = {"learning_rate": RATE}


def test_trials_that_were_allowed_and_not_needed_are_not_waited_for() -> None:
    line = Line(STUDY, {}, 1)
    ended = Outcome(state=State.FINISHED, metrics={"accuracy": 0.5}, seconds=1.0)
    assert line.left[CELL.name] == 2 + 3 + 2
    line.ended(Asked(job=STUDY.trial(CELL, SETTING)), ended, found=True)
    assert line.left[CELL.name] == 6
    line.ended(Asked(job=STUDY.final(CELL, 0, SETTING)), ended, found=True)
    assert line.left[CELL.name] == 1
    line.ended(Asked(job=STUDY.final(CELL, 1, SETTING)), ended, found=True)
    assert (line.left[CELL.name], line.seconds_left()) == (0, 0.0)
