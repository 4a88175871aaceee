"""Every architecture: all its linear modules are adapted, trained, pruned, exported, and computed alike by stock PEFT and once merged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import paring
from paring.attach.find import slots
from tests.contract.cases import assert_close, roughen
from tests.contract.stock import Stock
from tests.trust.adapted import adapted, base, inputs, output, saved, steps
from tests.trust.architectures import ARCHITECTURES
from tests.trust.grids import cell

EXPERTS = "Mixtral (experts)"


def every(column: str) -> Any:
    """A parameter for each architecture, in its cell of a column."""
    return pytest.mark.parametrize("name", [pytest.param(name, marks=cell("models", name, column)) for name in ARCHITECTURES])


@pytest.fixture(autouse=True)
def _experts_are_told_of(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whoever adapts a model with experts is told that these are left out."""
    if EXPERTS in request.node.name:
        with pytest.warns(UserWarning, match=r"leaves out model.layers.0.mlp.experts.gate_up_proj.* several experts"):
            yield
    else:
        yield


@every("attach to all linears")
def test_all_linears_are_adapted_and_the_output_stays(name: str) -> None:
    model = adapted(name)
    whole = base(name)
    linear = {path for path, module in whole.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    beside = {path for path in linear if path not in paring.ranks(model)}
    # What is left out is the task's head, which is trained in full, or the output layer of a language model.
    told = model.get_base_model().get_output_embeddings()
    heads = {path for path in linear if told is not None and whole.get_submodule(path).weight.shape == told.weight.shape}
    # By the end of their names, as PEFT finds them: DistilBERT's pre_classifier is one of them.
    trained = tuple(model.modules_to_save or ())
    saved = {path for path in linear if trained and (path.endswith(trained) or path.startswith(tuple(f"{name}." for name in trained)))}
    assert beside <= heads | saved, beside
    assert len(linear) - len(beside) >= 8
    assert torch.equal(output(name, model), output(name, whole))


@every("a step")
def test_every_module_learns_in_a_step(name: str) -> None:
    model = adapted(name)
    before = {path: slot.B.detach().clone() for path, slot in slots(model).items()}
    frozen = {key: value.clone() for key, value in model.state_dict().items() if "paring_slot" not in key and "modules_to_save" not in key}
    with torch.no_grad():
        # SoRA starts at B = 0, where A and the gate have no gradient yet: two steps reach everything.
        gates = {path: slot.gate.detach().clone() for path, slot in slots(model).items()}
    steps(name, model, 2)
    for path, slot in slots(model).items():
        assert torch.isfinite(slot.B).all()
        assert not torch.equal(slot.B, before[path]), f"{path}: B has not moved"
        assert not torch.equal(slot.gate, gates[path]), f"{path}: the gate has not moved"
        assert int(slot.steps) == 2
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in frozen.items()), "the base has moved"
    assert not torch.equal(output(name, model), output(name, base(name)))


@every("prune")
def test_pruned_ranks_leave_the_output(name: str) -> None:
    model = adapted(name)
    roughen(model, torch.Generator().manual_seed(1))
    adapter = paring.snapshot(model)
    live = paring.ranks(model)
    assert 0 in live.values()
    assert len(set(live.values())) > 2
    pruned = {path: factors.prune() for path, factors in adapter.modules.items()}
    assert {path: factors.rank for path, factors in pruned.items()} == live
    with torch.no_grad():
        # Nothing of what was cut off has a part in the output.
        before = output(name, model)
        for slot in slots(model).values():
            slot.A[slot.gate == 0] = 100.0
            slot.B[:, slot.gate == 0] = 100.0
    assert torch.equal(output(name, model), before)


@every("stock PEFT gives the same outputs")
def test_stock_peft_computes_the_same(name: str, stock: Stock, tmp_path: Path) -> None:
    model = adapted(name)
    roughen(model, torch.Generator().manual_seed(1))
    ours, given, one = output(name, model), inputs(ARCHITECTURES[name]), ARCHITECTURES[name]
    paring.export(model, tmp_path / "adapter", force=True)
    theirs, ranks = stock.ask(name, saved(name), "peft", tmp_path / "adapter", given, tmp_path, one.output)
    assert_close(theirs, ours)
    assert ranks == {path: rank for path, rank in paring.ranks(model).items() if rank}
    with torch.no_grad(), model.disable_adapter():
        assert (theirs - output(name, model)).abs().max() > 1e-3 * theirs.abs().max(), "the adapter does nothing there"


@every("merge")
def test_merged_computes_the_same(name: str) -> None:
    model = adapted(name)
    roughen(model, torch.Generator().manual_seed(1))
    before = output(name, model)
    plain = model.merge_and_unload()
    assert type(plain) is type(base(name))
    assert plain.state_dict().keys() == base(name).state_dict().keys()
    assert_close(output(name, plain), before)


@cell("models", "RoBERTa", "merge")
def test_a_head_of_several_layers_that_is_switched_off_is_the_base_s_again() -> None:
    model = adapted("RoBERTa")
    roughen(model, torch.Generator().manual_seed(1))
    with model.disable_adapter():
        plain = model.unload()
    before = base("RoBERTa").state_dict()
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
