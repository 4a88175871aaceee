"""Which rows the runs of a study see: those that final runs are scored on are the same for all, and chose nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paring.cli.study.build import build
from paring.cli.study.digests import with_digests
from paring.cli.study.made import make
from paring.cli.study.text import read_text
from paring.study.page import render_study
from paring.study.plan import Cell, Study
from paring.study.records import Findings, Job
from paring.train import Recorder
from tests.study.samples import entry, findings

FILE = """\
settings: {model_name_or_path: $base, per_device_train_batch_size: 16, max_steps: 2}
tasks:
  moods: {dataset_name: $data, metric: accuracy, FLAGS}
contestants:
  LoRA: {method: lora, rank: 2}
search: {learning_rate: [1e-3, 1e-2], held: 0.25, seed: 5}
seeds: 3
"""

PLANTED = FILE.replace("metric: accuracy", "metric: relative_error, planted: {pattern: 1}")


@pytest.fixture
def study(tmp_path: Path, bert: Path) -> Callable[..., Study]:
    """Builds the study on some data, with further flags of its task."""

    def make_study(data: Path, flags: str = "max_length: 32", file: str = FILE) -> Study:
        path = tmp_path / "study.yaml"
        path.write_text(file.replace("FLAGS", flags).replace("$base", str(bert)).replace("$data", str(data)), encoding="utf-8")
        return with_digests(build(read_text(path), {}).study, {})

    return make_study


def finals(study: Study) -> list[Job]:
    cell: Cell = study.cells[0]
    return [study.final(cell, seed, {"learning_rate": 1e-3}) for seed in study.seeds]


def parts(job: Job, folder: Path) -> tuple[set[int], list[int]]:
    """The numbers of the rows that are trained on, and of those that are scored."""
    rows: Any = make(job, {}, Recorder(), folder).prepared.rows
    return set(rows.train["__row__"]), list(rows.held_out["__row__"])


@pytest.mark.parametrize("file", [FILE, PLANTED])
def test_without_a_dev_split_every_run_leaves_the_same_rows_alone(
    file: str, study: Callable[..., Study], moods: Path, tmp_path: Path
) -> None:
    lone = study(moods / "train.tsv", file=file)
    assert lone.held_out == ("moods",)
    seen = [parts(job, tmp_path) for job in finals(lone)]
    trained, scored = seen[0]
    assert (len(trained), len(scored)) == (58, 6)
    assert trained | set(scored) == set(range(1, 65))
    assert all(found == seen[0] for found in seen)
    chosen = parts(lone.trial(lone.cells[0], {"learning_rate": 1e-3}), tmp_path)
    # What a setting is chosen by is taken from what is left, and nothing else is.
    assert chosen[0] | set(chosen[1]) == trained
    assert not chosen[0] & set(chosen[1])
    assert len(chosen[1]) == round(0.25 * 58)


def test_a_sample_of_the_dev_rows_is_drawn_once(study: Callable[..., Study], moods: Path, tmp_path: Path) -> None:
    sampled = study(moods, "max_eval_samples: 7")
    assert sampled.held_out == ()
    scored = [parts(job, tmp_path)[1] for job in finals(sampled)]
    assert len(scored[0]) == 7
    assert scored == [scored[0]] * 3


def test_a_dev_split_is_scored_as_it_is_and_its_runs_are_known_as_before(study: Callable[..., Study], moods: Path, tmp_path: Path) -> None:
    for plan in (study(moods), study(moods / "train.tsv", f"eval_dataset_name: {moods / 'dev.tsv'}")):
        assert plan.held_out == ()
        for job in finals(plan):
            assert set(job.settings) == {"flags", "values", "digests"}
            assert parts(job, tmp_path) == (set(range(1, 65)), list(range(1, 33)))
    # Trials were drawn by the search's seed before.
    for plan in (study(moods / "train.tsv"), study(moods, "max_eval_samples: 7")):
        assert set(plan.trial(plan.cells[0], {}).settings) == {"flags", "values", "digests", "search"}


def test_that_rows_were_held_out_is_said(
    study: Callable[..., Study], moods: Path, bert: Path, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "held out of the training rows of moods, drawn once"
    study(moods / "train.tsv")
    assert run("study", tmp_path / "study.yaml", "--no_probe", "--plan") == 0
    assert said in capsys.readouterr().err
    study(moods)
    assert run("study", tmp_path / "study.yaml", "--no_probe", "--plan") == 0
    assert said not in capsys.readouterr().err
    found = findings(entry("LoRA", "moods", [0.9, 0.8]), held_out=("moods",))
    assert said in " ".join(render_study(found).split())
    assert Findings.from_json(found.to_json()).held_out == ("moods",)
