"""Layer and kind of a module, from its path."""

from __future__ import annotations

import pytest

from paring.core.records import ModuleRecord
from paring.report.places import Place, grids, in_order, place


@pytest.mark.parametrize(
    ("path", "stack", "layer", "kind"),
    [
        ("encoder.layer.3.attention.self.query", "encoder.layer", 3, "attention.self.query"),
        ("model.layers.10.mlp.gate_proj", "model.layers", 10, "mlp.gate_proj"),
        ("transformer.h.0.attn.c_attn", "transformer.h", 0, "attn.c_attn"),
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn", "albert.encoder.albert_layer_groups.0.albert_layers", 0, "ffn"),
        ("0.auto_model.encoder.layer.5.output.dense", "0.auto_model.encoder.layer", 5, "output.dense"),
        ("encoder.block.2.layer.1.DenseReluDense.wi", "encoder.block", 2, "layer.1.DenseReluDense.wi"),
        ("model.layers.7.mlp.experts.3.w1", "model.layers", 7, "mlp.experts.3.w1"),
        ("towers.4.dense", "towers", 4, "dense"),
        ("visual.resblocks.1.attn", "visual.resblocks", 1, "attn"),
    ],
)
def test_a_path_with_a_layer_number(path: str, stack: str, layer: int, kind: str) -> None:
    assert place(path) == Place(stack=stack, layer=layer, kind=kind)


@pytest.mark.parametrize("path", ["lm_head", "pooler.dense", "classifier.0", "layer3.conv", ""])
def test_a_path_without_a_layer_number_is_its_own_kind(path: str) -> None:
    assert place(path) == Place(stack="", layer=None, kind=path)


def _modules(*paths: str) -> list[ModuleRecord]:
    return [ModuleRecord(path=path, in_features=1, out_features=1, start_rank=1, live_rank=1) for path in paths]


def test_grids_hold_every_module_once_with_layers_rising() -> None:
    paths = ["head", "d.layer.0.v", "e.layer.10.q", "e.layer.2.q", "e.layer.2.k", "d.layer.1.q"]
    found = grids(_modules(*paths))
    assert [(grid.stack, grid.layers, grid.kinds) for grid in found] == [
        ("d.layer", (0, 1), ("v", "q")),
        ("e.layer", (2, 10), ("q", "k")),
        ("", (None,), ("head",)),
    ]
    assert sorted(module.path for grid in found for module in grid.cells.values()) == sorted(paths)
    assert [module.path for module in in_order(_modules(*paths))] == [
        "d.layer.0.v",
        "d.layer.1.q",
        "e.layer.2.q",
        "e.layer.2.k",
        "e.layer.10.q",
        "head",
    ]
