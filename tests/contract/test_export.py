"""An export is a plain LoRA: stock PEFT and plain transformers load it in a process without paring, and compute what we do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import paring
from paring.core.errors import ExportError
from paring.exchange.layout import Layout
from tests.contract.cases import Case, adapter_state, assert_close, gated_slots, logits, names_that_differ, needs_heads
from tests.contract.stock import Stock


def _loads(case: Case, layout: Layout, how: str, stock: Stock, tmp_path: Path) -> None:
    model, inputs = case.roughened(), case.kind.inputs()
    kept = adapter_state(model)
    paring.export(model, tmp_path / "adapter", layout=layout, force=True)
    ours = logits(model, inputs)
    theirs, ranks = stock.ask(case.kind.name, case.folder, how, tmp_path / "adapter", inputs, tmp_path)
    assert_close(theirs, ours)
    # Not an adapter that loads "fine" and does nothing: the update itself, not only a head, changes the output.
    with torch.no_grad():
        for path in paring.ranks(model):
            model.base_model.model.get_submodule(path)._disable_adapters = True
        assert (theirs - logits(model, inputs)).abs().max() > 1e-3
    live = paring.ranks(model)
    if layout == "compact" or not any(live.values()):
        assert ranks == {path: rank for path, rank in live.items() if rank}
    else:
        assert ranks == dict.fromkeys(live, max(live.values()))
    assert names_that_differ(adapter_state(model), kept) == [], "exporting changed the live model"


@pytest.mark.parametrize("layout", ["compact", "uniform"])
def test_export_loads_in_stock_peft(case: Case, layout: Layout, stock: Stock, tmp_path: Path) -> None:
    _loads(case, layout, "peft", stock, tmp_path)


@pytest.mark.parametrize("layout", ["compact", "uniform"])
def test_export_loads_in_plain_transformers(transformer: Case, layout: Layout, stock: Stock, tmp_path: Path) -> None:
    needs_heads(transformer)
    _loads(transformer, layout, "transformers", stock, tmp_path)


def test_the_exported_adapter_has_mixed_ranks_and_an_emptied_module(case: Case) -> None:
    # What the tests above lean on.
    live = {path: int(slot.gate.count_nonzero()) for path, slot in gated_slots(case.roughened()).items()}
    assert 0 in live.values()
    assert len(set(live.values())) > 2
    if case.kind.name == "bert":
        assert live["bert.encoder.layer.1.output.dense"] != live["bert.encoder.layer.10.output.dense"]
    if case.kind.name == "twin":
        assert 0 < live["enc.fc"] != live["fc"] > 0


def test_the_exported_configuration_has_no_trace_of_us(case: Case, tmp_path: Path) -> None:
    model = case.roughened()
    paring.export(model, tmp_path / "adapter", force=True)
    config: dict[str, Any] = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == ("SHIRA" if paring.snapshot(model).entries else "LORA")
    assert "paring" not in json.dumps({key: value for key, value in config.items() if key != "base_model_name_or_path"}).lower()
    assert not list((tmp_path / "adapter").rglob("*.bin"))


def test_what_was_exported_reads_back_as_the_live_adapter(case: Case, tmp_path: Path) -> None:
    model = case.roughened()
    live = paring.snapshot(model)
    for layout in ("compact", "uniform"):
        adapter = paring.read(paring.export(model, tmp_path / layout, layout=layout, force=True))  # type: ignore[arg-type]
        assert adapter.updates.keys() == live.updates.keys()
        assert adapter.heads.keys() == live.heads.keys()
        for path, update in live.updates.items():
            torch.testing.assert_close(adapter.updates[path].materialise(), update.materialise(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["compact", "uniform"])
def test_the_linter_finds_no_fault_on_behalf_of_peft_and_transformers(case: Case, layout: Layout, tmp_path: Path) -> None:
    model = case.roughened()
    paring.export(model, tmp_path / "adapter", layout=layout, force=True)
    said = {finding.engine: finding.level for finding in paring.verify(tmp_path / "adapter", model)}
    assert (said["peft"], said["transformers"]) == ("ok", "ok")


def test_an_export_is_not_overwritten_unasked(plain: Case, tmp_path: Path) -> None:
    model = plain.roughened()
    paring.export(model, tmp_path / "adapter", force=True)
    with pytest.raises(FileExistsError, match="exists already"):
        paring.export(model, tmp_path / "adapter", force=True)
    paring.export(model, tmp_path / "adapter", force=True, overwrite=True)


@torch.no_grad()
def test_an_adapter_without_a_rank_is_not_exported(case: Case, tmp_path: Path) -> None:
    model = case.roughened()
    for slot in gated_slots(model).values():
        slot.gate.zero_()
    with pytest.raises(ExportError, match="every gate is zero.*Lower"):
        paring.export(model, tmp_path / "adapter", force=True)
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_that_no_proximal_step_touched_is_not_exported(case: Case, tmp_path: Path) -> None:
    model = case.roughened()
    assert gated_slots(model)
    with pytest.raises(ExportError, match="proximal step never ran"):
        paring.export(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
