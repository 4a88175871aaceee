"""One adapter for each row of a batch: what each row gets is what its adapter alone would give it."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from paring.core.errors import TargetError
from tests.contract.cases import Case, assert_close, logits, roughen

NAMES = ["default", "second", "__base__", "second", "default"]


@functools.cache
def _prototype(case: Case) -> PeftModel:
    model = case.roughened()
    model.add_adapter("second", case.config(seed=8))
    roughen(model, torch.Generator().manual_seed(2), "second")
    model.set_adapter("default")
    return model.eval()


def _two(case: Case) -> PeftModel:
    return copy.deepcopy(_prototype(case))


def _alone(model: PeftModel, name: str, inputs: dict[str, Tensor]) -> Tensor:
    if name == "__base__":
        with model.disable_adapter():
            return logits(model, inputs)
    model.set_adapter(name)
    return logits(model, inputs)


def test_each_row_gets_its_adapter(case: Case) -> None:
    model, inputs = _two(case), case.kind.inputs(rows=len(NAMES))
    mixed = logits(model, inputs, adapter_names=NAMES)
    alone = {name: _alone(model, name, inputs) for name in set(NAMES)}
    assert_close(mixed, torch.stack([alone[name][row] for row, name in enumerate(NAMES)]))
    # The rows of one adapter differ from what another would give them, so the names mattered.
    assert (alone["default"] - alone["second"]).abs().max() > 1e-3


def test_the_base_row_is_equal_to_the_base_to_the_bit(case: Case) -> None:
    model, inputs = _two(case), case.kind.inputs(rows=3)
    assert torch.equal(logits(model, inputs, adapter_names=["__base__"] * 3), logits(case.base(), inputs))


def test_which_adapter_is_active_makes_no_difference(case: Case) -> None:
    model, inputs = _two(case), case.kind.inputs(rows=len(NAMES))
    first = logits(model, inputs, adapter_names=NAMES)
    model.set_adapter("second")
    assert torch.equal(logits(model, inputs, adapter_names=NAMES), first)
    # Afterwards the names are forgotten.
    assert torch.equal(logits(model, inputs), _alone(model, "second", inputs))


def test_wrong_names_are_refused(case: Case) -> None:
    model, inputs = _two(case), case.kind.inputs(rows=4)
    for names, message in (
        (["default", "secnd", "__base__", "default"], "Did you mean 'second'"),
        (["default", "second", "default"], "3 entries for a batch of 4 rows"),
        # Half as many: not to be taken for a batch that generate has repeated.
        (["default", "second"], "2 entries for a batch of 4 rows"),
        (["default"] * 8, "8 entries for a batch of 4 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            logits(model, inputs, adapter_names=names)
    model.train()
    with pytest.raises(TargetError, match=r"model\.eval\(\)"):
        logits(model, inputs, adapter_names=["default"] * 4)
    model.eval()
    model.merge_adapter()
    with pytest.raises(TargetError, match="unmerge_adapter"):
        logits(model, inputs, adapter_names=["default"] * 4)


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams-returned": {"num_beams": 4, "num_return_sequences": 2},
    "cacheless": {"use_cache": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_each_row_is_generated_by_its_adapter(decoder: Case, way: str) -> None:
    model = _two(decoder)
    inputs = decoder.kind.inputs(rows=len(NAMES))
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **WAYS[way]}
    mixed = model.generate(**inputs, adapter_names=NAMES, **settings)
    each = settings.get("num_return_sequences", 1)
    assert len(mixed) == each * len(NAMES)
    told = set()
    for row, name in enumerate(NAMES):
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        if name == "__base__":
            with model.disable_adapter():
                alone = model.generate(**one, **settings)
        else:
            model.set_adapter(name)
            alone = model.generate(**one, **settings)
        assert mixed[row * each : (row + 1) * each].tolist() == alone.tolist(), f"row {row} ({name})"
        told.add(tuple(alone[0, -4:].tolist()))
    assert len(told) > 1


def test_sampled_sequences_of_a_row_come_from_its_adapter(decoder: Case) -> None:
    model = _two(decoder)
    inputs = decoder.kind.inputs(rows=2)
    settings = {"max_new_tokens": 1, "do_sample": True, "top_k": 1, "num_return_sequences": 3, "pad_token_id": 0}
    mixed = model.generate(**inputs, adapter_names=["second", "__base__"], **settings)
    expected = [_alone(model, name, inputs)[row, -1].argmax() for row, name in enumerate(["second", "__base__"])]
    assert mixed[:, -1].tolist() == [int(token) for token in expected for _ in range(3)]
