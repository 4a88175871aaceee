"""Copies are whole and their own: deepcopy, pickle, and what copies parameters alone."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from peft import PeftModel

import paring
from paring import train
from paring.attach.find import slots
from tests.contract.cases import Case, adapter_state, logits, names_that_differ


def _step(case: Case, model: PeftModel) -> None:
    model.train()
    optimizer = train.create_optimizer(model, lr=1e-2)
    optimizer.zero_grad()
    torch.manual_seed(0)
    model(**case.kind.batch()).loss.backward()
    optimizer.step()
    model.eval()


def _pickled(model: PeftModel) -> PeftModel:
    copied = pickle.loads(pickle.dumps(model))  # noqa: S301 - of our own making
    assert isinstance(copied, PeftModel)
    return copied


def test_a_deepcopy_is_whole_and_its_own(case: Case) -> None:
    _whole_and_its_own(case, copy.deepcopy)


def test_a_pickled_model_is_whole_and_its_own(case: Case) -> None:
    _whole_and_its_own(case, _pickled)


def _whole_and_its_own(case: Case, make: object) -> None:
    assert callable(make)
    model, inputs = case.roughened(), case.kind.inputs()
    before, kept = logits(model, inputs), adapter_state(model)
    copied = make(model)
    assert torch.equal(logits(copied, inputs), before)
    # Training the copy takes its proximal step and leaves the original as it was; then the other way round.
    _step(case, copied)
    assert names_that_differ(adapter_state(model), kept) == []
    assert torch.equal(logits(model, inputs), before)
    trained = adapter_state(copied)
    assert names_that_differ(trained, kept)
    _step(case, model)
    assert names_that_differ(adapter_state(copied), trained) == []
    # Same start, same batch, same seed: the copy has learned what the original learns.
    assert names_that_differ(adapter_state(model), trained) == []


def test_a_copy_of_a_model_in_training_goes_on_like_the_original(case: Case) -> None:
    model = case.roughened()
    _step(case, model)
    copied = copy.deepcopy(model)
    _step(case, model)
    _step(case, copied)
    assert names_that_differ(adapter_state(copied), adapter_state(model)) == []


def test_parameters_hold_all_that_changes_the_output(case: Case) -> None:
    # TRL makes its reference adapter by copying the parameters whose names hold the adapter's name.
    model, inputs = case.roughened(), case.kind.inputs()
    model.add_adapter("ref", case.config(seed=8))
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in named.items():
            if ".default." in name:
                named[name.replace(".default.", ".ref.")].copy_(parameter)
    before = logits(model, inputs)
    model.set_adapter("ref")
    assert torch.equal(logits(model, inputs), before)


def test_a_snapshot_is_frozen_in_time(case: Case) -> None:
    model = case.roughened()
    adapter = paring.snapshot(model)
    kept = copy.deepcopy(adapter)
    _step(case, model)
    for path, factors in adapter.modules.items():
        assert torch.equal(factors.a, kept.modules[path].a)
        assert torch.equal(factors.b, kept.modules[path].b)
    assert all(torch.equal(tensor, kept.heads[name]) for name, tensor in adapter.heads.items())


def test_slots_survive_a_state_dict_through_a_file(case: Case) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = case.adapted(seed=99)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(logits(other, inputs), logits(model, inputs))
    assert slots(other).keys() == slots(model).keys()
