"""Quantised base models: gates are trained and die, the base stays as it is, and the export belongs on the base in full precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, prepare_model_for_kbit_training
from torch import nn

import paring
from paring.api import fuse
from paring.attach.find import slots
from paring.attach.layer import ParingLinear
from paring.attach.shapes import plain
from paring.core.errors import TargetError
from paring.train import create_optimizer
from tests.contract.cases import adapter_state, assert_close, names_that_differ
from tests.releases import coarse_eight_bit
from tests.trust import loops, packed, proof, runs
from tests.trust.grids import cell
from tests.trust.loops import Plan, Run, checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 4
Load = Callable[[], nn.Module]
Record = Callable[[str, object], None]


def kinds(column: str, *, refused: bool = False) -> pytest.MarkDecorator:
    """Every kind of quantised base, as a cell of a column."""
    return pytest.mark.parametrize(
        "load", [pytest.param(load, id=row, marks=cell("quantised", row, column, refused=refused)) for row, load in packed.KINDS.items()]
    )


def _is_quantised(model: PeftModel) -> bool:
    bases = [layer.get_base_layer() for layer in model.modules() if isinstance(layer, ParingLinear)]
    return len(bases) == 14 and not any(plain(base) for base in bases)


@kinds("gates move and die")
def test_gates_move_and_die_and_the_base_stays_as_it_is(load: Load, tmp_path: Path, record_property: Record) -> None:
    model = packed.attach(load())
    assert _is_quantised(model)
    before, output = packed.bits(model), packed.logits(model)
    with proof.Watch(model) as watch:
        loops.plain(model, tmp_path, Plan(steps=STEPS))
    record_property("trust", proof.check(watch, STEPS))
    assert all(0 < rank < proof.RANK for rank in paring.ranks(model).values())
    assert names_that_differ(packed.bits(model), before) == []
    assert (packed.logits(model) - output).abs().max() > 1e-3


@kinds("export on the unquantised base")
def test_the_export_is_right_on_the_unquantised_base(load: Load, tmp_path: Path) -> None:
    model = packed.attach(load())
    loops.plain(model, tmp_path, Plan(steps=STEPS))
    paring.export(model, tmp_path / "adapter")
    live, written = slots(model), paring.read(tmp_path / "adapter").updates
    assert written.keys() == live.keys()
    for path, slot in live.items():
        assert_close(written[path].materialise(), slot.delta().materialise())
    # The same factors on the base in full precision, by paring and by stock PEFT.
    ours = packed.attach(packed.whole())
    for path, slot in slots(ours).items():
        slot.load_state_dict(live[path].state_dict())
    theirs = PeftModel.from_pretrained(packed.whole(), tmp_path / "adapter")
    assert theirs.peft_config["default"].peft_type == "LORA"
    assert_close(packed.logits(theirs), packed.logits(ours))
    assert (packed.logits(ours) - packed.logits(packed.whole())).abs().max() > 1e-2
    # And on the base that it was trained on.
    share = 1e-2 if load is packed.eight_bit and coarse_eight_bit else 1e-4
    assert_close(packed.logits(PeftModel.from_pretrained(load(), tmp_path / "adapter")), packed.logits(model), share=share)


@kinds("merge", refused=True)
def test_merging_is_refused_with_advice(load: Load) -> None:
    model = packed.attach(load())
    before, output, adapter = packed.bits(model), packed.logits(model), paring.snapshot(model)
    advice = r"Cannot merge into '[\w.]+'.*quantised.*Load the base model in bfloat16 or float32"
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(TargetError, match=advice):
            merge()
    with pytest.raises(TargetError, match=advice):
        fuse(load(), adapter)
    assert names_that_differ(packed.bits(model), before) == []
    assert torch.equal(packed.logits(model), output)
    # What the advice leads to.
    assert_close(packed.logits(fuse(packed.whole(), adapter)), packed.logits(packed.attach(packed.whole())))


@kinds("prepare_model_for_kbit_training before")
def test_prepared_before_it_is_adapted(load: Load, tmp_path: Path, record_property: Record) -> None:
    model = packed.attach(prepare_model_for_kbit_training(load()))
    _trains(model, tmp_path, record_property)


@kinds("prepare_model_for_kbit_training after")
def test_prepared_after_it_was_adapted(load: Load, tmp_path: Path, record_property: Record) -> None:
    model = packed.attach(load())
    prepare_model_for_kbit_training(model)
    # PEFT freezes all that it sees, adapters too: nothing is trained unnoticed, and the sentence says what to call.
    with pytest.raises(TargetError, match=r"No parameter of this model is trainable; activate an adapter with model\.set_adapter"):
        create_optimizer(model, lr=1e-2)
    model.set_adapter("default")
    _trains(model, tmp_path, record_property)


def _trains(model: PeftModel, folder: Path, record_property: Record) -> None:
    # PEFT switches checkpointing on for bases that it knows as quantised; a base of torchao is a plain model to it.
    known = vars(model.get_base_model())
    assert model.is_gradient_checkpointing == (known.get("is_loaded_in_8bit", False) or known.get("is_loaded_in_4bit", False))
    assert all(slot.gate.dtype == torch.float32 and slot.gate.requires_grad for slot in proof.gates(model).values())
    before = packed.bits(model)
    with proof.Watch(model) as watch:
        loops.plain(model, folder, Plan(steps=STEPS))
    record_property("trust", proof.check(watch, STEPS))
    assert names_that_differ(packed.bits(model), before) == []


@kinds("prepare_model_for_kbit_training after")
@pytest.mark.parametrize("run", [runs.transformers, pytest.param(runs.sft, marks=pytest.mark.slow)])
def test_a_trainer_says_so_where_nothing_is_left_to_train(load: Load, run: Run, tmp_path: Path) -> None:
    model = packed.attach(load())
    prepare_model_for_kbit_training(model)
    with pytest.raises(TargetError, match=r"No parameter of this model is trainable; activate an adapter with model\.set_adapter"):
        run(model, tmp_path, Plan(steps=STEPS))


@pytest.mark.slow
@kinds("gates move and die")
def test_gates_that_trl_casts_are_trained_in_float32(load: Load, tmp_path: Path) -> None:
    model = packed.attach(load())
    before = packed.bits(model)
    with proof.Watch(model) as watch:
        runs.sft(model, tmp_path, Plan(steps=STEPS))
    proof.check(watch, STEPS)
    assert all(slot.gate.dtype == torch.float32 for slot in proof.gates(model).values())
    assert names_that_differ(packed.bits(model), before) == []


@kinds("resumes")
def test_a_run_that_goes_on_ends_where_the_whole_one_does(load: Load, tmp_path: Path) -> None:
    whole = packed.attach(load(), dropout=0.1)
    runs.transformers(whole, tmp_path / "whole", Plan(steps=STEPS, schedule="linear", save_at=2))
    again = packed.attach(load(), dropout=0.1)
    proof.start(again, seed=5)
    torch.manual_seed(99)
    with proof.Watch(again) as watch:
        runs.transformers(again, tmp_path / "again", Plan(steps=STEPS, schedule="linear", resume=checkpoint(tmp_path / "whole", 2)))
    proof.check(watch, STEPS, begun=2)
    assert names_that_differ(adapter_state(again), adapter_state(whole)) == []
