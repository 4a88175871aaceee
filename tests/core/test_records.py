"""Run records: the sums over modules, and the way to JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from paring.core.errors import DataError
from paring.core.records import ModuleRecord, Point, RunRecord, WholeRecord

RECORD = RunRecord(
    title="tiny",
    method={"name": "sora", "version": 1, "rank": 4},
    base_model=None,
    command="paring train --rank 4",
    started="2026-01-01T00:00:00+00:00",
    seconds=1.5,
    seed=3,
    settings={"learning_rate": 1e-3, "names": ["q", "v"]},
    versions={"torch": "2"},
    machine={"cores": 2},
    history=(Point(step=1, values={"loss": 0.5}), Point(step=2, values={"loss": 0.25, "live_ranks": 3})),
    modules=(
        ModuleRecord(path="a.q", in_features=6, out_features=4, start_rank=4, live_rank=1),
        ModuleRecord(path="a.v", in_features=3, out_features=2, start_rank=4, live_rank=0),
    ),
    metrics={"accuracy": 0.9},
    head_parameters=12,
    files={"adapter_model.safetensors": 1000},
)


def test_sums_over_modules() -> None:
    assert (RECORD.start_ranks, RECORD.live_ranks) == (8, 1)
    assert (RECORD.start_parameters, RECORD.parameters) == (4 * 10 + 4 * 5, 10)
    assert [module.parameters for module in RECORD.modules] == [10, 0]


def test_round_trip() -> None:
    text = RECORD.to_json()
    assert RunRecord.from_json(text) == RECORD
    assert RunRecord.from_json(text).to_json() == text
    assert text.endswith("}\n")
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_what_was_trained_of_a_model_is_read_back() -> None:
    whole = WholeRecord(parameters=9, at_once=5, steps=4, blocks={"layer.0": 4, "layer.1": 0})
    record = replace(RECORD, whole=whole)
    assert RunRecord.from_json(record.to_json()) == record


def test_a_loss_that_is_not_finite_survives() -> None:
    spoilt = replace(RECORD, history=(Point(step=1, values={"loss": math.nan, "grad_norm": math.inf}),))
    values = RunRecord.from_json(spoilt.to_json()).history[0].values
    assert math.isnan(values["loss"])
    assert values["grad_norm"] == math.inf


def test_defaults_may_be_missing() -> None:
    data = json.loads(RECORD.to_json())
    del data["files"], data["head_parameters"]
    assert RunRecord.from_json(json.dumps(data)) == replace(RECORD, files={}, head_parameters=0)


@pytest.mark.parametrize("key", ["title", "history", "modules", "metrics"])
def test_a_missing_key_is_named(key: str) -> None:
    data = json.loads(RECORD.to_json())
    del data[key]
    with pytest.raises(DataError, match=f"incomplete.*{key}"):
        RunRecord.from_json(json.dumps(data))


def test_an_unknown_key_is_named_with_near_ones() -> None:
    data = json.loads(RECORD.to_json()) | {"metric": {}}
    with pytest.raises(DataError, match=r"Unknown key 'metric' in the run record. Did you mean 'metrics'"):
        RunRecord.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "not json", "[1, 2]", "3", '{"title": '])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not a run record"):
        RunRecord.from_json(text)


@pytest.mark.parametrize(
    "change", [{"history": [{"step": 1}]}, {"history": 3}, {"modules": [{"path": "a", "ranks": 2}]}, {"modules": ["a"]}]
)
def test_a_malformed_part_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match="incomplete"):
        RunRecord.from_json(json.dumps(json.loads(RECORD.to_json()) | change))
