"""How often intervals hold what they should, and how often equals are told apart, by simulation: of normal scores of few seeds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped, unused-ignore]

from paring.study.statistics import best, compare, spread
from tests.study.samples import entry, findings


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_an_interval_holds_the_mean_as_often_as_it_says(seeds: int) -> None:
    generator, runs = np.random.default_rng(7), 2000
    hits = 0
    for _ in range(runs):
        interval = spread(generator.normal(1.0, 1.0, seeds).tolist())
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= 1.0 <= interval.high
    # Of 2000 draws at 95%, three standard errors are 1.5%.
    assert hits / runs == pytest.approx(0.95, abs=0.015)


def test_a_mean_over_tasks_is_held_about_as_often() -> None:
    generator, runs, seeds = np.random.default_rng(8), 1000, 3
    hits = 0
    for _ in range(runs):
        rows = [entry("b", task, [0.5] * seeds) for task in "tu"]
        rows += [entry("a", task, (0.52 + generator.normal(0.0, sd, seeds)).tolist()) for task, sd in (("t", 0.01), ("u", 0.03))]
        overall = compare(findings(*rows), "a", "b").overall
        assert overall is not None
        assert overall.low is not None
        assert overall.high is not None
        hits += overall.low <= 2.0 <= overall.high
    # Satterthwaite's degrees of freedom are an approximation; three standard errors of 1000 draws are 2%.
    assert hits / runs == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize(("seeds", "held"), [(3, 0.75), (5, 0.84), (10, 0.90)])
def test_a_bootstrap_of_so_few_would_not(seeds: int, held: float) -> None:
    generator, runs = np.random.default_rng(9), 2000
    found = scipy.stats.bootstrap(
        (generator.normal(1.0, 1.0, (runs, seeds)),), np.mean, n_resamples=999, axis=1, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert np.mean((found.low <= 1.0) & (found.high >= 1.0)) == pytest.approx(held, abs=0.03)


@pytest.mark.parametrize(("seeds", "rows"), [(3, 500), pytest.param(10, None, marks=pytest.mark.slow)])
def test_six_equals_are_seldom_told_apart(seeds: int, rows: int | None) -> None:
    """On so many rows: of few, differences come out equal by chance."""
    generator, runs, told = np.random.default_rng(11), 400, 0
    for _ in range(runs):
        scores = 0.8 + generator.normal(0.0, 0.01, seeds) + generator.normal(0.0, 0.005, (6, seeds))
        shown = scores if rows is None else (scores * rows).round() / rows
        found = best(findings(*(entry(name, "t", values.tolist()) for name, values in zip("abcdef", shown, strict=True))), "t")
        assert found is not None
        told += bool(found.apart)
    # Corrected for the five rivals of the best alone, it would be 9% for ten seeds.
    assert told / runs <= 0.05
