"""The heat map: every rank readable, shades that rise with the rank."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paring.core.records import ModuleRecord
from paring.report.drawing import HEAT
from paring.report.heatmap import heat_map, legend, shade
from tests.report.samples import BERT, LLAMA, modules, run


@given(top=st.integers(1, 300))
def test_shades_rise_from_nothing_to_the_full_rank(top: int) -> None:
    shades = [shade(rank, top) for rank in range(top + 1)]
    assert shades == sorted(shades)
    assert shades[0] == 0
    assert shades[1] >= 1
    assert shades[-1] == HEAT
    if top <= HEAT:
        assert len(set(shades)) == top + 1


@given(top=st.integers(1, 300))
def test_the_legend_covers_every_rank_once(top: int) -> None:
    spans = [label.split("\N{EN DASH}") for _, label in legend(top)]
    ranks = [rank for span in spans for rank in range(int(span[0]), int(span[-1]) + 1)]
    assert ranks == list(range(top + 1))


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_every_cell_carries_its_number() -> None:
    record = run(modules=tuple(modules("model.layers", range(9), LLAMA, rank=999, live=lambda layer, kind: 100 + layer * 7 + kind)))
    drawn = heat_map(record, "k")
    assert drawn is not None
    texts = _texts(drawn.svg)
    for module in record.modules:
        assert str(module.live_rank) in texts
    for kind in LLAMA:
        assert kind in texts
    assert [text for text in texts if text == "layer"]


@pytest.mark.parametrize("layers", [1, 12, 32, 33, 80])
def test_a_map_fits_the_page_whatever_the_number_of_layers(layers: int) -> None:
    drawn = heat_map(run(modules=tuple(modules("model.layers", range(layers), LLAMA[:2], rank=8, live=lambda layer, kind: 8))), "k")
    assert drawn is not None
    width = re.search(r'width="([0-9.]+)"', drawn.svg)
    assert width is not None
    assert float(width[1]) <= 1104
    texts = _texts(drawn.svg)
    assert texts.count("8") >= layers * 2


def test_modules_without_a_layer_and_missing_pairs_are_shown() -> None:
    some = modules("h", [0, 1], BERT[:2], rank=4, live=lambda layer, kind: 3)[:3]
    head = ModuleRecord(path="lm_head", in_features=4, out_features=4, start_rank=4, live_rank=2)
    drawn = heat_map(run(modules=(*some, head)), "k")
    assert drawn is not None
    texts = _texts(drawn.svg)
    assert "Outside the layers" in texts
    assert "lm_head" in texts
    assert texts.count("·") == 1


def test_a_dollar_or_markup_in_a_path_is_text() -> None:
    drawn = heat_map(run(modules=(ModuleRecord(path="h.0.$a_b$<i>&", in_features=4, out_features=4, start_rank=4, live_rank=2),)), "k")
    assert drawn is not None
    assert "$a_b$&lt;i&gt;&amp;" in _texts(drawn.svg)


def test_no_module_no_map() -> None:
    assert heat_map(run(modules=()), "k") is None
