"""transformers' own adapter calls host every method: add_adapter, save_pretrained, load_adapter, delete_adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import paring
from paring import train
from paring.attach.find import slots
from paring.parts.parameterise.gated import Gated
from tests.contract.cases import SEED, Case, adapter_state, begin, logits, names_that_differ, needs_heads, roughen
from tests.releases import own_add_adapter

pytestmark = own_add_adapter


def _config(case: Case, seed: int = SEED) -> paring.ParingConfig:
    """A configuration that names the head: transformers does not find it by the task type, as PEFT does."""
    config = case.config(seed)
    config.modules_to_save = ["classifier"] if case.kind.task == "SEQ_CLS" else config.modules_to_save
    return config


def test_add_adapter_attaches_what_peft_attaches(transformer: Case) -> None:
    model, inputs = transformer.base(), transformer.kind.inputs()
    model.add_adapter(_config(transformer))
    begin(model)
    reference = transformer.adapted()
    assert torch.equal(logits(model, inputs), logits(reference, inputs))
    state = {f"base_model.model.{name}": value for name, value in adapter_state(model).items()}
    assert names_that_differ(state, adapter_state(reference)) == []


def test_added_adapter_trains_with_its_proximal_step(transformer: Case) -> None:
    model = transformer.base()
    model.add_adapter(_config(transformer))
    roughen(model, torch.Generator().manual_seed(1))
    model.train()
    before = adapter_state(model)
    optimizer = train.create_optimizer(model, lr=1e-2)
    torch.manual_seed(0)
    model(**transformer.kind.batch()).loss.backward()
    optimizer.step()
    assert names_that_differ(adapter_state(model), before)
    assert all(int(slot.steps) == 1 for slot in slots(model).values() if isinstance(slot, Gated))


@pytest.mark.parametrize("name", ["default", "other"])
def test_load_adapter_is_equal_to_the_bit(transformer: Case, tmp_path: Path, name: str) -> None:
    needs_heads(transformer)
    model, inputs = transformer.roughened(), transformer.kind.inputs()
    model.save_pretrained(str(tmp_path))
    again = transformer.base()
    again.load_adapter(str(tmp_path), adapter_name=name)
    again.set_adapter(name)
    assert torch.equal(logits(again.eval(), inputs), logits(model, inputs))
    assert paring.ranks(again, name) == paring.ranks(model)


def test_saved_by_transformers_is_read_by_peft_and_by_transformers(transformer: Case, tmp_path: Path) -> None:
    needs_heads(transformer)
    model, inputs = transformer.base(), transformer.kind.inputs()
    model.add_adapter(_config(transformer))
    roughen(model, torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path)
    again = transformer.base()
    again.load_adapter(str(tmp_path))
    assert torch.equal(logits(again.eval(), inputs), logits(model.eval(), inputs))


def test_disabling_and_deleting_give_the_base_back(transformer: Case) -> None:
    model, inputs = transformer.base(), transformer.kind.inputs()
    before = logits(model, inputs)
    # Without trained heads: enable_adapters of transformers does not bring those back.
    model.add_adapter(transformer.config())
    roughen(model, torch.Generator().manual_seed(1))
    with_adapter = logits(model, inputs)
    assert not torch.equal(with_adapter, before)
    model.disable_adapters()
    assert torch.equal(logits(model, inputs), before)
    model.enable_adapters()
    model.add_adapter(transformer.config(seed=8), "second")
    model.set_adapter("second")
    model.delete_adapter("second")
    assert not any(".second." in name for name in model.state_dict())
    model.set_adapter("default")
    assert torch.equal(logits(model, inputs), with_adapter)


def test_exports_from_a_model_that_transformers_adapted(transformer: Case, tmp_path: Path) -> None:
    model = transformer.base()
    model.add_adapter(_config(transformer))
    roughen(model, torch.Generator().manual_seed(1))
    reference = transformer.roughened()
    paring.export(model, tmp_path / "ours", force=True)
    paring.export(reference, tmp_path / "theirs", force=True)
    name = "adapter_model.safetensors"
    assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
