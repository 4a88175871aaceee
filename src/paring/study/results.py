"""What a study has found, for machines: two files, of which the first is the same for every repetition."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from paring.study.ranks import mean_ranks
from paring.study.records import Entry, Findings
from paring.study.statistics import compare

RESULTS = ("contestant", "task", "budget", "chosen", "edges", "scores", "parameters", "start_parameters", "file_bytes", "errors")
COSTS = ("contestant", "task", "budget", "seconds", "setup_seconds", "cpu_seconds", "search_seconds", "memory")


def to_json(findings: Findings, reference: str | None = None) -> str:
    """Trials, choices, scores, sizes and what statistics say of them: nothing that differs between two runs of the same study.

    Args:
        findings: what was found.
        reference: the name that the others are compared with; ``None`` takes the first one.

    Raises:
        DataError: the study has no such name.
    """
    names = findings.names
    against = reference or next(iter(names), "")
    return _text(
        {
            "name": findings.name,
            "seeds": findings.seeds,
            "metrics": {task: asdict(metric) for task, metric in findings.metrics.items()},
            "entries": [{**_some(entry, RESULTS), "trials": [asdict(trial) for trial in entry.trials]} for entry in findings.entries],
            "comparisons": [asdict(compare(findings, name, against)) for name in names if name != against],
            "ranks": asdict(mean_ranks(findings)),
            "counts": findings.counts,
        }
    )


def costs_to_json(findings: Findings) -> str:
    """Time and memory, with the versions and machines that they belong to."""
    return _text(
        {
            "name": findings.name,
            "command": findings.command,
            "seeds": findings.seeds,
            "entries": [_some(entry, COSTS) for entry in findings.entries],
            "versions": findings.versions,
            "machines": findings.machines,
        }
    )


def _some(entry: Entry, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: vars(entry)[name] for name in names}


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False, default=dict) + "\n"
