"""What save_pretrained writes, from_pretrained reads back bit for bit, and it trains on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel, AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftConfig, PeftModel
from safetensors.torch import load_file

import paring
from paring import train
from paring.attach.find import slots
from paring.parts.parameterise.gated import Gated
from tests.contract.cases import Case, adapter_state, logits, names_that_differ, roughen

AUTO = {"SEQ_CLS": AutoPeftModelForSequenceClassification, "CAUSAL_LM": AutoPeftModelForCausalLM}


def test_reload_is_equal_to_the_bit(case: Case, tmp_path: Path) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(case.base(), str(tmp_path)).eval()
    assert names_that_differ(adapter_state(again), adapter_state(model)) == []
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.peft_config["default"].method == case.method


def test_reload_draws_no_start_that_shows(case: Case, tmp_path: Path) -> None:
    # The factors of a reload are overwritten; nothing of a generator may be left in them, nor be taken from it.
    case.roughened().save_pretrained(str(tmp_path))
    state = torch.get_rng_state()
    PeftModel.from_pretrained(case.base(), str(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)


def test_reload_without_memory_for_a_start_is_equal_to_the_bit(case: Case, tmp_path: Path) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(case.base(), str(tmp_path), low_cpu_mem_usage=True).eval()
    assert torch.equal(logits(again, inputs), logits(model, inputs))


def test_trainable_reload_trains_on(case: Case, tmp_path: Path) -> None:
    model = case.roughened()
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(case.base(), str(tmp_path), is_trainable=True)
    for one in (model, again):
        one.train()
        optimizer = train.create_optimizer(one, lr=1e-2, weight_decay=0.1)
        torch.manual_seed(0)
        one(**case.kind.batch()).loss.backward()
        optimizer.step()
    assert names_that_differ(adapter_state(again), adapter_state(case.roughened()))
    assert names_that_differ(adapter_state(again), adapter_state(model)) == []
    assert all(int(slot.steps) == 1 for slot in slots(again).values() if isinstance(slot, Gated))


def test_the_file_holds_the_adapter_and_no_base(case: Case, tmp_path: Path) -> None:
    model = case.roughened()
    model.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {name for name in saved if "paring_slot" not in name} == {
        name.replace(".modules_to_save.default.", ".") for name in adapter_state(model) if ".modules_to_save." in name
    }
    assert {name for name in saved if "paring_slot" in name} == {
        name.replace(".default.", ".") for name in adapter_state(model) if "paring_slot" in name
    }
    assert not list(tmp_path.glob("*.bin"))


def test_several_adapters_are_saved_and_read_by_name(case: Case, tmp_path: Path) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    model.add_adapter("second", case.config(seed=8))
    roughen(model, torch.Generator().manual_seed(2), "second")
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(case.base(), str(tmp_path))
    again.load_adapter(str(tmp_path / "second"), "second")
    again.eval()
    for name in ("default", "second"):
        model.set_adapter(name)
        again.set_adapter(name)
        assert torch.equal(logits(again, inputs), logits(model, inputs)), name


def test_auto_model_finds_base_and_adapter(transformer: Case, tmp_path: Path) -> None:
    model, inputs = transformer.roughened(), transformer.kind.inputs()
    model.save_pretrained(str(tmp_path))
    assert PeftConfig.from_pretrained(str(tmp_path)).base_model_name_or_path == transformer.folder
    if transformer.kind.task is None:
        # Without a task type PEFT finds the class of the base model by its name.
        again = AutoPeftModel.from_pretrained(str(tmp_path))
    else:
        settings = {"num_labels": 3} if transformer.kind.task == "SEQ_CLS" else {}
        again = AUTO[transformer.kind.task].from_pretrained(str(tmp_path), **settings)
    assert torch.equal(logits(again.eval(), inputs), logits(model, inputs))
    assert paring.ranks(again) == paring.ranks(model)


def test_an_adapter_of_another_base_is_refused(plain: Case, tmp_path: Path) -> None:
    plain.roughened().save_pretrained(str(tmp_path))
    other = plain.base()
    other.fc = torch.nn.Linear(12, 14)
    other.enc.fc = torch.nn.Linear(14, 12)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(other, str(tmp_path))
