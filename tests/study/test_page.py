"""The page of a study: sound, escaped, the same bytes, and honest."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from paring.core.errors import OutputExistsError
from paring.report.planes import draw_ranks
from paring.study.page import render_study, write_study_page
from paring.study.records import Findings
from tests.report.pages import Page
from tests.study.samples import EVIL, entry, evil, findings, nothing, one_seed, usual

SAMPLES: dict[str, Callable[[], Findings]] = {"usual": usual, "evil": evil, "nothing": nothing, "one seed": one_seed}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_page_is_sound(name: str) -> None:
    html = render_study(SAMPLES[name]())
    html.encode("utf-8")
    found = Page(html)
    assert found.faults == []
    assert len(found.ids) == len(set(found.ids))
    assert found.references <= set(found.ids)
    assert not {"script", "img", "link", "iframe", "object", "base", "foreignobject", "animate", "b", "strong"} & {
        tag for tag, _ in found.tags
    }
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


def test_text_of_the_study_is_escaped_everywhere() -> None:
    html = render_study(evil())
    assert Page(html).text.count(EVIL) >= 10
    assert "<script" not in html.lower()


def test_the_same_findings_give_the_same_bytes() -> None:
    assert render_study(usual()) == render_study(Findings.from_json(usual().to_json()))


def test_every_number_is_there() -> None:
    text = " ".join(Page(render_study(usual())).text.split())
    assert "4 contestants" in text
    assert "93 runs: 80 finished, 1 failed, 12 pruned" in text
    assert "90.20 [90.00, 90.40]" in text  # LoRA on trec
    assert "89.20 [89.00, 89.40]" in text
    assert "-1.00 [-1.00, -1.00]" in text  # the cut at 1/8, paired
    assert "2 of 3" in text
    assert "learning rate 0.001 (edge)" in text
    assert "factor 3, best 1.0e-03" in text
    assert "paring study small.yaml" in text
    assert "40,000" in text


def test_what_a_reader_must_not_miss_is_said() -> None:
    text = " ".join(Page(render_study(usual())).text.split())
    assert "Only 3 seeds" in text
    assert "SoRA on trec: 1 run failed (seed 1: Training diverged.)" in text
    assert "cut @ 1/2 on sst2: the chosen learning_rate lies at the edge" in text
    many = findings(*(entry(name, "t", [0.5 + seed / 100 for seed in range(5)]) for name in "ab"))
    assert "seeds: an interval" not in Page(render_study(many)).text
    mixed = replace(many, versions={"torch": ["1", "2"]}, machines=[{"cores": 1}, {"cores": 2}])
    said = Page(render_study(mixed)).text
    assert "several versions of torch" in said
    assert "2 kinds of machine" in said


def test_nothing_is_called_the_best_without_an_interval() -> None:
    text = " ".join(Page(render_study(one_seed())).text.split())
    assert "it is this one, or LoRA" in text
    assert re.search(r"LoRA\s*90\.00\s*1 of 1\s*not told apart", text)


def test_the_others_are_compared_with_the_reference() -> None:
    text = Page(render_study(usual(), reference="SoRA")).text
    assert "Points above SoRA" in text
    assert "Points above LoRA" not in text


def test_ranks_are_drawn_or_said_to_be_missing() -> None:
    text = Page(render_study(usual())).text
    assert "Nemenyi" in text
    assert "Ranks need at least two tasks" in Page(render_study(one_seed())).text
    drawn = draw_ranks({"a": 1.2, "b": 1.8, "c": 3.0}, 1.0, (("a", "b"),), "key")
    assert "Not told apart: a, b." in drawn.svg
    assert "critical difference 1.00" in drawn.svg


def test_an_existing_page_is_kept_unless_asked(tmp_path: Path) -> None:
    path = write_study_page(usual(), tmp_path / "study" / "report.html")
    with pytest.raises(OutputExistsError):
        write_study_page(usual(), path)
    assert write_study_page(one_seed(), path, overwrite=True).read_text() == render_study(one_seed())
