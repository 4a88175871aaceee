"""A study is conducted: what is asked for, what is kept, and that interruptions and workers change nothing."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paring.core.errors import SettingError, StudyError
from paring.core.records import Point
from paring.study.conduct import conduct, estimated, seconds_of
from paring.study.plan import Cell, Estimate, Listed, Range, Sampler, Search, Study
from paring.study.pool import Died
from paring.study.records import Entry, Fault, Findings, Job, Metric, Outcome, Phase, State
from paring.study.search import Asked
from paring.study.store import opened

ACCURACY = Metric(name="accuracy", larger_is_better=True, points=100.0)
PERPLEXITY = Metric(name="perplexity", larger_is_better=False, points=1.0)
RATES = Listed(values=(1e-4, 1e-3, 1e-2))


def curve(job: Job) -> list[float]:
    """A stand-in for training: best at a rate that the settings name, by how far, over four evaluations."""
    rate = job.settings["values"].get("learning_rate", job.settings["best"])
    far = abs(math.log10(rate / job.settings["best"]))
    final = 0.9 - 0.1 * far + 0.001 * job.seed
    return [final * (0.7 + 0.1 * step) for step in range(4)]


def work(asked: Asked) -> Outcome | Fault:
    """Make a run: fails, dies or is slow where its settings say so."""
    job = asked.job
    if "log" in job.settings:
        with Path(job.settings["log"]).open("a") as file:
            file.write(f"{job.phase} {job.settings['values']} {job.seed}\n")
    time.sleep(job.settings.get("sleep", 0.0))
    rate = job.settings["values"].get("learning_rate", job.settings["best"])
    if rate in job.settings.get("fails", ()):
        if "quiet" in job.settings and "raises" not in job.settings:
            return Outcome(state=State.FAILED, error="the device is lost")
        raise ValueError("the loss is not finite")
    if "full" in job.settings and Path(job.settings["full"]).exists() and rate == 1e-2:
        return Fault(error="its disk is full")
    if rate in job.settings.get("dies", ()):
        os.kill(os.getpid(), signal.SIGKILL)
    name, values, history = job.settings["metric"], curve(job), []
    for step, value in enumerate(values):
        # As in a training: a perplexity is computed at the end, of the loss.
        history.append(Point(step=step + 1, values={"eval_accuracy": value} if name == "accuracy" else {"eval_loss": -math.log(value)}))
        seen = [next(iter(point.values.values())) for point in history]
        if asked.cut is not None and asked.cut.is_due(seen):
            return Outcome(state=State.PRUNED, history=tuple(history), steps=step + 1, seconds=float(step + 1))
    last = values[-1] if name == "accuracy" else 1 / values[-1]
    return Outcome(
        state=State.FINISHED,
        metrics={name: math.nan if job.phase is Phase.FINAL and job.seed in job.settings.get("lost", ()) else last, "loss": 1 - values[-1]},
        history=tuple(history),
        steps=4,
        seconds=4.0,
        parameters=100,
        start_parameters=200,
        file_bytes=400,
        versions={"paring": "1"},
        machine={"cores": 2, **({"process": os.getpid()} if "quiet" in job.settings else {})},
    )


def cell(contestant: str = "LoRA", task: str = "trec", *, space: Any = None, **settings: Any) -> Cell:
    chosen = {"learning_rate": RATES} if space is None else space
    return Cell(contestant=contestant, task=task, budget=None, space=chosen, settings={"best": 1e-3, "metric": "accuracy", **settings})


def study(*cells: Cell, seeds: tuple[int, ...] = (0, 1), metric: Metric = ACCURACY, **search: Any) -> Study:
    given = {"evaluations": 4, **search}
    return Study(name="test", cells=cells, metrics={one.task: metric for one in cells}, seeds=seeds, search=Search(**given))


def run(of: Study, path: Path, **settings: Any) -> Findings:
    with opened(path) as store:
        return conduct(of, store, work, **settings)


def only(findings: Findings) -> Entry:
    (entry,) = findings.entries
    return entry


def test_the_best_of_the_grid_is_trained_with_all_seeds_and_scored(tmp_path: Path) -> None:
    entry = only(run(study(cell()), tmp_path / "runs.db"))
    assert sorted(trial.values["learning_rate"] for trial in entry.trials) == [1e-4, 1e-3, 1e-2]
    assert entry.chosen == {"learning_rate": 1e-3}
    assert entry.scores == pytest.approx((0.9, 0.901))
    assert (entry.parameters, entry.start_parameters, entry.file_bytes, entry.seconds) == ((100, 100), (200, 200), (400, 400), (4.0, 4.0))
    assert entry.edges == ()
    assert not entry.errors


def test_smaller_may_be_better(tmp_path: Path) -> None:
    entry = only(run(study(cell(metric="perplexity"), metric=PERPLEXITY), tmp_path / "runs.db"))
    assert entry.chosen == {"learning_rate": 1e-3}
    assert entry.scores == pytest.approx((1 / 0.9, 1 / 0.901))


def test_a_choice_at_the_edge_is_told(tmp_path: Path) -> None:
    assert only(run(study(cell(best=1e-2)), tmp_path / "runs.db")).edges == ("learning_rate",)
    # Two of the three were tried, 1e-3 and a smaller one: whether 1e-2 is better was not seen.
    entry = only(run(study(cell(), trials=2), tmp_path / "fewer.db"))
    assert sorted(trial.values["learning_rate"] for trial in entry.trials) == [1e-4, 1e-3]
    assert (entry.chosen, entry.edges) == ({"learning_rate": 1e-3}, ("learning_rate",))
    alone = only(run(study(cell(space={"learning_rate": Listed(values=(1e-3,))})), tmp_path / "alone.db"))
    assert alone.edges == ()


@pytest.mark.parametrize(
    ("best", "widen", "beyond", "chosen", "edges"),
    [
        (1e-3, 3, [], 1e-3, ()),  # inside: nothing more is tried
        (0.1, 3, [0.1, 1.0], 0.1, ()),  # one step, and one that shows that there is nothing to be had
        (1e-6, 3, [1e-5, 1e-6, 1e-7], 1e-6, ()),
        (1e-6, 2, [1e-5, 1e-6], 1e-6, ("learning_rate",)),  # no more than was allowed
        (0.1, 0, [], 1e-2, ("learning_rate",)),
    ],
)
def test_a_grid_is_gone_beyond_where_its_best_lies_at_an_end(
    best: float, widen: int, beyond: list[float], chosen: float, edges: tuple[str, ...], tmp_path: Path
) -> None:
    plan = study(cell(best=best), widen=widen, prune=False)
    entry = only(run(plan, tmp_path / "runs.db"))
    assert [trial.values["learning_rate"] for trial in entry.trials][3:] == beyond
    assert (entry.chosen, entry.edges) == ({"learning_rate": chosen}, edges)
    assert plan.runs == 3 + widen + 2


def test_a_trial_beyond_the_grid_that_fails_bounds_it(tmp_path: Path) -> None:
    entry = only(run(study(cell(best=0.1, fails=(0.1,)), widen=2), tmp_path / "runs.db"))
    assert [(trial.values["learning_rate"], trial.state) for trial in entry.trials][3:] == [(0.1, State.FAILED)]
    assert (entry.chosen, entry.edges) == ({"learning_rate": 1e-2}, ())


def test_beyond_two_lists_one_knob_is_moved_at_a_time(tmp_path: Path) -> None:
    space = {"learning_rate": RATES, "penalty": Listed(values=(0.0, 1.0))}
    entry = only(run(study(cell(best=0.1, space=space), widen=2, prune=False), tmp_path / "runs.db"))
    best = entry.chosen
    assert best is not None
    # A list that holds 0 has no factor to go on by.
    assert [trial.values for trial in entry.trials][6:] == [{**best, "learning_rate": 0.1}, {**best, "learning_rate": 1.0}]
    assert (best["learning_rate"], entry.edges) == (0.1, ("penalty",))


def test_a_list_goes_on_as_it_came() -> None:
    rates = Listed(values=(1e-3, 3e-3, 1e-2))
    assert [rates.beyond(1e-2, ()), rates.beyond(1e-3, ())] == [3e-2, 3e-4]
    assert [rates.beyond(3e-2, (3e-2,)), rates.beyond(3e-4, (3e-4,))] == [0.1, 1e-4]
    assert Listed(values=(2.0, 6.0)).beyond(6.0, ()) == 18.0
    plan = Search(widen=2)
    assert plan.ends({"learning_rate": rates, "penalty": Range(low=1.0, high=2.0)}) == (
        {"learning_rate": 1e-4, "penalty": 1.0},
        {"learning_rate": 0.1, "penalty": 2.0},
    )
    # Nothing lies beyond a single value, so no trial is counted for it.
    assert (plan.count({"learning_rate": rates}), plan.count({"penalty": Listed(values=(1.0,))})) == (5, 1)


@pytest.mark.parametrize("also", [{"trials": 2}, {"sampler": Sampler.TPE, "trials": 2}, {"sampler": Sampler.RANDOM}])
def test_only_a_whole_grid_can_be_gone_beyond(also: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="widen=1 goes beyond a grid all of which was tried"):
        Search(widen=1, **also)
    with pytest.raises(SettingError, match="widen=1: learning_rate is a range"):
        Search(widen=1).count({"learning_rate": Range(low=1e-4, high=1e-2)})
    for wrong in (-1, 21, 1.5, True):
        with pytest.raises(SettingError, match="give a whole number from 0 to 20"):
            Search(widen=wrong)  # type: ignore[arg-type]


def test_of_equal_scores_the_lower_loss_is_chosen(tmp_path: Path) -> None:
    assert only(run(study(cell(best=math.sqrt(1e-3 * 1e-2)), prune=False), tmp_path / "runs.db")).chosen is not None


def test_a_cell_without_anything_to_search_is_trained_as_it_is(tmp_path: Path) -> None:
    entry = only(run(study(cell(space={})), tmp_path / "runs.db"))
    assert (entry.trials, entry.chosen, entry.search_seconds) == ((), {}, 0.0)
    assert entry.scores == pytest.approx((0.9, 0.901))


@pytest.mark.parametrize("sampler", [Sampler.GP, Sampler.TPE, Sampler.RANDOM])
def test_a_range_is_searched_and_the_same_settings_are_proposed_again(sampler: Sampler, tmp_path: Path) -> None:
    space = {"learning_rate": Range(low=1e-5, high=1e-1)}
    plan = study(cell(space=space), trials=8, sampler=sampler, prune=False)
    first, second = (only(run(plan, tmp_path / f"{name}.db")) for name in "ab")
    assert first == second
    assert len({trial.values["learning_rate"] for trial in first.trials}) == 8
    assert all(1e-5 <= trial.values["learning_rate"] <= 1e-1 for trial in first.trials)
    best = max(first.trials, key=lambda trial: trial.score or 0)
    assert first.chosen == best.values


def test_a_gaussian_process_comes_closer_than_chance(tmp_path: Path) -> None:
    space = {"learning_rate": Range(low=1e-6, high=1e-1)}
    plan = study(cell(space=space, best=3e-3), trials=12, prune=False)
    chosen = only(run(plan, tmp_path / "runs.db")).chosen
    assert chosen is not None
    assert abs(math.log10(chosen["learning_rate"] / 3e-3)) < 0.3


def test_trials_below_the_median_are_cut_short(tmp_path: Path) -> None:
    rates = Listed(values=tuple(10.0**power for power in range(-6, 0)))
    plan = study(cell(space={"learning_rate": rates}))
    entry = only(run(plan, tmp_path / "runs.db"))
    states = [trial.state for trial in entry.trials]
    assert states[:2] == [State.FINISHED, State.FINISHED]
    assert State.PRUNED in states
    assert all((trial.score is None) == (trial.state is State.PRUNED) for trial in entry.trials)
    assert entry.chosen == {"learning_rate": 1e-3}
    whole = only(run(replace(plan, search=replace(plan.search, prune=False)), tmp_path / "whole.db"))
    assert entry.search_seconds < whole.search_seconds
    assert entry.scores == whole.scores


def test_perplexity_is_judged_by_the_loss_that_is_logged(tmp_path: Path) -> None:
    rates = Listed(values=tuple(10.0**power for power in range(-6, 0)))
    entry = only(run(study(cell(space={"learning_rate": rates}, metric="perplexity"), metric=PERPLEXITY), tmp_path / "runs.db"))
    assert State.PRUNED in [trial.state for trial in entry.trials]
    assert entry.chosen == {"learning_rate": 1e-3}
    assert entry.scores == pytest.approx((1 / 0.9, 1 / 0.901))


def test_what_was_cut_short_elsewhere_is_made_whole_where_it_must_be(tmp_path: Path) -> None:
    rates = Listed(values=tuple(10.0**power for power in range(-6, 0)))
    plan = study(cell(space={"learning_rate": rates}))
    whole = replace(plan, search=replace(plan.search, prune=False))
    alone = only(run(whole, tmp_path / "whole.db"))
    run(plan, tmp_path / "runs.db")
    assert only(run(whole, tmp_path / "runs.db")).trials == alone.trials
    # And the other way round: whole runs count as cut short where they would have been.
    assert only(run(plan, tmp_path / "whole.db")).trials == only(run(plan, tmp_path / "runs.db")).trials


def test_a_failing_run_is_a_result_and_stops_no_other(tmp_path: Path) -> None:
    plan = study(cell(fails=[1e-4]), cell("SoRA", dies=[1e-2]), cell("all", fails=RATES.values))
    findings = run(plan, tmp_path / "runs.db", workers=2)
    lora, sora, nothing = findings.entries
    assert {trial.values["learning_rate"]: trial.state for trial in lora.trials}[1e-4] is State.FAILED
    assert list(lora.errors.values()) == ["the loss is not finite"]
    assert "SIGKILL" in next(iter(sora.errors.values()))
    assert lora.scores == sora.scores == pytest.approx((0.9, 0.901))
    assert (nothing.chosen, nothing.scores) == (None, (None, None))
    assert findings.counts["failed"] == 5


def test_a_final_run_without_a_finite_score_says_so(tmp_path: Path) -> None:
    findings = run(study(cell(lost=[1])), tmp_path / "runs.db")
    assert only(findings).scores == pytest.approx((0.9, None))
    assert only(findings).errors == {"seed 1": "the metric accuracy is not among what was measured, or not finite"}
    assert findings.counts["failed"] == 1


@pytest.mark.parametrize("settings", [{"quiet": 1}, {"quiet": 1, "raises": 1}])
def test_after_a_failure_a_fresh_process_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    def processes(**more: Any) -> int:
        rates = Listed(values=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1))
        plan = study(cell(space={"learning_rate": rates}, **settings, **more), seeds=(0,), prune=False)
        return len(run(plan, tmp_path / f"{len(more)}.db").machines)

    # The middle one is tried first.
    assert processes() == 1
    assert processes(fails=[1e-4]) == 2


def test_a_metric_that_is_never_measured_stops_the_study(tmp_path: Path) -> None:
    plan = study(cell(), metric=replace(ACCURACY, name="f1"))
    for _ in range(2):  # the run is kept
        with pytest.raises(SettingError, match=r"LoRA on trec, seed 0: the metric 'f1' .* \(accuracy, loss\)"):
            run(plan, tmp_path / "runs.db")


def test_failed_runs_are_made_again_only_if_asked(tmp_path: Path) -> None:
    log = tmp_path / "log"
    plan = study(cell(fails=[1e-4], log=str(log)))
    run(plan, tmp_path / "runs.db")
    before = len(log.read_text().splitlines())
    run(plan, tmp_path / "runs.db")
    assert len(log.read_text().splitlines()) == before
    run(plan, tmp_path / "runs.db", retry=True)
    assert len(log.read_text().splitlines()) == before + 1


def test_a_fault_of_the_machine_stops_the_study_and_is_met_anew(tmp_path: Path) -> None:
    log, full = tmp_path / "log", tmp_path / "full"
    full.touch()
    plan = study(cell(full=str(full), log=str(log)), prune=False)
    with pytest.raises(StudyError, match=r"LoRA on trec, seed 0 was stopped by the machine, .*: its disk is full\. .* are kept\."):
        run(plan, tmp_path / "runs.db")
    before = log.read_text().splitlines()
    full.unlink()
    entry = only(run(plan, tmp_path / "runs.db"))
    assert [trial.state for trial in entry.trials] == [State.FINISHED] * 3
    assert not entry.errors
    lines = log.read_text().splitlines()
    assert [line for line in set(lines) if lines.count(line) > 1] == [before[-1]]


def test_nothing_is_run_twice_and_names_are_no_part_of_a_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    shared = {"log": str(log)}
    findings = run(study(cell("one", **shared), cell("two", **shared)), tmp_path / "runs.db", workers=2)
    lines = log.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 5
    first, second = findings.entries
    assert first.scores == second.scores
    run(study(cell("renamed", **shared)), tmp_path / "runs.db")
    assert log.read_text().splitlines() == lines
    # A further seed is one run more.
    run(study(cell("one", **shared), seeds=(0, 1, 2)), tmp_path / "runs.db")
    assert len(log.read_text().splitlines()) == 6


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers: int, tmp_path: Path) -> None:
    cells = [cell(name, best=best) for name, best in (("a", 1e-3), ("b", 1e-2), ("c", 1e-4))]
    assert run(study(*cells), tmp_path / "runs.db", workers=workers) == run(study(*cells), tmp_path / "other.db")


def test_the_database_can_be_queried(tmp_path: Path) -> None:
    run(study(cell()), tmp_path / "runs.db")
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        rows = connection.execute(
            "SELECT json_extract(searched, '$.learning_rate'), json_extract(metrics, '$.accuracy') FROM runs "
            "WHERE phase = 'final' ORDER BY seed"
        ).fetchall()
    assert rows == [(1e-3, pytest.approx(0.9)), (1e-3, pytest.approx(0.901))]


def probe(job: Job) -> Estimate:
    """Times nothing."""
    if job.contestant == "broken":
        raise ValueError("no such module")
    return Estimate(setup=1.0, step=0.5, steps=10, score=2.0)


def silent(job: Job) -> Estimate:
    raise ImportError("not to be timed again")


def test_the_time_is_told_from_a_probe_that_is_made_once(tmp_path: Path) -> None:
    plan = study(cell(), cell("broken", best=1e-4))
    with opened(tmp_path / "runs.db") as store:
        found = estimated(plan, store, probe)
        broken = found["broken on trec"]
        assert isinstance(broken, Died)
        assert broken.error == "no such module"
        known = {name: one for name, one in found.items() if isinstance(one, Estimate)}
        assert seconds_of(plan, known) == 8.0 * 5
        assert plan.runs == 10
        # What is known is not timed again, unless the metric is another one, which a probe would miss.
        again = estimated(study(cell()), store, silent)
        assert again == known
        other = estimated(study(cell(), metric=PERPLEXITY), store, silent)["LoRA on trec"]
        assert isinstance(other, Died)
        assert other.error == "not to be timed again"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Listed(values=()), "at least one"),
        (lambda: Listed(values=(1.0, 1.0)), "ascending"),
        (lambda: Range(low=0.0, high=1.0), "low=0.0"),
        (lambda: Range(low=1.0, high=1.0), "high=1.0"),
        (lambda: Search(held=1.0), "held=1.0"),
        (lambda: Search(evaluations=1), "prune=true needs"),
        (lambda: Search(trials=0), "trials=0"),
        (lambda: Search().count({"x": Range(low=1.0, high=2.0)}), "say how many"),
        (lambda: Search(sampler=Sampler.GRID, trials=3).count({"x": Range(low=1.0, high=2.0)}), "x is a range"),
    ],
)
def test_settings_out_of_range(make: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        make()


def test_a_job_is_known_by_what_its_result_depends_on() -> None:
    job = Job(contestant="a", task="t", budget=None, phase=Phase.FINAL, seed=0, settings={"x": 1, "y": {"z": [1, 2]}})
    same = Job(contestant="b", task="u", budget="1/2", phase=Phase.FINAL, seed=0, settings={"y": {"z": [1, 2]}, "x": 1})
    assert job.key == same.key
    others = [replace(job, seed=1), replace(job, phase=Phase.SEARCH), replace(job, settings={"x": 2, "y": {"z": [1, 2]}})]
    assert len({one.key for one in (job, *others)}) == 4
