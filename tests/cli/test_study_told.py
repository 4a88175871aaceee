"""What is said of a study on the terminal."""

from __future__ import annotations

import pytest

from paring.cli.study import told
from paring.study.records import Findings, Metric
from tests.study import samples


def test_small_losses_are_told_with_the_digits_that_differ(capsys: pytest.CaptureFixture[str]) -> None:
    loss = Metric(name="loss", larger_is_better=False, points=1.0)
    rows = [samples.entry("SoRA", "t", [0.9179, 0.8939]), samples.entry("LoRA", "t", [0.9189, 0.9013])]
    found = samples.findings(*rows, metrics={"t": loss})
    told.results_told(found)
    assert "0.9059 (0.8939 to 0.9179)" in capsys.readouterr().err
    told.comparison_told(found, "SoRA", "LoRA")
    assert "+0.0042" in capsys.readouterr().out


def test_a_comparison_says_what_it_cannot_show(capsys: pytest.CaptureFixture[str]) -> None:
    def said(study: Findings) -> str:
        told.comparison_told(study, "A", "B")
        return " ".join(capsys.readouterr().out.split())

    whole = {task: samples.entry("A", task, [0.5 + seed**2 / 100 for seed in range(3)]) for task in "tu"}
    others = [samples.entry("B", task, [0.49 + seed / 100 for seed in range(3)]) for task in "tu"]
    both = said(samples.findings(*whole.values(), *others))
    assert "all tasks" in both
    assert "sign-flip test that there is no difference: p = " in both
    assert "Few seeds, 3: " in both
    assert "below 0.25 on one task" in both
    partly = said(samples.findings(whole["t"], samples.entry("A", "u", [0.9, None, None]), *others))
    assert "left out: u: A did not come to its end with seeds 1, 2" in partly
    assert "no mean over tasks" in partly
    assert "all tasks" not in partly
    assert "p = " not in partly
    many = [samples.entry(name, "t", [0.5 + seed**2 / 1000 for seed in range(10)]) for name in "AB"]
    assert "Few seeds" not in said(samples.findings(*many))
