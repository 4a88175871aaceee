"""Findings for the tests of a study's statistics and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paring.study.records import Entry, Findings, Metric, State, Trial

ACCURACY = Metric(name="accuracy", larger_is_better=True, points=100.0)
PERPLEXITY = Metric(name="perplexity", larger_is_better=False, points=1.0)
RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def entry(
    contestant: str,
    task: str,
    scores: Sequence[float | None],
    *,
    budget: str | None = None,
    parameters: int = 40_000,
    trials: Sequence[float | None] = (0.80, 0.90, 0.895, 0.5),
    **changes: Any,
) -> Entry:
    """One cell, its search over four rates."""
    tried = tuple(
        Trial(values={"learning_rate": rate}, state=State.PRUNED if score is None else State.FINISHED, score=score)
        for rate, score in zip(RATES, trials, strict=True)
    )
    count = len(scores)
    given: dict[str, Any] = {
        "contestant": contestant,
        "task": task,
        "budget": budget,
        "trials": tried,
        "chosen": {"learning_rate": 1e-3},
        "edges": (),
        "scores": tuple(scores),
        "parameters": tuple(None if score is None else parameters for score in scores),
        "start_parameters": (8 * parameters,) * count,
        "file_bytes": (4 * parameters,) * count,
        "seconds": (60.0,) * count,
        "search_seconds": 200.0,
        "memory": (10**9,) * count,
    }
    return Entry(**{**given, **changes})


def findings(*entries: Entry, metrics: Mapping[str, Metric] | None = None, **changes: Any) -> Findings:
    """A study of these cells."""
    tasks = {one.task: ACCURACY for one in entries}
    given: dict[str, Any] = {
        "name": "small study",
        "command": "paring study small.yaml",
        "seeds": tuple(range(len(entries[0].scores))) if entries else (0,),
        "metrics": {**tasks, **(metrics or {})},
        "entries": entries,
        "versions": {"paring": ["0.1.0"], "torch": ["2.13.0"]},
        "machines": [{"processor": "x86", "cores": 2}],
        "counts": {"finished": 20, "pruned": 2},
    }
    return Findings(**{**given, **changes})


def usual() -> Findings:
    """Three contestants, one of them at two budgets, on three tasks; one run failed, one choice lies at an edge."""
    rows = []
    for task, base in (("trec", 0.90), ("sst2", 0.84), ("notes", 30.0)):
        worse = 1.0 if task == "notes" else -0.01
        wide = (36.0, 30.0, 30.5, 90.0) if task == "notes" else (0.8, 0.9, 0.895, 0.5)
        small = 0.002 if task != "notes" else 0.3
        rows += [
            entry("LoRA", task, [base + small * seed for seed in range(3)], parameters=330_000, trials=wide),
            entry("cut", task, [base + worse + small * seed for seed in range(3)], budget="1/8", trials=wide),
            entry(
                "cut",
                task,
                [base + 0.1 * worse, base + 0.3 * worse + 2 * small, base],
                budget="1/2",
                parameters=165_000,
                trials=wide,
                edges=("learning_rate",) if task == "sst2" else (),
            ),
            entry(
                "SoRA",
                task,
                [base + 2 * worse, None, base + worse] if task == "trec" else [base + 2 * worse + small * seed for seed in range(3)],
                parameters=230_000,
                trials=(None, *wide[1:]),
                errors={"seed 1": "Training diverged."} if task == "trec" else {},
            ),
        ]
    return findings(*rows, metrics={"notes": PERPLEXITY}, counts={"finished": 80, "failed": 1, "pruned": 12})


EVIL = "<script>alert(1)</script>\"' onload=x &amp; $x^2$ </style></title><b>"


def evil() -> Findings:
    """Markup wherever a study can bring text of its own."""
    rows = [entry(EVIL, EVIL, [0.5, 0.6]), entry(EVIL + "2", EVIL, [0.5, None], budget=EVIL, errors={EVIL: EVIL}, edges=("learning_rate",))]
    metric = Metric(name=EVIL, larger_is_better=True, points=100.0)
    return findings(
        *rows, metrics={EVIL: metric}, name=EVIL, command=EVIL, versions={EVIL: [EVIL, "2"]}, machines=[{EVIL: EVIL}, {EVIL: 1}]
    )


def nothing() -> Findings:
    """All runs failed."""
    bare = {
        "chosen": None,
        "parameters": (None,),
        "start_parameters": (None,),
        "file_bytes": (None,),
        "seconds": (None,),
        "memory": (None,),
    }
    return findings(
        entry("LoRA", "trec", [None], trials=(None,) * 4, errors={"trial 0": "no"}, **bare), versions={}, machines=[], counts={"failed": 4}
    )


def one_seed() -> Findings:
    """A single seed of two contestants on one task."""
    return findings(entry("LoRA", "trec", [0.9]), entry("SoRA", "trec", [0.902], search_seconds=0.0))


def many() -> Findings:
    """More contestants than there are colours, at two budgets, with names that do not break."""
    rows = []
    for task, base in (("trec", 0.90), ("sst2", 0.84)):
        for place in range(14):
            for budget, lost in (("1/2", 0.0), ("1/8", 0.02)):
                scores = [base - lost - 0.003 * place + 0.002 * seed * (-1) ** place for seed in range(2)]
                size = (2_000 if budget == "1/8" else 8_000) * (place + 3)
                rows.append(entry(f"a_method_whose_name_does_not_break_{place}", task, scores, budget=budget, parameters=size))
    return findings(*rows)
