"""When a trial is cut short, and what that makes of runs that are stored."""

from __future__ import annotations

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from paring.cli.study.work import Looks
from paring.core.records import Point
from paring.study.records import Outcome, State
from paring.study.search import Cut, judged
from tests.study.samples import ACCURACY, PERPLEXITY


def test_a_cut_is_that_of_the_median() -> None:
    cut = Cut(metric=ACCURACY, before=((0.1, 0.2, 0.3), (0.3, 0.4, 0.5)), first=2, evaluations=3)
    # The median of theirs is .3 at the second evaluation; what counts is the best so far.
    assert [cut.is_due([0.0, value]) for value in (0.29, 0.31)] == [True, False]
    assert not cut.is_due([0.31, 0.29])
    assert not cut.is_due([0.0, 0.0, 0.0])  # Nothing is saved by it at the end.
    assert not Cut(metric=ACCURACY, before=((0.9, 0.9, 0.9),), first=2, evaluations=3).is_due([0.1, 0.1])
    lower = Cut(metric=PERPLEXITY, before=((9.0, 8.0, 7.0), (5.0, 4.0, 3.0)), first=2, evaluations=3)
    assert [lower.is_due([9.0, value]) for value in (5.9, 6.1)] == [False, True]


@pytest.mark.parametrize(("count", "cutting"), [(2, [1]), (3, [2]), (4, [2, 3]), (5, [3, 4]), (8, [4, 5, 6, 7])])
def test_only_the_second_half_of_a_training_cuts(count: int, cutting: list[int]) -> None:
    cut = Cut(metric=ACCURACY, before=((0.9,) * count,) * 2, first=2, evaluations=count)
    assert [seen for seen in range(1, count + 1) if cut.is_due([0.1] * seen)] == cutting
    # One that begins behind and has caught up by then goes on.
    assert cut.length([0.1] * (cutting[0] - 1) + [0.95] * (count - cutting[0] + 1)) == count


def outcome_of(values: list[float], state: State) -> Outcome:
    return Outcome(state=state, history=tuple(Point(step=step, values={"eval_accuracy": value}) for step, value in enumerate(values)))


def test_a_run_that_a_former_rule_cut_too_early_is_made_again() -> None:
    cut = Cut(metric=ACCURACY, before=((0.5,) * 4, (0.6,) * 4), first=2, evaluations=4)
    assert judged(outcome_of([0.1], State.PRUNED), cut) is None
    assert judged(outcome_of([0.1, 0.1], State.PRUNED), cut) is State.PRUNED
    assert judged(outcome_of([0.1, 0.1, 0.1, 0.9], State.FINISHED), cut) is State.PRUNED
    assert judged(outcome_of([0.1, 0.8, 0.8, 0.9], State.FINISHED), cut) is State.FINISHED


def test_a_training_of_which_perplexity_counts_is_cut_short_by_its_loss() -> None:
    looks = Looks(2, Cut(metric=PERPLEXITY, before=((1.0, 1.0),) * 2, first=2, evaluations=2))
    for loss, due in ((0.9, False), (1.1, True)):
        control = TrainerControl()
        looks.seen = []
        looks.on_evaluate(TrainingArguments(output_dir="unused"), TrainerState(), control, {"eval_loss": loss})
        assert (looks.pruned, control.should_training_stop) == (due, due)
