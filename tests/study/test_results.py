"""What a study has found, for machines."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from paring.core.errors import DataError
from paring.study.records import Findings
from paring.study.results import costs_to_json, to_json
from tests.study.samples import evil, findings, nothing, one_seed, usual


def test_results_have_nothing_that_two_runs_would_differ_in() -> None:
    study = usual()
    slower = replace(
        study,
        entries=tuple(
            replace(one, seconds=(1.0,) * 3, cpu_seconds=(2.0,) * 3, search_seconds=9.0, memory=(7,) * 3) for one in study.entries
        ),
        versions={"torch": ["3"]},
        machines=[],
        command="elsewhere",
    )
    assert to_json(study) == to_json(slower)
    assert costs_to_json(study) != costs_to_json(slower)
    data = json.loads(to_json(study))
    assert [row["first"] for row in data["comparisons"]] == ["cut @ 1/8", "cut @ 1/2", "SoRA"]
    assert data["entries"][0]["trials"][1] == {"score": 0.9, "state": "finished", "values": {"learning_rate": 1e-3}}
    assert json.loads(costs_to_json(study))["entries"][0]["seconds"] == [60.0] * 3


def test_findings_survive_the_file() -> None:
    for study in (usual(), one_seed(), evil(), nothing()):
        assert Findings.from_json(study.to_json()) == study


def test_results_have_every_number_and_stand_by_the_standard() -> None:
    def refused(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    data = json.loads(to_json(usual()), parse_constant=refused)
    cell = next(item for item in data["entries"] if (item["contestant"], item["task"]) == ("SoRA", "trec"))
    assert cell["scores"] == [0.88, None, 0.89]
    assert cell["errors"] == {"seed 1": "Training diverged."}
    assert cell["trials"][0] == {"score": None, "state": "pruned", "values": {"learning_rate": 3e-4}}
    assert (cell["chosen"], cell["parameters"]) == ({"learning_rate": 1e-3}, [230_000, None, 230_000])
    assert data["ranks"]["means"] == {"LoRA": 1.0, "cut @ 1/2": 2.0, "cut @ 1/8": 3.0}
    assert data["ranks"]["left_out"] == ["SoRA"]
    sora = next(row for row in data["comparisons"] if row["first"] == "SoRA")
    assert (sora["overall"], sora["p"], sora["tasks"]["trec"]["count"]) == (None, None, 2)
    for study in (evil(), nothing(), one_seed(), findings()):
        json.loads(to_json(study), parse_constant=refused)
        json.loads(costs_to_json(study), parse_constant=refused)


def test_results_may_have_another_reference() -> None:
    data = json.loads(to_json(usual(), "SoRA"))
    assert [(row["first"], row["second"]) for row in data["comparisons"]] == [(name, "SoRA") for name in ("LoRA", "cut @ 1/8", "cut @ 1/2")]
    with pytest.raises(DataError, match="no contestant 'Sora'.* Did you mean 'SoRA'"):
        to_json(usual(), "Sora")
